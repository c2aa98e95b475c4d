"""A run on one page: what was found, how sure, what it took, curves and samples; one HTML file, no network.

`findings` are the same sentences that the terminal shows. The texts of models are data: the template escapes
everything, and the page's Content-Security-Policy runs our own scripts alone, each named by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from rlaif_cli import __version__
from rlaif_cli.errors import InputError
from rlaif_cli.jsonl import Source
from rlaif_cli.output import beside, cannot_write
from rlaif_cli.records import Candidates, PromptRecord, as_messages, prompt_text

SUMMARY = "summary.json"
SAMPLES = 20
FEW = 10  # below this many independent items a bootstrap interval is too narrow to be believed
_CUT = 900  # characters of a text that are shown at once; the rest unfolds

Effect = Literal["above", "below", "none", "few"]


# ------------------------------------------------------------------------------------------ what a run left


@dataclass(frozen=True)
class Stage:
    """One stage of a run as `summary.json` tells it."""

    name: str
    kind: str
    settings: dict[str, Any]
    seconds: float
    results: dict[str, Any]


@dataclass(frozen=True)
class Run:
    name: str
    description: str
    folder: Path
    stages: tuple[Stage, ...]

    @classmethod
    def of_summary(cls, summary: dict[str, Any], folder: Path) -> Run:
        stages = tuple(
            Stage(name, row["run"], row["settings"], row.get("seconds") or 0.0, row.get("results") or {})
            for name, row in summary["stages"].items()
        )
        return cls(summary.get("name") or folder.name, summary.get("description") or "", folder, stages)

    def of(self, kind: str) -> list[Stage]:
        return [stage for stage in self.stages if stage.kind == kind]

    def locate(self, path: str | None) -> Path | None:
        """A path of the summary on this machine, or None.

        The run's own folder comes first: it may have been moved or copied, and what now lies at the old place
        may be another run's. Then the path as it stands, absolute or relative to the current directory.
        """
        if not path:
            return None
        parts = Path(path).parts
        first = 1 if Path(path).is_absolute() else 0
        places = [self.folder.joinpath(*parts[i:]) for i in range(first, len(parts))]
        return next((place for place in [*places, Path(path)] if place.exists()), None)


def read_run(folder: Path) -> Run:
    """Raises: InputError: the folder holds no run that got through its first stage."""
    path = folder / SUMMARY
    hint = "give the folder of a `rlaif run`, such as runs/demo; it writes this file after its first stage"
    try:
        return Run.of_summary(json.loads(path.read_text("utf-8")), folder)
    except OSError as error:
        raise InputError(f"no run is here: {error.strerror or error}", where=str(path), hint=hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("this is not a run's summary", where=str(path), hint=hint) from error


def tolerant_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file, up to a line that a killed run left half written; [] if there is no file."""
    rows: list[dict[str, Any]] = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                row = json.loads(line)
                if not isinstance(row, dict):
                    break
                rows.append(row)
    except (OSError, ValueError):
        pass
    return rows


# ---------------------------------------------------------------------------------------- words for numbers


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _rate(estimate: dict[str, Any]) -> str:
    return f"{_percent(estimate['value'])} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def _amount(estimate: dict[str, Any]) -> str:
    return f"{estimate['value']:+.2f} [{estimate['low']:+.2f}, {estimate['high']:+.2f}]"


def _effect(estimate: dict[str, Any], null: float, n: int) -> Effect:
    """On which side of "no effect" the interval lies."""
    if n < FEW:
        return "few"
    if estimate["low"] > null:
        return "above"
    return "below" if estimate["high"] < null else "none"


def _few(n: int, of: str) -> str:
    return f"{n} {of} are too few to tell an effect from chance"


def _number(value: Any) -> str:
    """A result as people read it: an estimate with its interval, few digits, no braces."""
    if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
        low, high = _number(value["low"]), _number(value["high"])
        return f"{_number(value['value'])} [{low}, {high}]" + (f", n = {value['n']}" if "n" in value else "")
    if isinstance(value, list):
        return f"[{', '.join(map(_number, value))}]"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _flat(results: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """(name, number) of everything in a stage's results; what its settings say already is left out."""
    for key, value in results.items():
        if key in ("metric", "judge", "method", "constitution", "a", "b", "items"):
            continue
        if value is None:
            continue
        if isinstance(value, dict) and "value" not in value:
            yield from _flat(value, f"{key} ")
        else:
            yield (prefix + key).replace("_", " "), _number(value)


# ------------------------------------------------------------------------------------------------- findings


def findings(summary: dict[str, Any], folder: Path) -> list[str]:
    """What a run found, one plain line a stage, in the chain's order; where there is no effect, it says so.

    Args:
        summary: what `pipeline.run` returns and `summary.json` holds.
        folder: the run's folder.
    """
    return _findings(Run.of_summary(summary, folder))


def _findings(run: Run) -> list[str]:
    lines = []
    for kind, title, describe in _DESCRIBERS:
        found = _training_candidates(run) if kind == "generate" else run.of(kind)
        for stage in found:
            name = f"{title} ({stage.name})" if len(found) > 1 else title
            if parts := [part for part in describe(stage, run) if part]:
                lines.append(f"{name}: {'; '.join(parts)}")
    return lines


def _training_candidates(run: Run) -> list[Stage]:
    """The generate stages whose responses are labelled; all of them where nothing is labelled."""
    labelled = {stage.settings.get("candidates") for stage in run.of("label")}
    return [s for s in run.of("generate") if not labelled or s.settings.get("output") in labelled]


def _candidates(stage: Stage, run: Run) -> list[str]:
    r = stage.results
    responses, prompts = r.get("responses") or 0, r.get("rows") or 0
    cut = f"{r['unfinished']:,} cut off at the length limit" if r.get("unfinished") else ""
    return [f"{responses:,} responses to {prompts:,} prompts by {stage.settings.get('model')}", cut]


def _judge(settings: dict[str, Any]) -> str:
    """The judge's name, or those of a panel."""
    named = settings.get("judge")
    return " + ".join(named) if isinstance(named, list) else str(named)


def _labels(stage: Stage, run: Run) -> list[str]:
    r, s = stage.results, stage.settings
    parts = [
        f"{r.get('pairs') or 0:,} pairs judged by {_judge(s)} ({s['method']}, {s['constitution']})",
        f"{r.get('unscored') or 0:,} unscored",
    ]
    if (p := r.get("mean_p_chosen")) is not None:
        silent = "shows no effect: the judge is undecided nearly everywhere" if p < 0.51 else ""
        parts += [f"mean p_chosen {p:.3f}", silent]
    if r.get("flip_rate") is not None:
        parts.append(f"{_percent(r['flip_rate'])} flip with the order of the responses")
    if r.get("first_position_share") is not None:
        parts.append(f"the first position wins {_percent(r['first_position_share'])}")
    if r.get("mean_mass") is not None:
        parts.append(f"mean mass on the labels {r['mean_mass']:.3f}")
    return parts


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def _alignment(stage: Stage, run: Run) -> list[str]:
    judge, longer = stage.results.get("accuracy"), stage.results.get("longer_wins")
    if not judge:
        return []
    n = stage.results.get("n", judge.get("n", 0))
    first = f"agrees with people in {_rate(judge)} of n = {n} pairs"
    coin = {
        "above": "better than a coin (50 %)",
        "below": "worse than a coin (50 %)",
        "none": "shows no effect: not distinguishable from a coin (50 %)",
        "few": _few(n, "pairs"),
    }[_effect(judge, 0.5, n)]
    if not longer:
        return [first, coin]
    return [f"{first}, 'longer wins' in {_rate(longer)}", coin, _beside_longer(judge, longer)]


def _beside_longer(judge: dict[str, Any], longer: dict[str, Any]) -> str:
    """Rates whose intervals do not overlap differ, however the two correlate; else nothing is claimed."""
    if judge["low"] > longer["high"]:
        return "it beats 'longer wins'"
    if judge["high"] < longer["low"]:
        return "it does not beat 'longer wins', which is better"
    return "not distinguishable from 'longer wins'"


def _reward_model(stage: Stage, run: Run) -> list[str]:
    held_out = stage.results.get("held_out")
    if not held_out:
        return [
            f"trained on {stage.results.get('train_pairs', 0):,} pairs",
            "none was held out to measure it",
        ]
    n, (low, high) = held_out["pairs"], held_out["accuracy_interval"]
    accuracy = {"value": held_out["accuracy"], "low": low, "high": high}
    verdict = {
        "above": "",
        "below": "worse than a coin (50 %)",
        "none": "shows no effect: the interval holds 50 %",
        "few": _few(n, "pairs"),
    }[_effect(accuracy, 0.5, n)]
    return [
        f"agrees with the judge's labels in {_rate(accuracy)} of n = {n} held-out pairs",
        verdict,
        f"loss {held_out['loss']:.3f}, floor {held_out['entropy_floor']:.3f}, a coin's {math.log(2):.3f}",
        f"ECE {held_out['ece']:.3f}, Brier {held_out['brier']:.3f}",
    ]


def _ppo(stage: Stage, run: Run) -> list[str]:
    r = stage.results
    if "reward_first" not in r:
        return []
    unit = _reward_unit(stage)
    return [
        f"{r['steps']:,} steps",
        f"reward {r['reward_first']:+.2f} -> {r['reward_last']:+.2f} ({unit}; first, last fifth of steps)",
        "" if r["reward_last"] > r["reward_first"] else "shows no effect: the reward did not rise",
        f"KL to the start {r['kl_last']:.2f} nats a response",
    ]


def _reward_unit(stage: Stage) -> str:
    return "on the judge's scale" if stage.settings.get("judge") else "in the reward model's standard deviations"


def _reward(stage: Stage, run: Run) -> list[str]:
    r, where = stage.results, _held_out(run.locate(stage.settings.get("candidates")), run)
    if not r.get("reward"):
        return []
    n, baseline, difference = r.get("n", 0), r.get("baseline"), r.get("difference")
    if not (baseline and difference):
        return [f"{_amount(r['reward'])} {_reward_unit(stage)}, n = {n} prompts{where}"]
    verdict = {
        "above": "the interval is clear of 0",
        "below": "the interval is clear of 0, on the wrong side: the reward fell",
        "none": "shows no effect: the interval holds 0",
        "few": _few(n, "prompts"),
    }[_effect(difference, 0.0, n)]
    return [
        f"mean {baseline['value']:+.2f} before, {r['reward']['value']:+.2f} after, on n = {n} prompts{where}",
        f"difference {_amount(difference)} {_reward_unit(stage)}",
        verdict,
    ]


def _win_rate(stage: Stage, run: Run) -> list[str]:
    r, judge = stage.results, _judge(stage.settings)
    win, controlled, prompts = r.get("win_rate"), r.get("length_controlled"), r.get("prompts", 0)
    if not win:
        return []
    own = ", which also made the labels" if judge in [_judge(s.settings) for s in run.of("label")] else ""
    where = _held_out(_side(stage, run, "a"), run)
    parts = [
        f"the tuned model wins {_rate(win)} over the start, n = {prompts} prompts{where}",
        _WIN_WORDS[_effect(win, 0.5, prompts)] or _few(prompts, "prompts"),
    ]
    if controlled:
        hidden = ", where no effect can be seen" if _effect(controlled, 0.5, prompts) == "none" else ""
        parts.append(f"at equal length {_rate(controlled)}{hidden}")
    if r.get("mean_length_a") is not None and r.get("mean_length_b") is not None:
        parts.append(f"mean length {r['mean_length_b']:,.0f} -> {r['mean_length_a']:,.0f} characters")
    unscored = f"{r['unscored']:,} unscored" if r.get("unscored") else ""
    return [*parts, unscored, f"the judge is {judge}{own}"]


_WIN_WORDS: dict[Effect, str] = {
    "above": "the interval is clear of 50 %",
    "below": "the interval is clear of 50 %, on the wrong side: the judge prefers the start",
    "none": "no effect can be seen: the interval holds 50 %",
    "few": "",
}


def _harmless(stage: Stage, run: Run) -> list[str]:
    r = stage.results
    if not r.get("harmless_rate"):
        return []
    of = Path(str(stage.settings.get("candidates"))).name
    unscored = f"{r['unscored']:,} unscored" if r.get("unscored") else ""
    return [f"{_rate(r['harmless_rate'])} of n = {r['n']} responses in {of} are judged harmless", unscored]


def _side(stage: Stage, run: Run, side: str) -> Path | None:
    """The candidates of a win rate's side; those sampled from a model lie in a file beside the result."""
    name = str(stage.settings.get(side, ""))
    path = run.locate(name) if name.endswith(".jsonl") else None
    return path or run.locate(str(beside(str(stage.settings.get("output")), "win-rate", side)))


def _held_out(candidates: Path | None, run: Run) -> str:
    """Whether a measured file's prompts were trained on, found by comparing; "" where it is not known."""
    trained = [stage.settings.get("candidates") for stage in run.of("label")]
    trained += [stage.settings.get("prompts") for stage in run.of("ppo")]
    seen: set[str] = set().union(*(_prompt_texts(run.locate(path)) for path in trained))
    measured = _prompt_texts(candidates)
    if not seen or not measured:
        return ""
    both = len(seen & measured)
    return f" ({both} of them also trained on)" if both else " not trained on"


def _prompt_texts(path: Path | None) -> set[str]:
    """The prompts of a file of prompts or candidates, without system prompts."""
    try:
        source = Source(str(path), PromptRecord, skip_invalid=True) if path and path.is_file() else ()
    except InputError:
        return set()
    messages = ([m for m in as_messages(row.prompt) if m.role != "system"] for row in source)
    return {prompt_text(turns) for turns in messages}


_DESCRIBERS: tuple[tuple[str, str, Callable[[Stage, Run], list[str]]], ...] = (
    ("generate", "Candidates", _candidates),
    ("label", "Labels", _labels),
    ("eval alignment", "Judge", _alignment),
    ("train-rm", "Reward model", _reward_model),
    ("ppo", "PPO", _ppo),
    ("eval reward", "Reward", _reward),
    ("eval win-rate", "Win rate", _win_rate),
    ("eval harmless-rate", "Harmless rate", _harmless),
)


def _headline(run: Run) -> str:
    """Did it help? One sentence, never more than the interval allows."""
    measured = [stage.results for stage in run.of("eval win-rate") if stage.results.get("win_rate")]
    if not measured:
        return "Whether it helped was not measured: this run has no win rate."
    r = measured[-1]
    effect, share = _effect(r["win_rate"], 0.5, r.get("prompts", 0)), _percent(r["win_rate"]["value"])
    if effect == "few":
        return f"Too few prompts to tell whether it helped ({r.get('prompts', 0)})."
    if effect == "none":
        return f"No effect can be seen: the tuned model wins {share}, and the interval holds 50 %."
    if effect == "below":
        return f"It got worse: the judge prefers the start; the tuned model wins {share}."
    controlled = r.get("length_controlled")
    if controlled and controlled["low"] <= 0.5:
        return f"The judge prefers the tuned model ({share}), but at equal length no effect can be seen."
    return f"The judge prefers the tuned model: it wins {share}, and the interval is clear of 50 %."


def _caution(run: Run) -> str:
    """What a win by this judge does not show."""
    wins = [r for stage in run.of("eval win-rate") if (r := stage.results).get("win_rate")]
    judges = [r for stage in run.of("eval alignment") if (r := stage.results).get("accuracy")]
    if not wins or _effect(wins[-1]["win_rate"], 0.5, wins[-1].get("prompts", 0)) != "above":
        return ""
    if not judges:
        return "How far this judge agrees with people was not measured."
    if _effect(judges[-1]["accuracy"], 0.5, judges[-1].get("n", 0)) == "above":
        return ""
    return "The judge itself was not shown to agree with people, so a win by it need not be one for them."


def _rates(run: Run) -> list[dict[str, Any]]:
    """Every rate that 50 % would make meaningless, for the picture of intervals."""
    found: list[tuple[str, dict[str, Any] | None, Any]] = []
    for stage in run.of("eval alignment"):
        n = stage.results.get("n")
        found += [("Judge agrees with people", stage.results.get("accuracy"), n)]
        found += [("The longer response wins", stage.results.get("longer_wins"), n)]
    for held_out in filter(None, (stage.results.get("held_out") for stage in run.of("train-rm"))):
        low, high = held_out["accuracy_interval"]
        accuracy = {"value": held_out["accuracy"], "low": low, "high": high}
        found.append(("Reward model agrees with the labels", accuracy, held_out["pairs"]))
    for stage in run.of("eval win-rate"):
        n = stage.results.get("prompts")
        found += [("Tuned model wins", stage.results.get("win_rate"), n)]
        found += [("Tuned model wins, at equal length", stage.results.get("length_controlled"), n)]
    return [{**e, "name": name, "text": _rate(e), "n": n} for name, e, n in found if e]


# --------------------------------------------------------------------------------------------------- curves


@dataclass(frozen=True)
class Chart:
    """A plotly figure. Colours are names of the page's CSS variables, so that they follow dark and light."""

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
_RM_CHARTS = (
    (
        "loss",
        "Loss",
        "nats a pair",
        "It cannot fall below the floor, the labels' own entropy. A coin's is 0.693.",
    ),
    (
        "accuracy",
        "Accuracy",
        "share of pairs",
        "How often the preferred response gets more reward. A coin's is 0.5.",
    ),
)
_PPO_CHARTS = (
    ("reward", "Reward", "mean reward", "Healthy: it rises and levels off."),
    (
        "kl",
        "KL to the start",
        "nats a response",
        "Healthy: slow growth. With a runaway KL, reward is being hacked.",
    ),
    (
        "response_length",
        "Response length",
        "tokens",
        "A reward that rises only with length is a reward for length.",
    ),
    (
        "mismatch",
        "Engine and trainer mismatch",
        "nats a token",
        "Healthy: small and flat; it shows unsynced weights.",
    ),
)


def _curves(run: Run) -> list[Curves]:
    """Of every training stage; also of one that was killed, which the summary does not know yet."""
    known = {}
    for stage in (stage for stage in run.stages if stage.kind in ("train-rm", "ppo")):
        folder = run.locate(stage.settings.get("output"))
        path = (folder or run.folder / stage.name) / "metrics.jsonl"
        known[path.resolve()] = _curves_of(stage.name, stage.kind, path, stage.results, "")
    for path in sorted(run.folder.glob("*/metrics.jsonl")):
        if path.resolve() not in known:
            kind = "ppo" if "kl" in next(iter(tolerant_rows(path)), {}) else "train-rm"
            note = "This stage has not finished; the curves show how far it came."
            known[path.resolve()] = _curves_of(path.parent.name, kind, path, {}, note)
    return list(known.values())


def _curves_of(name: str, kind: str, path: Path, results: dict[str, Any], note: str) -> Curves:
    rows, title = tolerant_rows(path), f"{'PPO' if kind == 'ppo' else 'Reward model'}: {name}"
    if not rows:
        return Curves(title, f"Missing: {path} holds no rows, so there are no curves.", [])
    wanted = _PPO_CHARTS if kind == "ppo" else _RM_CHARTS
    charts = [_line_chart(rows, *words, _beside(words[0], rows, results)) for words in wanted]
    charts.append(_phases(rows))
    return Curves(title, note, [chart for chart in charts if chart])


def _line_chart(
    rows: list[dict[str, Any]], key: str, title: str, unit: str, caption: str, extra: list[dict[str, Any]]
) -> Chart | None:
    values = _column(rows, key)
    known = [value for value in values if value is not None]
    if not known:
        return None
    width = _window(rows)
    lines = [_line(rows, values, "each step", "--accent", 2)]
    if width > 3:
        mean = _line(rows, _running_mean(values, width), f"mean of {width} steps", "--accent", 2.5)
        lines = [_line(rows, values, "each step", "--faint", 1) | {"showlegend": False}, mean]
    spoken = f"{title}, {unit}: {known[0]:.4g} at the first step, {known[-1]:.4g} at the last of {len(rows)}"
    zero = "tozero" if key in ("kl", "mismatch") else "normal"  # small noise must not look like a cliff
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": unit}, "rangemode": zero}}
    return Chart(title, caption, spoken, [*lines, *extra], layout)


def _beside(key: str, rows: list[dict[str, Any]], results: dict[str, Any]) -> list[dict[str, Any]]:
    """What a curve is to be compared with: its floor, and the number on held-out data."""
    floor = _running_mean(_column(rows, "entropy_floor"), _window(rows)) if key == "loss" else []
    lines = [_line(rows, floor, "floor", "--second", 2, "dot")] if any(v is not None for v in floor) else []
    held_out = (results.get("held_out") or {}).get(key)
    if held_out is not None:
        lines.append(_line(rows, [held_out] * len(rows), "held out", "--third", 2, "dash"))
    return lines


def _phases(rows: list[dict[str, Any]]) -> Chart | None:
    """Where the time went: seconds of each phase over all steps."""
    names = [key for key in rows[0] if key.startswith("seconds_")]
    totals = {name.removeprefix("seconds_"): sum(v or 0 for v in _column(rows, name)) for name in names}
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


def _line(
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
        "x": _column(rows, "step"),
        "y": list(values),
        "name": name,
        "line": {"color": colour, "width": width, "dash": dash},
        "marker": {"color": colour},
        "hovertemplate": "%{y:.4g}",
    }


def _column(rows: list[dict[str, Any]], key: str) -> list[float | None]:
    """A metric over the steps; None where it is missing or not finite, which JSON cannot say."""
    values = (row.get(key) for row in rows)
    return [v if isinstance(v, (int, float)) and math.isfinite(v) else None for v in values]


def _window(rows: list[dict[str, Any]]) -> int:
    """An eighth of the steps, made odd; 1, which smooths nothing, where there are few."""
    return len(rows) // 16 * 2 + 1


def _running_mean(values: Sequence[float | None], width: int) -> list[float | None]:
    """The mean of each step and its neighbours, `width` in all (odd); fewer at the ends."""
    half = width // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [_mean(v for v in window if v is not None) for window in windows]


# -------------------------------------------------------------------------------------------------- samples


@dataclass(frozen=True)
class Text:
    """A model's or user's text; a long one is shown in part and unfolds."""

    start: str
    rest: str

    @classmethod
    def of(cls, text: str) -> Text:
        cut = len(text) if len(text) <= 1.3 * _CUT else text.rfind(" ", 0, _CUT) + 1 or _CUT
        return cls(text[:cut], text[cut:])


@dataclass(frozen=True)
class Sample:
    prompt: Text
    before: Text
    after: Text
    p_after: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """The samples of one win-rate stage."""

    title: str
    before: str
    after: str
    total: int
    samples: list[Sample]
    missing: str


def _comparisons(run: Run) -> list[Comparison]:
    return [_comparison(stage, run) for stage in run.of("eval win-rate")]


def _comparison(stage: Stage, run: Run) -> Comparison:
    output = str(stage.settings.get("output", ""))
    items_path = run.locate(str(beside(output, "win-rate", "items")))
    items = [i for i in (tolerant_rows(items_path) if items_path else []) if i.get("p_a") is not None]
    names = {side: str(stage.settings.get(side, "")) for side in ("a", "b")}
    sides = {side: _responses(_side(stage, run, side)) for side in names}
    missing = [names[side] for side, rows in sides.items() if not rows]
    if not items:
        missing.append(f"the results of {stage.name} by item ({beside(output, 'win-rate', 'items').name})")
    samples = [_sample(item, sides["a"], sides["b"]) for item in spread(items)]
    shown = [sample for sample in samples if sample]
    return Comparison(stage.name, names["b"], names["a"], len(items), shown, ", ".join(missing))


def spread(items: list[dict[str, Any]], count: int = SAMPLES) -> list[dict[str, Any]]:
    """`count` items at even ranks of p_a, from the clearest win to the clearest loss: nobody picked them."""
    ranked = sorted(items, key=lambda item: (-item["p_a"], str(item.get("id")), item.get("sample", 0)))
    if len(ranked) <= count:
        return ranked
    return [ranked[round(i * (len(ranked) - 1) / (count - 1))] for i in range(count)]


def _responses(path: Path | None) -> dict[str, Candidates]:
    try:
        return {row.id: row for row in Source(str(path), Candidates, skip_invalid=True)} if path else {}
    except InputError:
        return {}


def _sample(item: dict[str, Any], a: dict[str, Candidates], b: dict[str, Candidates]) -> Sample | None:
    name, index = str(item.get("id")), item.get("sample", 0)
    if name not in a or name not in b or index >= min(len(a[name].responses), len(b[name].responses)):
        return None
    after, before, p = a[name].responses[index].text, b[name].responses[index].text, float(item["p_a"])
    prompt = Text.of(prompt_text(a[name].prompt))
    return Sample(prompt, Text.of(before), Text.of(after), p, _verdict(before, after, p))


def _verdict(before: str, after: str, p_after: float) -> str:
    if before == after:
        return "same text"
    return "tie" if p_after == 0.5 else "after wins" if p_after > 0.5 else "before wins"


# ------------------------------------------------------------------------------------------------- the page


def write_report(run_folder: Path, output: Path) -> Path:
    """Write a run's report: one HTML file that needs no network. What is missing is named on the page.

    Raises:
        InputError: `run_folder` holds no run.
        RlaifError: `output` cannot be written.
    """
    run = read_run(run_folder)
    _write_whole(output, _render(run).encode("utf-8", "replace"))
    return output


def _render(run: Run) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    curves = _curves(run)
    charts = [chart for group in curves for chart in group.charts]
    environment.filters["csp_hash"] = _csp_hash
    return environment.get_template("report.html.j2").render(
        run=run,
        headline=_headline(run),
        caution=_caution(run),
        findings=_findings(run),
        rates=_rates(run),
        minutes=sum(stage.seconds for stage in run.stages) / 60,
        written=datetime.fromtimestamp((run.folder / SUMMARY).stat().st_mtime, timezone.utc),
        numbers={stage.name: list(_flat(stage.results)) for stage in run.stages},
        settings={stage.name: _as_json(stage.settings) for stage in run.stages},
        curves=curves,
        figures=[{"data": chart.data, "layout": chart.layout} for chart in charts],
        comparisons=_comparisons(run),
        plotly_js=Markup(_plotly_js()) if charts else "",
        version=__version__,
    )


def _as_json(settings: dict[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value, ensure_ascii=False) for name, value in settings.items()}


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("\r\n", "\n")  # as an HTML parser reads it, or the hash would differ


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _write_whole(path: Path, content: bytes) -> None:
    """Either the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
