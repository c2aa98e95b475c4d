"""The rates of one or several runs in one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlaif_cli.report.findings import OTHERS, held_out_accuracy, rate_text
from rlaif_cli.report.run_folder import Run, Stage


def rates(run: Run) -> list[dict[str, Any]]:
    """Every rate whose chance level is 50 %, for the interval plot; with the stage name if a kind ran twice."""
    found: list[tuple[str, Stage, dict[str, Any] | None, Any]] = []
    for stage in run.of("eval alignment"):
        n = stage.results.get("n")
        found += [("Judge agrees with people", stage, stage.results.get("accuracy"), n)]
        found += [("The longer response wins", stage, stage.results.get("longer_wins"), n)]
    for stage in run.of("train-rm"):
        if held_out := stage.results.get("held_out"):
            found.append(("Reward model agrees with the labels", stage, held_out_accuracy(held_out), held_out["pairs"]))
    for stage in run.of("eval reward-model"):
        found += [("Reward model agrees with people", stage, stage.results.get("accuracy"), stage.results.get("n"))]
    for stage in run.of("eval best-of-n"):
        for other, words in OTHERS.items():
            won = stage.results.get(f"win_rate_over_{other}")
            found += [(f"Best of n wins over {words}", stage, won, stage.results.get("n"))]
    for stage in run.of("eval win-rate"):
        n = stage.results.get("prompts")
        found += [("Tuned model wins", stage, stage.results.get("win_rate"), n)]
        found += [("Tuned model wins, at equal length", stage, stage.results.get("length_controlled"), n)]
    return [
        {**estimate, "name": f"{name} ({stage.name})" if len(run.of(stage.kind)) > 1 else name}
        | {"text": rate_text(estimate), "n": n}
        for name, stage, estimate, n in found
        if estimate
    ]


def side_by_side(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The rates of several runs: (rate, value with interval of each run or "")."""
    by_run = [{rate["name"]: rate["text"] for rate in rates(run)} for run in runs]
    names = dict.fromkeys(name for found in by_run for name in found)
    return [(name, [found.get(name, "") for found in by_run]) for name in names]
