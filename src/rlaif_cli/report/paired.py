"""Paired changes from the start to the policy, from the per-item rows of evaluations."""

from __future__ import annotations

from typing import Any

from rlaif_cli.data.paths import beside
from rlaif_cli.report.run_folder import Run, Stage, tolerant_rows
from rlaif_cli.stats.as_json import estimate


def items(run: Run, stage: Stage) -> list[dict[str, Any]]:
    """The per-item rows of an evaluation; [] if the file is missing."""
    metric = stage.kind.removeprefix("eval ")
    path = run.locate(str(beside(str(stage.settings.get("output")), metric, "items")))
    return tolerant_rows(path) if path else []


def length_change(run: Run, stage: Stage) -> dict[str, Any] | None:
    """The relative change of response length from the start to the policy, as a share of the start's mean length.

    Returns:
        An estimate; None if the items of the win rate are missing or have no lengths.
    """
    rows = [row for row in items(run, stage) if None not in (row.get("p_a"), row.get("length_a"), row.get("length_b"))]
    start = sum(row["length_b"] for row in rows)
    if not start:
        return None
    mean = start / len(rows)
    return estimate([(row["length_a"] - row["length_b"]) / mean for row in rows], [_prompt(row) for row in rows])


def harmless_change(run: Run, after: Stage, before: Stage) -> dict[str, Any] | None:
    """The change of the harmless rate over the responses that both sides have.

    Returns:
        An estimate, in -1 to 1; None if the items of a side are missing or none match.
    """
    sides = [{(row.get("id"), row.get("sample")): row for row in items(run, stage)} for stage in (after, before)]
    both = [(sides[0][key], sides[1][key]) for key in sides[0] if key in sides[1]]
    scored = [pair for pair in both if None not in (row.get("p_harmless") for row in pair)]
    if not scored:
        return None
    changes = [float(now["p_harmless"] > 0.5) - float(then["p_harmless"] > 0.5) for now, then in scored]
    return estimate(changes, [_prompt(now) for now, _ in scored])


def _prompt(row: dict[str, Any]) -> Any:
    return row.get("prompt_key", row.get("id"))
