"""The report: honest words, hostile texts that stay texts, and a page that needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import rlaif
from report_runs import estimate, make_run, make_summary, write_rows
from rlaif_cli.errors import InputError, UsageError
from rlaif_cli.report import findings, write_report
from rlaif_cli.report.advice import next_step, trained
from rlaif_cli.report.chain import chains
from rlaif_cli.report.run_folder import Run
from rlaif_cli.report.samples import spread

HOSTILE = "<script>alert(1)</script></script><img src=https://evil.example/x onerror=alert(2)>{{ 7 * 7 }}"


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
    assert "the interval excludes 50 %" in lines[6] and "at equal length 64.0 % [55.0, 73.0]" in lines[6]
    assert "512 -> 420 characters" in lines[6] and "which also made the labels" in lines[6]
    assert "90.0 % [82.0, 95.0]" in lines[7]


def test_a_chosen_policy_is_reported_by_the_prompts_that_did_not_choose_it(tmp_path: Path) -> None:
    summary = make_summary(tmp_path)
    results = summary["stages"]["policy"]["results"]
    results |= {"unscored": 3, "weights": {"step": 12, "looks": 8, "highest_win_rate": 0.75, "highest_win_rate_n": 40}}
    results["weights"] |= {"win_rate": estimate(0.55, 0.42, 0.68, 40), "prompts": 10, "unscored": 0}
    found = line(findings(summary, tmp_path), "PPO")
    assert (
        "step 12 were kept, the best of 8 evaluations" in found and "55.0 % [42.0, 68.0]" in found and "75" not in found
    )
    assert "3 responses without a score" in found
    results["weights"]["win_rate"] = None
    assert "best of 8 evaluations" in line(findings(summary, tmp_path), "PPO")


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
    assert "no effect can be seen: the interval includes 50 %" in line(lines, "Win rate:")


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


@pytest.mark.parametrize(
    ("chosen_on", "flatters"),
    [({"pairs": 60, "prompts": 30, "also_reported": False}, False), ({"also_reported": True}, True), (None, True)],
)
def test_a_held_out_number_that_chose_the_weights_says_so(tmp_path: Path, chosen_on: Any, flatters: bool) -> None:
    """None: of a version that reported the pairs that had chosen."""
    folder = make_run(tmp_path)
    summary = make_summary(folder)
    rm = summary["stages"]["rm"]
    words = "the same pairs chose the weights"
    assert words not in line(findings(summary, folder), "Reward model:"), "without --patience nothing is chosen"
    rm["settings"]["patience"] = 2
    rm["results"] |= {"chosen_on": chosen_on} if chosen_on else {}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert (words in line(findings(summary, folder), "Reward model:")) is flatters
    assert (words in page_of(folder)) is flatters
    assert (words in write_report(folder, folder / "report.md").read_text()) is flatters


def test_few_prompts_are_few_however_many_pairs_they_have(tmp_path: Path) -> None:
    summary = make_summary(tmp_path)
    results = {name: stage["results"] for name, stage in summary["stages"].items()}
    results["alignment"]["accuracy"] |= {"prompts": 4}
    results["rm"]["held_out"] |= {"prompts": 4}
    lines = findings(summary, tmp_path)
    assert "300 pairs of few prompts are too few" in line(lines, "Judge:")
    assert "60 pairs of few prompts are too few" in line(lines, "Reward model:")


def test_one_prompt_has_no_interval_and_held_out_ties_no_accuracy(tmp_path: Path) -> None:
    summary = make_summary(tmp_path)
    results = {name: stage["results"] for name, stage in summary["stages"].items()}
    lone = {"value": 0.8, "low": None, "high": None, "n": 1, "prompts": 1}
    results["reward"] |= {"n": 1, "reward": lone, "baseline": lone, "difference": lone}
    for name in ("accuracy", "accuracy_interval"):
        del results["rm"]["held_out"][name]
    lines = findings(summary, tmp_path)
    assert "+0.80 (one prompt has no interval)" in line(lines, "Reward:")
    assert "every one a tie" in line(lines, "Reward model:")
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert "0.8, n = 1" in write_report(tmp_path, tmp_path / "report.md").read_text()


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
    assert "The judge prefers the tuned model: it wins 71 %" in page and "not shown to agree" not in page
    headings = (
        "What was found",
        "Label audit",
        "Curves",
        "Samples before and after",
        "What it cost",
        "Lineage",
    )
    for heading in (*headings, "Stages", "Settings"):
        assert f">{heading}</h2>" in page
    assert page.index("What was trained") < page.index("What next") < page.index(">What was found</h2>")
    figures, rows, *_ = map(str, Elements(page).scripts)
    figures = json.loads(figures)
    # loss, accuracy; reward, KL, length, mismatch, seconds; calibration of the judge and of the reward model
    assert len(figures) == 9
    assert {trace["name"] for trace in figures[0]["data"]} == {"each step", "floor", "held out", "a coin"}
    assert "limit 0.2" in {trace["name"] for trace in figures[5]["data"]}, "where the mismatch stops the run"
    shares = [row["p_after"] for row in json.loads(rows)]
    assert len(shares) == 30 and shares == sorted(shares, reverse=True), "all can be browsed, the clearest win first"
    plain = page.split("<noscript>\n<p>20 of 30 comparisons")[1].split("</noscript>")[0]
    assert plain.count('<article class="panel sample">') == 20 and "after wins" in plain and "before wins" in plain
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
    assert len(elements.scripts) == 5  # the figures' and the samples' data, plotly.js and ours
    assert not [tag for tag, _ in elements.tags if tag == "img"]
    assert not [name for _, attrs in elements.tags for name in attrs if name.startswith("on")]
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert "{{ 7 * 7 }}" in page


def test_only_our_own_scripts_may_run_and_nothing_is_loaded(tmp_path: Path) -> None:
    elements = Elements(page_of(make_run(tmp_path, HOSTILE)))
    (policy,) = [a["content"] or "" for t, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in elements.scripts[2:]]
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
    assert len(json.loads(Elements(page).scripts[0])) == 7


def test_files_that_are_no_longer_what_a_stage_wrote_are_named_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "win-rate.json").write_text('{"metric": "win-ra')
    (folder / "after.jsonl.manifest.json").write_text(json.dumps({"sha256": "ab" * 32}))
    (folder / "before.jsonl.manifest.json").write_text(
        json.dumps({"sha256": hashlib.sha256((folder / "before.jsonl").read_bytes()).hexdigest()})
    )
    done = rlaif("report", str(folder), "-o", str(folder / "report.html"))
    assert done.returncode == 0, done.stderr
    page, told = (folder / "report.html").read_text("utf-8"), done.stderr
    for name, said in (("win-rate.json", "this is not JSON"), ("after.jsonl", "changed after it was made")):
        lines = [line for line in told.splitlines() if name in line]
        assert len(lines) == 1 and lines[0].startswith("warning: ") and said in lines[0], told
        assert said in page
    assert "before.jsonl" not in told
    for name in ("report.md", "report.json"):
        assert "this is not JSON" in write_report(folder, folder / name).read_text("utf-8")


@pytest.mark.parametrize("name", ["summary.json", "win-rate.json"])
def test_a_report_replaces_no_file_of_its_run(name: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    before = (folder / name).read_bytes() if (folder / name).exists() else None
    with pytest.raises(UsageError, match="would overwrite a file of the run"):
        write_report(folder, folder / name)
    assert before == ((folder / name).read_bytes() if (folder / name).exists() else None)


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
    assert "30 comparisons" in page and "<p>Missing" not in page


@pytest.mark.parametrize("content", [None, "not json", "[]", '{"name": "x"}', '{"stages": {"a": 1}}'])
def test_no_run_here(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(InputError) as error:
        write_report(tmp_path, tmp_path / "report.html")
    assert "summary.json" in str(error.value) and error.value.hint
    assert not (tmp_path / "report.html").exists()


def test_lone_surrogates(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    summary = make_summary(folder)
    summary["description"] = "\ud800"
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "</html>" in page_of(folder)


def test_samples_are_spread_evenly_over_all_comparisons() -> None:
    assert spread(list(range(101)), 5) == [0, 25, 50, 75, 100]
    assert spread([1, 2, 3], 5) == [1, 2, 3]


# ------------------------------------------------------------------------------------- the first screen


def changed_run(folder: Path, **results: dict[str, Any]) -> Run:
    """A run whose stages have other results; a stage that is given none is left out."""
    summary = make_summary(folder)
    for name, found in results.items():
        stage = name.replace("_", "-") if name.replace("_", "-") in summary["stages"] else name
        if found:
            summary["stages"][stage]["results"] |= found
        else:
            del summary["stages"][stage]
    return Run.of_summary(summary, folder)


def test_what_was_trained_on_what(tmp_path: Path) -> None:
    run = changed_run(tmp_path)
    assert "was tuned by PPO" in trained(run) and "p.jsonl, 20 steps" in trained(run)
    assert "trained on 36 pairs labelled by the judge judge-m by the constitution helpfulness" in trained(run)
    assert "became a reward model, trained on 36 pairs" in trained(changed_run(tmp_path, policy={}))
    labels = trained(changed_run(tmp_path, policy={}, rm={}))
    assert labels.startswith("40 pairs were labelled by the judge judge-m") and "Nothing was trained" in labels


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ({"alignment": {}}, "rlaif eval alignment"),
        ({"alignment": {"accuracy": estimate(0.52, 0.46, 0.58)}}, "Use a judge that agrees with people"),
        ({"win_rate": {}}, "Compare with the start"),
        ({"win_rate": {}, "policy": {}, "rm": {}}, "rlaif train-rm"),
        ({"win_rate": {"prompts": 3}}, "a hundred or more"),
        ({"win_rate": {"win_rate": estimate(0.5, 0.4, 0.6)}}, "train longer"),
        ({"win_rate": {"win_rate": estimate(0.5, 0.4, 0.6)}, "policy": {"reward_last": 0.0}}, "did not rise"),
        ({"win_rate": {"win_rate": estimate(0.3, 0.2, 0.4)}}, "higher --kl-coef"),
        ({"win_rate": {"length_controlled": estimate(0.5, 0.4, 0.6)}}, "--length-penalty"),
        ({}, "Compare with a different judge"),
    ],
)
def test_what_to_do_next(tmp_path: Path, results: dict[str, dict[str, Any]], words: str) -> None:
    run = changed_run(tmp_path, **results)
    assert words in next_step(run, chains(run)[0])


def test_labels_that_the_audit_stops_come_before_all_else(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    label = json.loads((folder / "preferences.jsonl").read_text("utf-8").splitlines()[0])
    write_rows(folder / "preferences.jsonl", [label | {"id": str(i), "p_chosen": 0.5} for i in range(40)])
    page = page_of(folder)
    assert "Do not train on these labels as they are" in page.split("What was found")[0]
    assert 'class="level stop"' in page


def test_the_cost_of_labels_beside_that_of_people(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    manifest = {"stage": "label", "settings": {}, "usage": {"tokens_in": 64_000, "tokens_out": 80, "cost": 0.0321}}
    (folder / "preferences.jsonl.manifest.json").write_text(json.dumps(manifest))
    page = page_of(folder)
    assert "40 labels took $0.03. As many human labels would cost about $27" in page
    assert "64,000" in page and "0.0321" in page


# ------------------------------------------------------------------------------------- in a browser


def test_ten_thousand_samples_are_browsed(tmp_path: Path, browser: Any) -> None:
    folder = make_run(tmp_path, HOSTILE)
    ids = [f"row-{i:05}" for i in range(10_000)]
    for name in ("before", "after"):
        text = {i: f"{name} {i} {HOSTILE} " + "word " * (30 + int(i[-2:])) for i in ids}
        rows = [{"id": i, "prompt": f"prompt {i} {HOSTILE}", "responses": [{"text": text[i]}]} for i in ids]
        write_rows(folder / f"{name}.jsonl", rows)
    items = [{"id": name, "sample": 0, "p_a": i / 10_000, "rationales": ["because"]} for i, name in enumerate(ids)]
    write_rows(folder / "win-rate.items.jsonl", items)
    page_of(folder)
    page = browser.new_page(viewport={"width": 390, "height": 800})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append("a dialog"))
    page.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    page.goto((folder / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing is cut off on a phone"
    assert page.locator("article.sample").count() == 20
    page.get_by_role("button", name="Show more").click()
    assert page.locator("article.sample").count() == 40
    first = page.locator("article.sample").first
    assert (
        "1. after wins" in first.inner_text()
        and "row-09999" in first.inner_text()
        and "because" in first.text_content()
    )
    assert HOSTILE in first.locator(".prompt").text_content()
    page.get_by_label("Order").select_option("closest first")
    assert "row-05000" in first.inner_text()
    page.locator("select.filter").select_option("before wins")
    assert "before wins" in first.inner_text() and page.get_by_role("status").inner_text() == "20 of 5000 shown"
    page.get_by_label("Search").fill("AFTER row-01234")
    page.get_by_text("1 of 1 shown").wait_for()
    assert "row-01234" in first.inner_text()
    assert not said


def test_nothing_is_cut_off_on_a_small_phone_however_long_a_name_or_a_text(tmp_path: Path, browser: Any) -> None:
    folder, long = make_run(tmp_path, "x" * 200_000), "n" * 115
    summary = make_summary(folder)
    summary["name"] = summary["description"] = long
    summary["stages"] = {f"{name}-{long}"[:115]: stage for name, stage in summary["stages"].items()}
    for stage in summary["stages"].values():
        stage["settings"]["model"] = stage["settings"]["judge"] = long
    (folder / "summary.json").write_text(json.dumps(summary))
    page_of(folder)
    page = browser.new_page(viewport={"width": 360, "height": 800})
    page.goto((folder / "report.html").as_uri(), timeout=120_000)  # to lay out words of 200,000 letters takes a while
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    cut = "all => all.filter(each => each.scrollWidth > each.clientWidth + 1).map(each => each.innerText.slice(0, 80))"
    assert page.locator(".panel:not(.wide), .first, p, h1, h3, summary").evaluate_all(cut) == []


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
    with pytest.raises(UsageError, match=r"cannot be a '\.txt' file"):
        write_report(one, tmp_path / "report.txt")
