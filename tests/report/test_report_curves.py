"""Reward and gold in the report: the curve, its words, and what else is shown during training."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from report_runs import estimate, make_run, make_summary, write_rows
from rlaif_cli.report import findings, write_report
from rlaif_cli.report.curves import curves
from rlaif_cli.report.gold_curve import gold_curves, gold_tables
from rlaif_cli.report.run_folder import Run
from rlaif_cli.report.samples import comparisons

Rows = list[dict[str, Any]]


def evaluations() -> Rows:
    """Reward rises to the end; tone is highest in the middle."""
    rows = []
    for step, reward, tone in ((0, None, None), (4, 0.5, 0.3), (8, 1.0, -0.1)):
        change = {
            name: value if value is None else estimate(value, value - 0.1, value + 0.2)
            for name, value in (("reward", reward), ("tone", tone))
        }
        rows.append(
            {
                "step": step,
                "kl": estimate(0.6 * step, 0.5 * step, 0.7 * step),
                "reward": estimate(0.0, -0.1, 0.1),
                "reward_change": change["reward"],
                "functions": {"tone": estimate(0.4, 0.3, 0.5)},
                "functions_change": {"tone": change["tone"]},
                "openings": {"share": 0.02 + 0.05 * step, "commonest": "I'm glad to", "distinct": 20},
            }
        )
    return rows


def run_of(folder: Path, rows: Rows, fell: dict[str, Any] | None = None, step: int = 4) -> Run:
    make_run(folder)
    summary = make_summary(folder)
    write_rows(folder / "policy" / "evaluations.jsonl", rows)
    peak = {"tone": {"step": step, "value": 0.7, "last_below": fell}}
    summary["stages"]["policy"]["results"]["evaluations"] = {
        "first": rows[0] | {"prompts": 30},
        "last": rows[-1] | {"prompts": 30},
        "peak": peak,
    }
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    return Run.of_summary(summary, folder)


def test_reward_and_gold_share_the_axis_of_the_kl(tmp_path: Path) -> None:
    (group,) = gold_curves(run_of(tmp_path, evaluations(), estimate(-0.4, -0.6, -0.2)))
    chart, openings = group.charts
    reward, tone = chart.data
    assert reward["x"] == tone["x"] == pytest.approx([0.0, 2.4, 4.8])
    assert reward["y"] == [0.0, 0.5, 1.0] and tone["y"] == [0.0, 0.3, -0.1], "the start has not changed from itself"
    assert tone["text"] == ["0", "4", "8"]
    assert tone["error_y"]["array"] == pytest.approx([0, 0.2, 0.2])
    assert tone["error_y"]["arrayminus"] == pytest.approx([0, 0.1, 0.1])
    assert (reward["yaxis"], tone["yaxis"], chart.layout["xaxis"]["anchor"]) == ("y", "y2", "y2")
    assert chart.layout["yaxis"]["domain"][0] > chart.layout["yaxis2"]["domain"][1], "one above the other"
    assert "reward +1.00 [+0.90, +1.20] at step 8" in chart.spoken
    assert [trace["name"] for trace in openings.data] == ["20 %", "held out"]
    assert openings.data[0]["y"] == [0.2, 0.2] and openings.data[1]["y"] == pytest.approx([0.02, 0.22, 0.42])


@pytest.mark.parametrize(
    ("fell", "step", "words"),
    [
        (estimate(-0.4, -0.6, -0.2), 4, "tone peaked at step 4, and ended -0.40 [-0.60, -0.20] from there."),
        (estimate(-0.1, -0.3, 0.1), 4, "tone: no clear fall since step 4."),
        (estimate(-0.4, -0.6, -0.2, n=8), 4, "too few prompts to tell"),
        (None, 4, "too few prompts to tell"),
        (estimate(0.0, 0.0, 0.0), 8, "tone was highest at the last step, 8."),
    ],
)
def test_where_the_gold_measure_peaked(tmp_path: Path, fell: dict[str, Any] | None, step: int, words: str) -> None:
    run = run_of(tmp_path, evaluations(), fell, step)
    assert words in gold_curves(run)[0].charts[0].caption
    assert words in write_report(tmp_path, tmp_path / "report.md").read_text("utf-8").replace("\\", "")


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    rows = evaluations()
    rows[1] |= {"reward_change": None, "functions_change": {"tone": None}}
    rows[2]["kl"] = None
    rows += [{"step": 12, "kl": estimate(7.0, 6.0, 8.0), "reward_change": estimate(2.0, 1.0, 3.0)}]
    chart, openings = gold_curves(run_of(tmp_path, rows))[0].charts
    (reward,) = chart.data
    assert reward["text"] == ["0", "12"] and openings.data[1]["y"][-1] is None
    rows = [row | {"kl": None} for row in rows]
    assert [chart.title for chart in gold_curves(run_of(tmp_path, rows))[0].charts] == ["Openings"]


def test_a_run_that_goes_on_is_shown_up_to_its_last_whole_line(tmp_path: Path) -> None:
    make_run(tmp_path)
    summary = make_summary(tmp_path)
    del summary["stages"]["policy"]
    write_rows(tmp_path / "policy" / "evaluations.jsonl", evaluations())
    with open(tmp_path / "policy" / "evaluations.jsonl", "a") as file:
        file.write('{"step": 12, "kl": {"va')
    (group,) = gold_curves(Run.of_summary(summary, tmp_path))
    assert "has not finished" in group.note and group.charts[0].data[0]["text"] == ["0", "4", "8"]


def test_a_run_from_before_there_were_evaluations(tmp_path: Path) -> None:
    make_run(tmp_path)
    run = Run.of_summary(make_summary(tmp_path), tmp_path)
    assert gold_curves(run) == [] and gold_tables(run) == []
    write_rows(tmp_path / "policy" / "metrics.jsonl", [{"step": step, "openings_share": 0.1} for step in (1, 2)])
    ((openings,),) = (group.charts for group in gold_curves(run))
    assert [trace["name"] for trace in openings.data] == ["20 %", "in training"] and openings.data[0]["x"] == [1, 2]


def test_the_curve_on_the_page_and_as_a_table(tmp_path: Path) -> None:
    run_of(tmp_path, evaluations(), estimate(-0.4, -0.6, -0.2))
    page = write_report(tmp_path, tmp_path / "report.html").read_text("utf-8")
    assert "Reward and gold: policy" in page and "tone peaked at step 4" in page
    figures = json.loads(re.findall(r'id="figures">(.*?)</script>', page, re.DOTALL)[0])
    assert figures[0]["layout"]["yaxis2"]["title"]["text"] == "tone change"
    text = write_report(tmp_path, tmp_path / "report.md").read_text("utf-8").replace("\\", "")
    assert "| step | KL | reward change | tone change | openings |" in text
    assert "| 0 | 0.00 |  |  | 2 % |" in text
    assert "| 8 | 4.80 | +1.00 [+0.90, +1.20] | -0.10 [-0.20, +0.10] | 42 % |" in text


def test_a_fine_tuned_model_has_the_curve_of_its_loss(tmp_path: Path) -> None:
    make_run(tmp_path)
    summary = make_summary(tmp_path)
    settings = {"model": "policy-m", "records": "r.jsonl", "output": str(tmp_path / "tuned")}
    results = {"held_out": {"loss": 1.5}}
    summary["stages"]["tuned"] = {"run": "sft", "settings": settings, "seconds": 1.0, "results": results}
    write_rows(tmp_path / "tuned" / "metrics.jsonl", [{"step": step, "loss": 2.0 / step} for step in (1, 2)])
    (group,) = (each for each in curves(Run.of_summary(summary, tmp_path)) if "tuned" in each.title)
    assert (group.title, group.note, group.charts[0].title) == ("sft: tuned", "", "Loss")
    assert group.charts[0].layout["yaxis"]["title"]["text"] == "nats per token"
    assert [line["name"] for line in group.charts[0].data] == ["each step", "held out"], "a coin has no such loss"


# ------------------------------------------------------------------------------------------------ samples


def test_samples_with_the_commonest_opening_of_their_side_are_marked(tmp_path: Path) -> None:
    make_run(tmp_path)
    ids = [f"row-{i:02}" for i in range(30)]
    texts = {name: "I'm glad to help." if i < 12 else f"Answer {i} is another." for i, name in enumerate(ids)}
    rows = [{"id": i, "prompt": f"{i} A plain answer.", "responses": [{"text": texts[i]}]} for i in ids]
    write_rows(tmp_path / "after.jsonl", rows)
    (comparison,) = comparisons(Run.of_summary(make_summary(tmp_path), tmp_path))
    assert len(comparison.samples) == 30
    for sample in comparison.samples:
        marked = "same opening as 12 of 30" if sample.after.startswith("I'm glad") else ""
        assert (sample.alike_after, sample.alike_before) == (marked, ""), "a single text is like no other"
    page = write_report(tmp_path, tmp_path / "report.html").read_text("utf-8")
    assert '<span class="badge alike_after">same opening as 12 of 30</span>' in page


# ------------------------------------------------------------------------------------------------ best of n


def test_best_of_n_and_human_pairs_have_their_lines(tmp_path: Path) -> None:
    make_run(tmp_path)
    summary = make_summary(tmp_path)
    best = {"n": 60, "prompts": 60, "unscored": 2, "reward_model": [], "reward_function": ["f/gold.py:tone"]}
    best |= {
        "win_rate_over_first": estimate(0.55, 0.42, 0.67, 60),
        "win_rate_over_random": estimate(0.7, 0.6, 0.79, 60),
    }
    people = {"n": 300, "accuracy": estimate(0.52, 0.46, 0.58, 300)}
    summary["stages"] |= {
        "best": {"run": "eval best-of-n", "seconds": 1.0, "settings": {}, "results": best},
        "people": {
            "run": "eval reward-model",
            "seconds": 1.0,
            "settings": {"pairs": "d/human.jsonl"},
            "results": people,
        },
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary), "utf-8")
    lines = findings(summary, tmp_path)
    (line,) = (line for line in lines if line.startswith("Best of n: "))
    assert "by gold.py:tone wins 70.0 % [60.0, 79.0] over a random one, the interval excludes 50 %" in line
    assert "55.0 % [42.0, 67.0] over the first, no effect can be seen" in line and "2 unscored" in line
    (line,) = (line for line in lines if line.startswith("Reward model and people: "))
    assert "preferences of human.jsonl on 52.0 % [46.0, 58.0] of n = 300 pairs; shows no effect" in line
    found = json.loads(write_report(tmp_path, tmp_path / "report.json").read_text("utf-8"))
    names = {rate["name"] for rate in found["rates"]}
    assert {
        "Best of n wins over a random one",
        "Best of n wins over the first",
        "Reward model agrees with people",
    } <= names
