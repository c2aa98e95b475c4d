"""The overoptimization curve: the trained reward and a gold measure against the KL to the start.

When a reward is gamed, it keeps rising while a measure that was not trained on falls (Gao et al., arXiv 2210.10760).
Both come from `evaluations.jsonl`, which `ppo --eval-function` writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlaif_cli.report.curves import Chart, Curves, column, step_line
from rlaif_cli.report.findings import effect
from rlaif_cli.report.outcomes import ALIKE
from rlaif_cli.report.run_folder import Run, Stage, tolerant_rows
from rlaif_cli.report.wording import signed

Row = dict[str, Any]
_COLOURS = ("--accent", "--second", "--third")
_PANEL = 190  # pixels high


def gold_curves(run: Run) -> list[Curves]:
    """The curves of every policy that was evaluated, also in an unfinished stage."""
    return [
        Curves(f"Reward and gold: {stage.name}", _note(stage), [chart for chart in charts if chart])
        for stage, rows, metrics in _evaluated(run)
        if any(charts := [_against_kl(stage, rows), _openings(rows, metrics)])
    ]


def gold_tables(run: Run) -> list[tuple[str, list[str], list[list[str]], str]]:
    """(policy, columns, rows as text, how the gold measures changed) of every policy that was evaluated."""
    return [(stage.name, *_table(rows), " ".join(_peaks(stage))) for stage, rows, _ in _evaluated(run) if rows]


def _evaluated(run: Run) -> Iterator[tuple[Stage, list[Row], list[Row]]]:
    """(stage, rows of evaluations.jsonl, rows of metrics.jsonl) of each policy that has either."""
    folders = {
        stage.name: run.locate(stage.settings.get("output")) or run.folder / stage.name
        for stage in run.making("policy")
    }
    known = {folder.resolve() for folder in folders.values()}
    stages = {stage.name: stage for stage in run.making("policy")}
    for path in sorted(run.folder.glob("*/evaluations.jsonl")):
        if path.parent.resolve() not in known:
            folders[path.parent.name] = path.parent
    for name, folder in folders.items():
        stage = stages.get(name) or Stage(name, "ppo", {}, 0.0, {})
        yield stage, _rows(folder / "evaluations.jsonl"), tolerant_rows(folder / "metrics.jsonl")


def _rows(path: Path) -> list[Row]:
    return [row for row in tolerant_rows(path) if isinstance(row.get("step"), int)]


def _functions(rows: Sequence[Row]) -> list[str]:
    return list(rows[0].get("functions") or {}) if rows else []


def _change(row: Row, name: str | None) -> Row | None:
    """The change of the reward (`name` None) or a function since the start, 0 at the start; None: not measured."""
    if row["step"] == 0:
        return {"value": 0.0, "low": None, "high": None}
    found = row.get("reward_change") if name is None else (row.get("functions_change") or {}).get(name)
    return found if found and found.get("value") is not None else None


# ------------------------------------------------------------------------------------------------ the panels


def _against_kl(stage: Stage, rows: Sequence[Row]) -> Chart | None:
    measured = [row for row in rows if (row.get("kl") or {}).get("value") is not None]
    panels = [("reward", None), *((name, name) for name in _functions(rows))]
    shown = [(title, points) for title, name in panels if (points := _points(measured, name))]
    if not any(len(points) > 1 for _, points in shown):
        return None
    layout: dict[str, Any] = {"height": 60 + _PANEL * len(shown), "hovermode": "closest", "showlegend": False}
    last = "" if len(shown) == 1 else str(len(shown))
    layout["xaxis"] = {"title": {"text": "KL to the start, nats per response"}, "anchor": f"y{last}"}
    data = []
    for place, (title, points) in enumerate(shown):
        axis = "" if place == 0 else str(place + 1)
        layout[f"yaxis{axis}"] = {"title": {"text": f"{title} change"}, "domain": _domain(place, len(shown))}
        data.append(_trace(points, f"y{axis}", _COLOURS[place % len(_COLOURS)]))
    spoken = "; ".join(
        f"{title} {' '.join(signed(points[-1][1]))} at step {points[-1][0]['step']}" for title, points in shown
    )
    read = "Change since the start on held-out prompts, with 95 % intervals; each point is a step."
    caption = " ".join([read, *_peaks(stage)])
    return Chart("Reward and gold", caption, f"Changes against the KL: {spoken}", data, layout)


def _points(rows: Sequence[Row], name: str | None) -> list[tuple[Row, Row]]:
    """(row, change) of every measured row; [] if only the start was measured."""
    found = [(row, change) for row in rows if (change := _change(row, name))]
    return found if any(row["step"] for row, _ in found) else []


def _trace(points: Sequence[tuple[Row, Row]], axis: str, colour: str) -> Row:
    above, below = ([_reach(change, side) for _, change in points] for side in ("high", "low"))
    return {
        "type": "scatter",
        "mode": "lines+markers+text",
        "x": [row["kl"]["value"] for row, _ in points],
        "y": [change["value"] for _, change in points],
        "text": [str(row["step"]) for row, _ in points],
        "textposition": "top left",
        "yaxis": axis,
        "line": {"color": colour, "width": 2},
        "marker": {"color": colour, "size": 8},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": above,
            "arrayminus": below,
            "color": colour,
            "thickness": 1,
        },
        "hovertemplate": "step %{text}: KL %{x:.2f}, %{y:+.3g}<extra></extra>",
    }


def _reach(change: Row, side: str) -> float:
    """How far the interval extends to that side; 0 if there is no interval (a single prompt)."""
    return 0.0 if change.get(side) is None else abs(change[side] - change["value"])


def _domain(place: int, count: int) -> list[float]:
    """The vertical range of a panel as shares of the figure's height, from the top down."""
    top, gap = 1 - place / count, 0.08 / count
    return [round(top - 1 / count + (gap if place < count - 1 else 0), 4), round(top - (gap if place else 0), 4)]


def _openings(rows: Sequence[Row], metrics: Sequence[Row]) -> Chart | None:
    held_out = [{"step": row["step"], "share": (row.get("openings") or {}).get("share")} for row in rows]
    rollouts = [row for row in metrics if row.get("openings_share") is not None]
    if not rollouts and not any(row["share"] is not None for row in held_out):
        return None
    steps = [row["step"] for row in (*rollouts, *held_out)]
    data = [_line_at(ALIKE, f"{100 * ALIKE:.0f} %", min(steps), max(steps))]
    if rollouts:
        data.append(step_line(rollouts, column(rollouts, "openings_share"), "in training", "--faint", 1))
    if held_out:
        data.append(
            step_line(held_out, column(held_out, "share"), "held out", "--accent", 2) | {"mode": "lines+markers"}
        )
    last = (held_out or [{"step": r["step"], "share": r["openings_share"]} for r in rollouts])[-1]
    share = "not known" if last["share"] is None else f"{100 * last['share']:.0f} %"
    caption = "Share of responses with the most common first three words. Above the line and rising: one trick."
    axis = {"title": {"text": "share"}, "rangemode": "tozero", "tickformat": ".0%"}
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": axis}
    return Chart("Openings", caption, f"Share of the most common opening: {share} at step {last['step']}", data, layout)


def _line_at(height: float, name: str, first: int, last: int) -> Row:
    ends = [{"step": first}, {"step": last}]
    return step_line(ends, [height] * 2, name, "--soft", 1, "dot")


# ------------------------------------------------------------------------------------------------ in words


def _note(stage: Stage) -> str:
    return "" if stage.results else "This stage has not finished; the curves end where it is now."


def _peaks(stage: Stage) -> list[str]:
    """Where each function was highest, and whether it clearly fell since; [] for an unfinished stage."""
    found = (stage.results.get("evaluations") or {}).get("peak") or {}
    last = ((stage.results.get("evaluations") or {}).get("last") or {}).get("step")
    return [_peak(name, at, last) for name, at in found.items() if at]


def _peak(name: str, at: Row, last: int | None) -> str:
    step, fell = at["step"], at.get("last_below")
    if step == last:
        return f"{name} was highest at the last step, {step}."
    happened = effect(fell, 0.0, fell.get("n", 0)) if fell else "few"
    if happened == "below":
        return f"{name} peaked at step {step}, and ended {' '.join(signed(fell or {}))} from there."
    if happened == "few":
        return f"{name} was highest at step {step}; too few prompts to tell whether it fell since."
    return f"{name}: no clear fall since step {step}."


def _table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    functions = _functions(rows)
    columns = ["step", "KL", "reward change", *(f"{name} change" for name in functions), "openings"]
    return columns, [_cells(row, functions) for row in rows]


def _cells(row: Row, functions: Sequence[str]) -> list[str]:
    kl, share = (row.get("kl") or {}).get("value"), (row.get("openings") or {}).get("share")
    changes = [_change(row, name) for name in (None, *functions)]
    return [
        str(row["step"]),
        "" if kl is None else f"{kl:.2f}",
        *(" ".join(signed(change)).strip() if change and row["step"] else "" for change in changes),
        "" if share is None else f"{100 * share:.0f} %",
    ]
