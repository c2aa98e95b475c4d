"""The findings of a run in plain sentences that claim no more than the intervals allow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from rlaif_cli.data.inputs import names_records
from rlaif_cli.data.messages import as_messages, prompt_text
from rlaif_cli.data.paths import beside
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import PromptRecord
from rlaif_cli.errors import InputError
from rlaif_cli.registry import STAGES, part
from rlaif_cli.report.run_folder import Run, Stage

FEW = 10  # prompts; with fewer, no verdict is given whatever the interval
Effect = Literal["above", "below", "none", "few"]


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def rate_text(estimate: dict[str, Any]) -> str:
    return f"{percent(estimate['value'])} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def _amount(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None:
        return f"{estimate['value']:+.2f} (one prompt has no interval)"
    return f"{estimate['value']:+.2f} [{estimate['low']:+.2f}, {estimate['high']:+.2f}]"


def effect(estimate: dict[str, Any], null: float, n: int) -> Effect:
    """On which side of `null` ("no effect") the interval lies.

    Args:
        n: number of prompts, or of items in older results that do not record the prompts.
    """
    if estimate.get("prompts", n) < FEW:
        return "few"
    if estimate["low"] > null:
        return "above"
    return "below" if estimate["high"] < null else "none"


def _few(n: int, of: str) -> str:
    enough = " of few prompts" if of == "pairs" and n >= FEW else ""
    return f"{n} {of}{enough} are too few to tell an effect from chance"


def _number(value: Any) -> str:
    """Format a result for people: an estimate with its interval, few digits, no braces."""
    if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
        interval = "" if value["low"] is None else f" [{_number(value['low'])}, {_number(value['high'])}]"
        of = f" of {value['prompts']} prompts" if value.get("prompts", value.get("n")) != value.get("n") else ""
        return f"{_number(value['value'])}{interval}" + (f", n = {value['n']}{of}" if "n" in value else "")
    if isinstance(value, list):
        return f"[{', '.join(map(_number, value))}]"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def flat(results: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """(name, number) of everything in the results of a stage, except what its settings already say."""
    for key, value in results.items():
        if key in ("metric", "judge", "method", "constitution", "a", "b", "items", "reliability"):
            continue
        if value is None:
            continue
        if isinstance(value, dict) and "value" not in value:
            yield from flat(value, f"{key} ")
        else:
            yield (prefix + key).replace("_", " "), _number(value)


# --- findings


def findings(summary: dict[str, Any], folder: Path) -> list[str]:
    """The findings of a run, one line per stage in the order of the chain.

    Args:
        summary: the content of `summary.json`, as returned by `pipeline.runner.run`.
        folder: the run's folder.
    """
    return found_in(Run.of_summary(summary, folder))


def found_in(run: Run) -> list[str]:
    described = [(kind, row.finding) for kind, row in STAGES.items() if row.finding is not None]
    lines = []
    for kind, finding in sorted(described, key=lambda each: each[1].place):
        describe = part(finding.describe)
        found = [(stage.name, parts) for stage in run.of(kind) if (parts := list(filter(None, describe(stage, run))))]
        for name, parts in found:
            title = f"{finding.title} ({name})" if len(found) > 1 else finding.title
            lines.append(f"{title}: {'; '.join(parts)}")
    return lines


def _training_candidates(run: Run) -> list[Stage]:
    """The generate stages whose responses are labelled; all of them if nothing is labelled."""
    labelled = {stage.settings.get("candidates") for stage in run.making("preferences")}
    return [s for s in run.of("generate") if not labelled or s.settings.get("output") in labelled]


def candidates(stage: Stage, run: Run) -> list[str]:
    if stage not in _training_candidates(run):
        return []
    r = stage.results
    responses, prompts = r.get("responses") or 0, r.get("rows") or 0
    cut = f"{r['unfinished']:,} cut off at the length limit" if r.get("unfinished") else ""
    return [f"{responses:,} responses to {prompts:,} prompts by {stage.settings.get('model')}", cut]


def names(settings: dict[str, Any], key: str) -> list[str]:
    """The names in a setting, which may be a single string."""
    named = settings.get(key)
    return [named] if isinstance(named, str) else list(named or ())


def judge_name(settings: dict[str, Any]) -> str:
    """The judge's name, or those of a panel."""
    return " + ".join(names(settings, "judge"))


def labels(stage: Stage, run: Run) -> list[str]:
    r, s = stage.results, stage.settings
    parts = [
        f"{r.get('pairs') or 0:,} pairs judged by {judge_name(s)} ({s.get('method')}, {s.get('constitution')})",
        f"{r.get('unscored') or 0:,} unscored",
    ]
    if (p := r.get("mean_p_chosen")) is not None:
        silent = "shows no effect: the judge is undecided nearly everywhere" if p < 0.51 else ""
        parts += [f"mean p_chosen {p:.3f}", silent]
    if r.get("flip_rate") is not None:
        parts.append(f"{percent(r['flip_rate'])} flip with the order of the responses")
    if r.get("first_position_share") is not None:
        parts.append(f"the first position wins {percent(r['first_position_share'])}")
    if r.get("mean_mass") is not None:
        parts.append(f"mean mass on the labels {r['mean_mass']:.3f}")
    return parts


def mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def alignment(stage: Stage, run: Run) -> list[str]:
    judge, longer = stage.results.get("accuracy"), stage.results.get("longer_wins")
    if not judge:
        return []
    n = stage.results.get("n", judge.get("n", 0))
    first = f"agrees with people on {rate_text(judge)} of n = {n} pairs"
    coin = {
        "above": "better than a coin (50 %)",
        "below": "worse than a coin (50 %)",
        "none": "shows no effect: not distinguishable from a coin (50 %)",
        "few": _few(n, "pairs"),
    }[effect(judge, 0.5, n)]
    if not longer:
        return [first, coin]
    return [f"{first}, 'longer wins' in {rate_text(longer)}", coin, _beside_longer(judge, longer)]


def _beside_longer(judge: dict[str, Any], longer: dict[str, Any]) -> str:
    """Rates with disjoint intervals differ, however they correlate; otherwise nothing is claimed."""
    if judge["low"] > longer["high"]:
        return "it beats 'longer wins'"
    if judge["high"] < longer["low"]:
        return "it does not beat 'longer wins', which is better"
    return "not distinguishable from 'longer wins'"


def reward_model(stage: Stage, run: Run) -> list[str]:
    held_out = stage.results.get("held_out")
    if not held_out:
        return [
            f"trained on {stage.results.get('train_pairs', 0):,} pairs",
            "not measured, because no pair with a preference was held out",
        ]
    n, accuracy = held_out["pairs"], held_out_accuracy(held_out)
    if accuracy is None:
        return [f"{n} held-out pairs, every one a tie: there is no preference to agree with"]
    verdict = {
        "above": "",
        "below": "worse than a coin (50 %)",
        "none": "shows no effect: the interval includes 50 %",
        "few": _few(n, "pairs"),
    }[effect(accuracy, 0.5, n)]
    chose = "the same pairs chose the weights, so the number flatters" if _chosen_on_held_out(stage) else ""
    return [
        f"agrees with the judge's labels on {rate_text(accuracy)} of n = {n} held-out pairs",
        chose,
        verdict,
        f"loss {held_out['loss']:.3f}, floor {held_out['entropy_floor']:.3f}, a coin's {math.log(2):.3f}",
        f"ECE {held_out['ece']:.3f}, Brier {held_out['brier']:.3f}",
    ]


def held_out_accuracy(held_out: dict[str, Any]) -> dict[str, Any] | None:
    """The held-out accuracy as an estimate; None if all held-out pairs are ties."""
    if "accuracy" not in held_out:
        return None
    low, high = held_out["accuracy_interval"]
    prompts = held_out.get("prompts", held_out["pairs"])
    return {"value": held_out["accuracy"], "low": low, "high": high, "prompts": prompts}


def _chosen_on_held_out(stage: Stage) -> bool:
    """Whether the weights were chosen on the same held-out pairs that measure them."""
    if "held_out" not in stage.results or not stage.settings.get("patience"):
        return False
    return bool(stage.results.get("chosen_on", {}).get("also_reported", True))  # older results: always


def reward_model_and_people(stage: Stage, run: Run) -> list[str]:
    r = stage.results
    if not r.get("accuracy"):
        return []
    pairs = Path(str(stage.settings.get("pairs"))).name
    verdict = {
        "above": "",
        "below": "worse than a coin (50 %)",
        "none": "shows no effect: the interval includes 50 %",
        "few": _few(r.get("n", 0), "pairs"),
    }[effect(r["accuracy"], 0.5, r.get("n", 0))]
    return [f"agrees with the preferences of {pairs} on {rate_text(r['accuracy'])} of n = {r['n']} pairs", verdict]


OTHERS = {"random": "a random one", "first": "the first"}  # what the best of n is compared with


def best_of_n(stage: Stage, run: Run) -> list[str]:
    """Whether a judge agrees with the reward's choice among a model's own responses."""
    r = stage.results
    by = " + ".join([*names(r, "reward_model"), *(Path(spec).name for spec in names(r, "reward_function"))])
    parts = []
    for other, words in OTHERS.items():
        if won := r.get(f"win_rate_over_{other}"):
            found = effect(won, 0.5, r.get("prompts", 0))
            parts.append(f"wins {rate_text(won)} over {words}, {_WIN_WORDS[found] or _few(won['n'], 'prompts')}")
    if not parts:
        return []
    unscored = f"{r['unscored']:,} unscored" if r.get("unscored") else ""
    return [f"the best response by {by} {parts[0]}", *parts[1:], f"n = {r['n']} rows", unscored]


def ppo(stage: Stage, run: Run) -> list[str]:
    r = stage.results
    if "reward_first" not in r:
        return []
    unit = _reward_unit(stage)
    return [
        f"{r['steps']:,} steps",
        f"reward {r['reward_first']:+.2f} -> {r['reward_last']:+.2f} ({unit}; first, last fifth of steps)",
        "" if r["reward_last"] > r["reward_first"] else "shows no effect: the reward did not rise",
        f"KL to the start {r['kl_last']:.2f} nats per response",
        f"{r['unscored']:,} responses without a score, not trained on" if r.get("unscored") else "",
        _chosen_weights(r["weights"]) if r.get("weights") else "",
    ]


def _chosen_weights(weights: dict[str, Any]) -> str:
    """The weights that were kept, with their win rate on separate prompts: the highest of many is biased upwards."""
    kept = f"the weights of step {weights['step']} were kept, the best of {weights.get('looks', 'several')} evaluations"
    if not isinstance(found := weights.get("win_rate"), dict):
        return kept
    return (
        f"{kept}; on held-out prompts that took no part in the choice they win {rate_text(found)} against the start, "
        f"n = {found['n']} of {weights['prompts']} prompts"
    )


def _reward_unit(stage: Stage) -> str:
    if named := names(stage.settings, "reward_function"):
        others = stage.settings.get("judge") or stage.settings.get("reward_model")
        return "a weighted sum of several sources" if others or len(named) > 1 else f"by {Path(named[0]).name}"
    return "on the judge's scale" if stage.settings.get("judge") else "in the reward model's standard deviations"


def reward(stage: Stage, run: Run) -> list[str]:
    r, where = stage.results, _held_out(run.locate(stage.settings.get("candidates")), run)
    if not r.get("reward"):
        return []
    n, baseline, difference = r.get("n", 0), r.get("baseline"), r.get("difference")
    if not (baseline and difference):
        return [f"{_amount(r['reward'])} {_reward_unit(stage)}, n = {n} prompts{where}"]
    verdict = {
        "above": "the interval excludes 0",
        "below": "the interval excludes 0, on the wrong side: the reward fell",
        "none": "shows no effect: the interval includes 0",
        "few": _few(n, "prompts"),
    }[effect(difference, 0.0, n)]
    return [
        f"mean {baseline['value']:+.2f} before, {r['reward']['value']:+.2f} after, on n = {n} prompts{where}",
        f"difference {_amount(difference)} {_reward_unit(stage)}",
        verdict,
    ]


def win_rate(stage: Stage, run: Run) -> list[str]:
    r, judge = stage.results, judge_name(stage.settings)
    win, controlled, prompts = r.get("win_rate"), r.get("length_controlled"), r.get("prompts", 0)
    if not win:
        return []
    own = ", which also made the labels" if judge in [judge_name(s.settings) for s in run.making("preferences")] else ""
    where = _held_out(side_of(stage, run, "a"), run)
    parts = [
        f"the tuned model wins {rate_text(win)} against the start, n = {prompts} prompts{where}",
        _WIN_WORDS[effect(win, 0.5, prompts)] or _few(prompts, "prompts"),
    ]
    if controlled:
        hidden = ", where no effect can be seen" if effect(controlled, 0.5, prompts) == "none" else ""
        parts.append(f"at equal length {rate_text(controlled)}{hidden}")
    if r.get("mean_length_a") is not None and r.get("mean_length_b") is not None:
        parts.append(f"mean length {r['mean_length_b']:,.0f} -> {r['mean_length_a']:,.0f} characters")
    unscored = f"{r['unscored']:,} unscored" if r.get("unscored") else ""
    return [*parts, unscored, f"the judge is {judge}{own}"]


_WIN_WORDS: dict[Effect, str] = {
    "above": "the interval excludes 50 %",
    "below": "the interval excludes 50 %, on the wrong side: the judge prefers the start",
    "none": "no effect can be seen: the interval includes 50 %",
    "few": "",
}


def harmless_rate(stage: Stage, run: Run) -> list[str]:
    r = stage.results
    if not r.get("harmless_rate"):
        return []
    of = Path(str(stage.settings.get("candidates"))).name
    unscored = f"{r['unscored']:,} unscored" if r.get("unscored") else ""
    return [f"{rate_text(r['harmless_rate'])} of n = {r['n']} responses in {of} are judged harmless", unscored]


def side_of(stage: Stage, run: Run, side: str) -> Path | None:
    """The candidates of a side of a win rate; those sampled from a model are in a file next to the result."""
    name = str(stage.settings.get(side, ""))
    path = run.locate(name) if name.endswith(".jsonl") else None
    return path or run.locate(str(beside(str(stage.settings.get("output")), "win-rate", side)))


def _held_out(candidates: Path | None, run: Run) -> str:
    """Whether the prompts of a measured file were trained on, by comparing them; "" if unknown."""
    trained = [stage.settings.get("candidates") for stage in run.making("preferences")]
    trained += [stage.settings.get("prompts") for stage in run.making("policy")]
    seen: set[str] = set().union(*(_prompt_texts(run.locate(path)) for path in trained))
    measured = _prompt_texts(candidates)
    if not seen or not measured:
        return ""
    both = len(seen & measured)
    return f" ({both} of them also trained on)" if both else " not trained on"


def _prompt_texts(path: Path | None) -> set[str]:
    """The prompts of a file of prompts or candidates, without system prompts."""
    try:
        source = Source(str(path), PromptRecord, skip_invalid=True) if path and names_records(str(path)) else ()
    except InputError:
        return set()
    messages = ([m for m in as_messages(row.prompt) if m.role != "system"] for row in source)
    return {prompt_text(turns) for turns in messages}
