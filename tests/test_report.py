"""The report: honest words, hostile texts that stay texts, and a page that needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import rlaif
from rlaif_cli.errors import InputError, UsageError
from rlaif_cli.stages.report import findings, write_report
from rlaif_cli.stages.report.samples import SAMPLES, spread

HOSTILE = "<script>alert(1)</script></script><img src=https://evil.example/x onerror=alert(2)>{{ 7 * 7 }}"


def estimate(value: float, low: float, high: float, n: int = 90) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n}


def make_summary(folder: Path) -> dict[str, Any]:
    """A demo's summary; every number shows an effect."""

    def stage(run: str, output: str, settings: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
        settings = {"seed": 0, "output": str(folder / output)} | settings
        return {"run": run, "settings": settings, "seconds": 12.5, "results": results}

    judge = {"judge": "judge-m", "method": "contrast", "constitution": "helpfulness"}
    counts = {"rows": 40, "resumed": 0, "responses": 80, "unfinished": 4}
    labels = {"pairs": 40, "resumed": 0, "unscored": 2, "mean_p_chosen": 0.62, "flip_rate": None}
    labels |= {"first_position_share": None, "mean_mass": None}
    held_out = {"pairs": 60, "accuracy": 0.7, "accuracy_interval": [0.6, 0.8], "loss": 0.61}
    held_out |= {"entropy_floor": 0.55, "ece": 0.04, "brier": 0.21}
    ppo = {"steps": 20, "reward_first": 0.02, "reward_last": 0.83, "kl_last": 4.25}
    win = {"n": 180, "prompts": 90, "unscored": 1, "win_rate": estimate(0.71, 0.63, 0.79, 180)}
    win |= {"length_controlled": estimate(0.64, 0.55, 0.73), "mean_length_a": 420.0, "mean_length_b": 512.4}
    rewards = {"n": 90, "reward": estimate(0.8, 0.7, 0.9), "baseline": estimate(0.1, 0.0, 0.2)}
    rewards["difference"] = estimate(0.7, 0.5, 0.9)
    alignment = {"n": 300, "accuracy": estimate(0.66, 0.61, 0.71), "longer_wins": estimate(0.52, 0.46, 0.58)}
    before, after = str(folder / "before.jsonl"), str(folder / "after.jsonl")
    stages = {
        "candidates": stage(
            "generate", "candidates.jsonl", {"model": "policy-m", "n": 2, "prompts": "p.jsonl"}, counts
        ),
        "preferences": stage(
            "label", "preferences.jsonl", judge | {"candidates": str(folder / "candidates.jsonl")}, labels
        ),
        "alignment": stage("eval alignment", "alignment.json", judge, alignment),
        "rm": stage("train-rm", "rm", {}, {"train_pairs": 36, "held_out": held_out}),
        "policy": stage("ppo", "policy", {"reward_model": "rm", "prompts": "p.jsonl"}, ppo),
        "before": stage("generate", "before.jsonl", {"model": "policy-m", "n": 1}, counts),
        "after": stage("generate", "after.jsonl", {"model": "policy", "n": 1}, counts),
        "reward": stage("eval reward", "reward.json", {"candidates": after, "baseline": before}, rewards),
        "win-rate": stage("eval win-rate", "win-rate.json", judge | {"a": after, "b": before}, win),
        "harmless": stage(
            "eval harmless-rate",
            "harmless.json",
            judge | {"candidates": after},
            {"n": 90, "unscored": 0, "harmless_rate": estimate(0.9, 0.82, 0.95)},
        ),
    }
    return {"name": "demo", "description": "Shorter answers.", "stages": stages}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def make_run(folder: Path, text: str = "A plain answer.") -> Path:
    """A run's folder as the stages leave it, with `text` in a prompt and in both responses."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(make_summary(folder)), "utf-8")
    steps = range(1, 21)
    rm = [{"step": s, "loss": 0.7 - 0.005 * s, "entropy_floor": 0.55, "accuracy": 0.5 + 0.01 * s} for s in steps]
    write_rows(folder / "rm" / "metrics.jsonl", rm)
    names = ("kl", "response_length", "mismatch", "seconds_rollout", "seconds_update")
    ppo = [{"step": s, "reward": 0.04 * s, **dict.fromkeys(names, 0.1 * s)} for s in steps]
    write_rows(folder / "policy" / "metrics.jsonl", ppo)
    ids = [f"row-{i:02}" for i in range(30)]
    for name in ("before", "after"):
        rows = [{"id": i, "prompt": f"{i} {text}", "responses": [{"text": f"{name} {i} {text}"}]} for i in ids]
        write_rows(folder / f"{name}.jsonl", rows)
    items = [{"id": row, "sample": 0, "p_a": i / 29} for i, row in enumerate(ids)]
    write_rows(folder / "win-rate.items.jsonl", [*items, {"id": "row-00", "sample": 0, "p_a": None}])
    return folder


def page_of(folder: Path) -> str:
    return write_report(folder, folder / "report.html").read_text("utf-8")


def line(lines: list[str], start: str) -> str:
    return next(found for found in lines if found.startswith(start))


# ------------------------------------------------------------------------------------------------ findings


def test_findings_of_a_run_with_an_effect(tmp_path: Path) -> None:
    lines = findings(make_summary(tmp_path), tmp_path)
    titles = [found.split(":")[0] for found in lines]
    expected = ["Candidates", "Labels", "Judge", "Reward model", "PPO", "Reward", "Win rate", "Harmless rate"]
    assert titles == expected  # one line each, and of three generate stages the one that is labelled
    assert not any("no effect" in found for found in lines)
    assert "80 responses to 40 prompts by policy-m" in lines[0]
    assert "2 unscored" in lines[1] and "mean p_chosen 0.620" in lines[1] and "flip" not in lines[1]
    assert "66.0 % [61.0, 71.0] of n = 300 pairs, 'longer wins' in 52.0 % [46.0, 58.0]" in lines[2]
    assert "better than a coin" in lines[2] and "it beats 'longer wins'" in lines[2]
    assert "70.0 % [60.0, 80.0]" in lines[3] and "loss 0.610, floor 0.550" in lines[3]
    assert "ECE 0.040, Brier 0.210" in lines[3]
    assert "20 steps; reward +0.02 -> +0.83" in lines[4] and "4.25 nats" in lines[4]
    assert "+0.10 before, +0.80 after" in lines[5] and "+0.70 [+0.50, +0.90]" in lines[5]
    assert "71.0 % [63.0, 79.0]" in lines[6] and "n = 90 prompts" in lines[6]
    assert "the interval is clear of 50 %" in lines[6] and "at equal length 64.0 % [55.0, 73.0]" in lines[6]
    assert "512 -> 420 characters" in lines[6] and "which also made the labels" in lines[6]
    assert "90.0 % [82.0, 95.0]" in lines[7]


def test_findings_say_plainly_where_there_is_no_effect(tmp_path: Path) -> None:
    summary = make_summary(tmp_path)
    results = {name: stage["results"] for name, stage in summary["stages"].items()}
    results["preferences"]["mean_p_chosen"] = 0.503
    results["alignment"]["accuracy"] = estimate(0.52, 0.46, 0.58)
    results["rm"]["held_out"] |= {"accuracy": 0.52, "accuracy_interval": [0.4, 0.64]}
    results["policy"]["reward_last"] = -0.01
    results["reward"]["difference"] = estimate(0.02, -0.1, 0.14)
    results["win-rate"]["win_rate"] = estimate(0.53, 0.46, 0.6)
    lines = findings(summary, tmp_path)
    for title in ("Labels", "Judge", "Reward model", "PPO", "Reward"):
        assert "shows no effect" in line(lines, f"{title}:"), title
    assert "not distinguishable from 'longer wins'" in line(lines, "Judge:")
    assert "no effect can be seen: the interval holds 50 %" in line(lines, "Win rate:")


def test_an_effect_in_the_wrong_direction_is_called_so(tmp_path: Path) -> None:
    summary = make_summary(tmp_path)
    summary["stages"]["win-rate"]["results"]["win_rate"] = estimate(0.3, 0.2, 0.4)
    summary["stages"]["reward"]["results"]["difference"] = estimate(-0.3, -0.4, -0.2)
    summary["stages"]["alignment"]["results"]["accuracy"] = estimate(0.3, 0.25, 0.35)
    lines = findings(summary, tmp_path)
    assert "on the wrong side: the judge prefers the start" in line(lines, "Win rate:")
    assert "the reward fell" in line(lines, "Reward:")
    assert "worse than a coin" in line(lines, "Judge:") and "does not beat" in line(lines, "Judge:")


def test_few_prompts_claim_nothing_however_narrow_the_interval(tmp_path: Path) -> None:
    summary = make_summary(tmp_path)
    summary["stages"]["win-rate"]["results"] |= {"prompts": 2, "win_rate": estimate(1.0, 1.0, 1.0, 2)}
    found = line(findings(summary, tmp_path), "Win rate:")
    assert "2 prompts are too few" in found and "clear of" not in found


def test_a_win_that_is_length_alone_is_not_sold_as_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    summary = make_summary(folder)
    summary["stages"]["win-rate"]["results"]["length_controlled"] = estimate(0.52, 0.44, 0.6)
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "where no effect can be seen" in line(findings(summary, folder), "Win rate:")
    assert "but at equal length no effect can be seen" in page_of(folder)


def test_a_win_by_a_judge_that_people_do_not_share_comes_with_a_caution(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    summary = make_summary(folder)
    summary["stages"]["alignment"]["results"]["accuracy"] = estimate(0.52, 0.46, 0.58)
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "The judge itself was not shown to agree with people" in page_of(folder)


def test_findings_only_of_stages_that_ran(tmp_path: Path) -> None:
    summary = make_summary(tmp_path)
    summary["stages"] = {"x": summary["stages"]["preferences"]}
    assert len(findings(summary, tmp_path)) == 1
    assert findings({"stages": {}}, tmp_path) == []


@pytest.mark.parametrize(("trained_on", "words"), [("new", "prompts not trained on"), ("row-00 hi", "1 of them also")])
def test_held_out_is_checked_and_not_just_said(tmp_path: Path, trained_on: str, words: str) -> None:
    folder = make_run(tmp_path, "hi")
    write_rows(folder / "candidates.jsonl", [{"prompt": trained_on, "responses": ["a", "b"]}])
    lines = findings(make_summary(folder), folder)
    assert words in line(lines, "Reward:") and words in line(lines, "Win rate:")


# ------------------------------------------------------------------------------------------------ the page


class Elements(HTMLParser):
    """Every tag with its attributes, and the texts of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = self._in_script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data


def test_the_page_says_what_was_found_and_shows_all_parts(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    page = page_of(folder)
    assert "The judge prefers the tuned model: it wins 71.0 %" in page and "not shown to agree" not in page
    for heading in ("What was found", "Stages", "Curves", "Samples before and after", "Settings"):
        assert f">{heading}</h2>" in page
    assert page.index("What was found") < page.index(">Stages</h2>")
    figures = json.loads(Elements(page).scripts[0])
    assert len(figures) == 7  # loss, accuracy; reward, KL, length, mismatch, seconds
    assert {trace["name"] for trace in figures[0]["data"]} == {"each step", "floor", "held out"}
    assert page.count('<article class="panel sample">') == 20
    assert "20 of 30 comparisons" in page and "after wins" in page and "before wins" in page
    assert 'lang="en"' in page and "prefers-color-scheme: dark" in page and "width=device-width" in page
    assert page.count("<caption>") == page.count("<table")
    assert not list(folder.glob(".report*")), "the temporary file is gone"


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    folder = make_run(tmp_path, HOSTILE)
    summary = make_summary(folder)
    summary["name"] = summary["description"] = HOSTILE
    summary["stages"][HOSTILE] = summary["stages"].pop("rm")  # a stage's name stands in the curves' titles
    summary["stages"]["preferences"]["settings"]["judge"] = HOSTILE
    (folder / "summary.json").write_text(json.dumps(summary))
    page = page_of(folder)
    elements = Elements(page)
    assert len(elements.scripts) == 3  # the figures' data, plotly.js and ours
    assert not [tag for tag, _ in elements.tags if tag == "img"]
    assert not [name for _, attrs in elements.tags for name in attrs if name.startswith("on")]
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert "{{ 7 * 7 }}" in page


def test_only_our_own_scripts_may_run_and_nothing_is_loaded(tmp_path: Path) -> None:
    elements = Elements(page_of(make_run(tmp_path, HOSTILE)))
    (policy,) = [a["content"] or "" for t, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in elements.scripts[1:]]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    for _, attrs in elements.tags:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert not attrs.get(name) or str(attrs[name]).startswith(("data:", "#")), attrs


def test_a_killed_run_can_be_reported_on(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "rm" / "metrics.jsonl").unlink()
    (folder / "before.jsonl").unlink()
    (folder / "win-rate.items.jsonl").unlink()
    summary = make_summary(folder)
    del summary["stages"]["policy"]  # killed in the middle: the summary does not know it
    (folder / "summary.json").write_text(json.dumps(summary))
    with open(folder / "policy" / "metrics.jsonl", "a") as file:
        file.write('{"step": 21, "rew')
    page = page_of(folder)
    assert f"Missing: {folder / 'rm' / 'metrics.jsonl'}" in page
    assert "This stage has not finished" in page
    assert "before.jsonl, the results of win-rate by item" in page
    assert len(json.loads(Elements(page).scripts[0])) == 5


def test_nothing_but_the_first_stage(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"name": "x", "stages": {}}))
    page = page_of(tmp_path)
    assert "was not measured" in page and "script-src 'none'" in page and "<script" not in page


def test_numbers_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    rows = [{"step": 1, "loss": math.nan, "accuracy": 0.5}, {"step": 2, "loss": 0.6, "accuracy": math.inf}]
    write_rows(folder / "rm" / "metrics.jsonl", rows)
    loss, accuracy = json.loads(Elements(page_of(folder)).scripts[0])[:2]
    assert loss["data"][0]["y"] == [None, 0.6] and accuracy["data"][0]["y"] == [0.5, None]


def test_a_moved_run_is_read_from_where_it_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "old")
    moved = folder.rename(tmp_path / "new")
    make_run(tmp_path / "old", "of another run")  # what lies at the old place now is not this run's
    page = page_of(moved)
    assert "A plain answer." in page and "of another run" not in page


def test_paths_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = page_of(make_run(Path("runs/demo")))
    assert page.count('<article class="panel sample">') == 20 and "<p>Missing" not in page


@pytest.mark.parametrize("content", [None, "not json", "[]", '{"name": "x"}', '{"stages": {"a": 1}}'])
def test_no_run_here(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(InputError) as error:
        write_report(tmp_path, tmp_path / "report.html")
    assert "summary.json" in str(error.value) and error.value.hint
    assert not (tmp_path / "report.html").exists()


def test_lone_surrogates_and_long_texts(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "word " * 600)
    summary = make_summary(folder)
    summary["description"] = "\ud800"
    (folder / "summary.json").write_text(json.dumps(summary))
    page = page_of(folder)
    assert re.search(r"<details><summary>… the rest \(\d+ characters\)", page)


def test_samples_are_spread_evenly_over_all_comparisons() -> None:
    items = [{"id": str(i), "p_a": ((i * 37) % 101) / 100} for i in range(101)]
    chosen = [item["p_a"] for item in spread(items, 5)]
    assert chosen == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert len(spread(items[:3])) == 3
    assert SAMPLES == 20


# ------------------------------------------------------------------------------------- Markdown and JSON


def test_the_same_numbers_as_json(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    found = json.loads(write_report(folder, folder / "report.json").read_text("utf-8"))
    summary = make_summary(folder)
    assert found["findings"] == findings(summary, folder)
    assert list(found["stages"]) == list(summary["stages"])
    rates = {rate["name"]: rate for rate in found["rates"]}
    assert rates["Tuned model wins"] == {"name": "Tuned model wins", "value": 0.71, "low": 0.63, "high": 0.79, "n": 90}
    assert found["headline"].startswith("The judge prefers the tuned model")


def test_the_same_numbers_as_markdown_in_which_names_are_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    summary = make_summary(folder) | {"name": "x](http://evil) <script> `a|b` \x1b[2J"}
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    text = write_report(folder, folder / "report.md").read_text("utf-8")
    assert text.startswith("# x\\](http://evil) \\<script\\> \\`a\\|b\\` \\\\x1b\\[2J\n")
    for finding in findings(summary, folder):
        assert finding.split(":")[0] in text
    assert "| Tuned model wins | 71.0 % [63.0, 79.0] | 90 |" in text
    cells = [line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(cells) == {3, 4}, "every row has as many cells as its table"


def test_a_model_card_says_what_a_checkpoint_was_made_of(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "rm" / "manifest.json").write_text(
        json.dumps({"settings": {"input_sha256": "ab" * 32}, "checkpoint_sha256": "cd" * 32})
    )
    done = rlaif("report", str(folder), "-o", str(tmp_path / "report.html"), "--card")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("model card: ") == 2
    for name, task in (("rm", "text-classification"), ("policy", "text-generation")):
        _, front, text = (folder / name / "README.md").read_text("utf-8").split("---\n", 2)
        assert yaml.safe_load(front)["pipeline_tag"] == task and "rlaif" in yaml.safe_load(front)["tags"]
        assert "not from people" in text and "71.0 % \\[63.0, 79.0\\]" in text
    assert "cd" * 32 in (folder / "rm" / "README.md").read_text("utf-8")


def test_runs_side_by_side(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    summary = make_summary(two) | {"name": "<b>other"}
    summary["stages"]["win-rate"]["results"]["win_rate"] = estimate(0.5, 0.4, 0.6)
    del summary["stages"]["alignment"]
    (two / "summary.json").write_text(json.dumps(summary), "utf-8")
    page = write_report(one, tmp_path / "both.html", [two]).read_text("utf-8")
    table = page.split('id="beside"')[1].split("</table>")[0]
    assert "&lt;b&gt;other" in table and "<b>other" not in page
    assert "71.0 % [63.0, 79.0]" in table and "50.0 % [40.0, 60.0]" in table and "not measured" in table
    assert "No effect can be seen" in table and "The judge prefers the tuned model" in table
    text = write_report(one, tmp_path / "both.md", [two]).read_text("utf-8")
    assert "| Tuned model wins | 71.0 % [63.0, 79.0] | 50.0 % [40.0, 60.0] |" in text
    found = json.loads(write_report(one, tmp_path / "both.json", [two]).read_text("utf-8"))
    assert [each["name"] for each in found["beside"]] == ["<b>other"]
    assert 'id="beside"' not in page_of(one)
    with pytest.raises(UsageError, match=r"no '\.txt' file"):
        write_report(one, tmp_path / "report.txt")
