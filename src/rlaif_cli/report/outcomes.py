"""The links of the policy's outcome: win rate, gold measure, length and openings."""

from __future__ import annotations

from typing import Any

from rlaif_cli.report.findings import FEW, effect, judge_name, names, rate_text
from rlaif_cli.report.link import VERDICTS, Link, Verdict, not_measured
from rlaif_cli.report.paired import length_change
from rlaif_cli.report.run_folder import Run, Stage
from rlaif_cli.report.trace import function_name, is_from
from rlaif_cli.report.wording import percent_change, percents, shortened, signed

LENGTH = 0.2  # of the start's mean length: a smaller change does not explain a gain
ALIKE = 0.2  # share of responses with the same first three words, above which a gain may come from one trick


def win_rate_link(stage: Stage | None) -> Link:
    name, title = "win rate", "Win rate"
    if stage is None:
        return not_measured(
            name, title, "Generate before and after on prompts not trained on, then rlaif eval win-rate."
        )
    r = stage.results
    win, controlled = {"prompts": r.get("prompts", 0), **r["win_rate"]}, r.get("length_controlled")
    n = r.get("n", win.get("n", 0))
    found = effect(win, 0.5, n)
    (value, interval), more = (
        percents(win, 0.5),
        f"{stage.name}, over {stage.settings.get('b')}, by the judge {judge_name(stage.settings)}.",
    )
    if controlled:
        more += f" At equal length: {rate_text(controlled)}."
    if found == "few":
        return Link(name, title, "too few to tell", f"{value} of {n:,} against the start; too few to tell", more, win)
    if found == "above" and controlled and controlled["low"] <= 0.5:
        hidden = f"{value} of {n:,} {interval}; at equal length not clear"
        return Link(name, title, "warning", hidden, more, win)
    return Link(name, title, VERDICTS[found], f"beats the start on {value} of {n:,} answers {interval}", more, win)


def gold_link(run: Run, policy: Stage | None) -> Link:
    """A function that was not trained on, from `eval reward` or else from the policy's own evaluations."""
    name, title = "gold", "Gold measure"
    found = _gold_changes(run, policy)
    if not found:
        how = (
            "Write a reward function of what you want, do not train on it, and compare before and after: "
            "rlaif eval reward --reward-function --baseline, or rlaif ppo --eval-function."
        )
        return not_measured(name, title, how)
    where, function, change = found[0]
    happened = effect(change, 0.0, change.get("n", 0))
    ends = {"above": "; it rose", "below": "; it fell", "none": "; not clear", "few": "; too few to tell"}
    value, interval = signed(change)
    prompts = change.get("prompts", change.get("n", 0))
    sentence = f"{shortened(function, 12)} {value} {interval}, {prompts:,} prompts{ends[happened]}"
    more = f"{where}: the mean change of {function}, which nothing was trained on."
    others = [f" {other} ({place}): {' '.join(signed(changed))}." for place, other, changed in found[1:]]
    return Link(name, title, VERDICTS[happened], sentence, more + "".join(others), change)


def _gold_changes(run: Run, policy: Stage | None) -> list[tuple[str, str, dict[str, Any]]]:
    """(where it was measured, function, paired change of its mean)."""
    trained_on = _functions(policy) if policy else set()
    found = []
    for stage in run.of("eval reward"):
        specs, change = _functions(stage), stage.results.get("difference")
        mixed = stage.settings.get("reward_model") or stage.settings.get("judge")
        mine = policy is None or is_from(run, stage.settings.get("candidates"), policy)
        if change and specs and mine and not mixed and not specs & trained_on:
            found.append((stage.name, " + ".join(sorted(specs)), change))
    ends = evaluated(policy)
    if found or policy is None or ends is None:
        return found
    changes = ends[1].get("functions_change") or {}
    where = f"{policy.name}, on its held-out prompts"
    return [(where, name, change) for name, change in changes.items() if change and name not in trained_on]


def _functions(stage: Stage) -> set[str]:
    return {function_name(spec) for spec in names(stage.settings, "reward_function")}


def evaluated(policy: Stage | None) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The policy's evaluations of the initial and the final weights; None if there are none."""
    found = policy.results.get("evaluations") if policy else None
    return (found["first"], found.get("kept") or found["last"]) if found else None


def length_link(run: Run, stage: Stage | None) -> Link:
    name, title = "length", "Length"
    if stage is None or not stage.results.get("mean_length_b"):
        return not_measured(name, title, "rlaif eval win-rate measures it.")
    before, after = (stage.results[f"mean_length_{side}"] for side in "ba")
    more = f"{stage.name}: {before:,.0f} characters before, {after:,.0f} after, on average. "
    more += f"A change within {LENGTH:.0%} of the start's length does not explain a gain.".replace("%", " %")
    change = length_change(run, stage)
    if change is None:
        sentence = f"{before:,.0f} characters before, {after:,.0f} after; no interval"
        return Link(name, title, "not clear", sentence, f"{more} The file of per-item results is missing.")
    value, interval = percent_change(change)
    if effect(change, 0.0, change["n"]) == "few":
        return Link(name, title, "too few to tell", f"{value} on {change['n']:,}; too few to tell", more, change)
    verdict = _within(change, LENGTH)
    controlled = stage.results.get("length_controlled")
    if verdict == "fails" and controlled and controlled["low"] > 0.5:
        wins = f"at equal length it still wins {percents(controlled, 0.5)[0]}"
        return Link(name, title, "warning", f"{value} {interval}; {wins}", more, change)
    end = {"holds": "within 20 %", "fails": "beyond 20 %", "not clear": "20 % or more?"}[verdict]
    return Link(name, title, verdict, f"{value} {interval} from {before:,.0f} characters; {end}", more, change)


def _within(change: dict[str, Any], bound: float) -> Verdict:
    if -bound <= change["low"] and change["high"] <= bound:
        return "holds"
    return "fails" if change["low"] > bound or change["high"] < -bound else "not clear"


def openings_link(policy: Stage | None, stage: Stage | None) -> Link:
    name, title = "openings", "Openings"
    sides, ends = stage.results.get("openings") if stage else None, evaluated(policy)
    if sides and stage:
        after, before, prompts, where = sides["a"], sides["b"], stage.results.get("prompts", 0), stage.name
    elif ends and policy:
        first, last = ends
        after, before, prompts, where = last["openings"], first["openings"], last["prompts"], policy.name
    else:
        return not_measured(name, title, "rlaif eval win-rate measures it.")
    more = (
        f'{where}: the most common first three words are "{after["commonest"]}"; {after["distinct"]:,} different ones. '
    )
    more += f"A warning from {ALIKE:.0%} on, if that is more than at the start.".replace("%", " %")
    shares = f"{100 * before['share']:.0f} % before"
    if prompts < FEW:
        return Link(name, title, "too few to tell", f"{prompts} prompts are too few to tell", more)
    if after["share"] >= ALIKE and after["share"] > before["share"]:
        said = f'{100 * after["share"]:.0f} % begin "{shortened(after["commonest"], 24)}"; {shares}'
        return Link(name, title, "warning", said, more)
    return Link(name, title, "holds", f"{100 * after['share']:.0f} % begin with the same three words; {shares}", more)
