"""The training curves of a run, as plotly figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif_cli.registry import MODELS
from rlaif_cli.report.findings import mean
from rlaif_cli.report.run_folder import Run, Stage, tolerant_rows


@dataclass(frozen=True)
class Chart:
    """A plotly figure. Colours are names of CSS variables of the page, which follow the dark and light theme."""

    title: str
    caption: str
    spoken: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


@dataclass(frozen=True)
class Curves:
    title: str
    note: str
    charts: list[Chart]


# (key in metrics.jsonl, title, unit, how to read it)
_SFT_CHARTS = (("loss", "Loss", "nats per token", "Healthy: it falls and levels off."),)
_RM_CHARTS = (
    (
        "loss",
        "Loss",
        "nats per pair",
        "It cannot fall below the floor, the entropy of the labels. A coin's is 0.693.",
    ),
    (
        "accuracy",
        "Accuracy",
        "share of pairs",
        "How often the preferred response gets the higher reward. A coin's is 0.5.",
    ),
)
_PPO_CHARTS = (
    ("reward", "Reward", "mean reward", "Healthy: it rises and levels off."),
    (
        "kl",
        "KL to the start",
        "nats per response",
        "Healthy: slow growth. With a runaway KL, reward is being hacked.",
    ),
    (
        "response_length",
        "Response length",
        "tokens",
        "If the reward rises only with length, length is being rewarded.",
    ),
    (
        "entropy",
        "Entropy",
        "nats per token",
        "Healthy: it falls slowly. Near 0, the policy always says the same.",
    ),
    (
        "mismatch",
        "Engine and trainer mismatch",
        "nats per token",
        "Healthy: small and flat. It grows if the weights are out of sync.",
    ),
    (
        "explained_variance",
        "Explained variance of the values",
        "share",
        "Healthy: it rises towards 1. Below 0 the value model is worse than a constant.",
    ),
    (
        "clip_fraction",
        "Clipped tokens",
        "share of tokens",
        "Healthy: below about 0.2. Higher: smaller or fewer updates.",
    ),
)


_COIN = {"accuracy": 0.5, "loss": math.log(2)}
_LIMITS = {"mismatch": "max_mismatch", "kl": "max_kl"}  # the setting that stops a run at this value


def curves(run: Run) -> list[Curves]:
    """The curves of every training stage, also of a killed one that is not in the summary yet, and calibration."""
    return [*_training(run), *_calibration(run)]


def _training(run: Run) -> list[Curves]:
    known = {}
    for stage in run.making(*MODELS):
        folder = run.locate(stage.settings.get("output"))
        path = (folder or run.folder / stage.name) / "metrics.jsonl"
        known[path.resolve()] = _curves_of(stage, path, "")
    for path in sorted(run.folder.glob("*/metrics.jsonl")):
        if path.resolve() not in known:
            kind = _kind_of(tolerant_rows(path))
            note = "This stage has not finished; the curves end where it is now."
            known[path.resolve()] = _curves_of(Stage(path.parent.name, kind, {}, 0.0, {}), path, note)
    return list(known.values())


def _curves_of(stage: Stage, path: Path, note: str) -> Curves:
    rows, title = tolerant_rows(path), f"{stage.title}: {stage.name}"
    if not rows:
        return Curves(title, f"Missing: {path} holds no rows, so there are no curves.", [])
    wanted = {"ppo": _PPO_CHARTS, "train-rm": _RM_CHARTS}.get(_kind_of(rows), _SFT_CHARTS)
    charts = [_line_chart(rows, *words, _reference_lines(words[0], rows, stage)) for words in wanted]
    charts.append(_phases(rows))
    return Curves(title, note, [chart for chart in charts if chart])


def _kind_of(rows: list[dict[str, Any]]) -> str:
    """The stage that logs such metrics: of a killed one there is no other record."""
    names = set[str]().union(*rows[:1])
    return "ppo" if "kl" in names else "train-rm" if names & {"accuracy", "entropy_floor"} else "sft"


def _line_chart(
    rows: list[dict[str, Any]], key: str, title: str, unit: str, caption: str, extra: list[dict[str, Any]]
) -> Chart | None:
    values = column(rows, key)
    known = [value for value in values if value is not None]
    if not known:
        return None
    width = _window(rows)
    lines = [step_line(rows, values, "each step", "--accent", 2)]
    if width > 3:
        mean = step_line(rows, _running_mean(values, width), f"mean of {width} steps", "--accent", 2.5)
        lines = [step_line(rows, values, "each step", "--faint", 1) | {"showlegend": False}, mean]
    spoken = f"{title}, {unit}: {known[0]:.4g} at the first step, {known[-1]:.4g} at the last of {len(rows)}"
    zero = "tozero" if key in ("kl", "mismatch") else "normal"  # so that small noise does not look like a cliff
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": unit}, "rangemode": zero}}
    return Chart(title, caption, spoken, [*lines, *extra], layout)


def _reference_lines(key: str, rows: list[dict[str, Any]], stage: Stage) -> list[dict[str, Any]]:
    """Reference lines of a curve: its floor, chance level, the held-out number, the limit of a setting."""
    floor = _running_mean(column(rows, "entropy_floor"), _window(rows)) if key == "loss" else []
    lines = [step_line(rows, floor, "floor", "--second", 2, "dot")] if any(v is not None for v in floor) else []
    held_out = (stage.results.get("held_out") or {}).get(key)
    if held_out is not None:
        lines.append(step_line(rows, [held_out] * len(rows), "held out", "--third", 2, "dash"))
    if key in _COIN and _kind_of(rows) == "train-rm":
        lines.append(step_line(rows, [_COIN[key]] * len(rows), "a coin", "--soft", 1, "dot"))
    limit = stage.settings.get(_LIMITS.get(key, ""))
    if limit is not None:
        lines.append(step_line(rows, [limit] * len(rows), f"limit {limit:g}", "--second", 2, "dot"))
    return lines


def _calibration(run: Run) -> list[Curves]:
    """Calibration plots of judges and reward models."""
    found = [("judge against people", stage, stage.results) for stage in run.of("eval alignment")]
    found += [("reward model against people", stage, stage.results) for stage in run.of("eval reward-model")]
    for stage in run.of("train-rm"):
        found += [
            (words, stage, stage.results.get(part) or {})
            for part, words in (
                ("held_out", "reward model against held-out labels"),
                ("human", "reward model against people"),
            )
        ]
    charts = [
        _reliability(f"{stage.name}: {words}", r["reliability"]) for words, stage, r in found if r.get("reliability")
    ]
    note = "On the diagonal, predictions of 70 % come true 70 % of the time. Larger points have more pairs."
    return [Curves("Calibration", note, charts)] if charts else []


def _reliability(title: str, bins: list[dict[str, float]]) -> Chart:
    total = sum(each["n"] for each in bins)
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": [each["mean_p"] for each in bins],
        "y": [each["mean_y"] for each in bins],
        "text": [f"n = {each['n']:,}" for each in bins],
        "marker": {"color": "--accent", "size": [8 + 24 * math.sqrt(each["n"] / total) for each in bins]},
        "hovertemplate": "predicted %{x:.2f}, came true %{y:.2f}, %{text}<extra></extra>",
        "showlegend": False,
    }
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "x": [0, 1],
        "y": [0, 1],
        "line": {"color": "--soft", "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    off = sum(each["n"] * abs(each["mean_p"] - each["mean_y"]) for each in bins) / total
    spoken = f"{title}: {len(bins)} bins, {off:.3f} off the diagonal on average"
    layout = {
        "xaxis": {"title": {"text": "predicted"}, "range": [0, 1]},
        "yaxis": {"title": {"text": "came true"}, "range": [-0.05, 1.05]},
        "hovermode": "closest",
    }
    return Chart(
        title,
        f"{off:.3f} off the diagonal on average (ECE); every pair counts in both orders.",
        spoken,
        [diagonal, points],
        layout,
    )


def _phases(rows: list[dict[str, Any]]) -> Chart | None:
    """The seconds of each phase, summed over all steps."""
    names = [key for key in rows[0] if key.startswith("seconds_")]
    totals = {name.removeprefix("seconds_"): sum(v or 0 for v in column(rows, name)) for name in names}
    if not totals:
        return None
    words = {name: f"{seconds:.1f} s" for name, seconds in totals.items()}
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": list(totals.values()),
        "y": list(totals),
        "text": list(words.values()),
        "textposition": "auto",
        "marker": {"color": "--accent"},
        "hoverinfo": "none",
    }
    spoken = "Seconds by phase: " + ", ".join(f"{name} {text}" for name, text in words.items())
    layout = {"xaxis": {"title": {"text": "seconds"}}, "yaxis": {"autorange": "reversed"}, "hovermode": False}
    return Chart("Seconds by phase", f"Summed over all {len(rows)} steps.", spoken, [bars], layout)


def step_line(
    rows: list[dict[str, Any]],
    values: Sequence[float | None],
    name: str,
    colour: str,
    width: float,
    dash: str = "solid",
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines" if len(rows) > 1 else "markers",
        "x": column(rows, "step"),
        "y": list(values),
        "name": name,
        "line": {"color": colour, "width": width, "dash": dash},
        "marker": {"color": colour},
        "hovertemplate": "%{y:.4g}",
    }


def column(rows: list[dict[str, Any]], key: str) -> list[float | None]:
    """A metric over the steps; None where it is missing or not finite, which JSON cannot express."""
    values = (row.get(key) for row in rows)
    return [v if isinstance(v, (int, float)) and math.isfinite(v) else None for v in values]


def _window(rows: list[dict[str, Any]]) -> int:
    """The smoothing window: an odd number near an eighth of the steps; 1 (no smoothing) for few steps."""
    return len(rows) // 16 * 2 + 1


def _running_mean(values: Sequence[float | None], width: int) -> list[float | None]:
    """The mean over a centered window of `width` steps (odd), shorter at the ends."""
    half = width // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [mean(v for v in window if v is not None) for window in windows]
