"""The harmlessness link: whether the harmless rate fell, and how reliable its judge is."""

from __future__ import annotations

from rlaif_cli.report.findings import effect, rate_text
from rlaif_cli.report.link import Link, not_measured
from rlaif_cli.report.paired import harmless_change
from rlaif_cli.report.run_folder import Run, Stage
from rlaif_cli.report.trace import asks_alike, is_from, is_from_start, same_path, same_principles
from rlaif_cli.report.wording import percent_change, percents


def harmless_link(run: Run, policy: Stage | None, wins: Stage | None) -> Link:
    name, title = "harmless", "Harmless rate"
    after, before = _harmless_stages(run, policy, wins)
    if after is None:
        how = "rlaif eval harmless-rate, on responses before and after to prompts that invite harm."
        return not_measured(name, title, how)
    rate, n = after.results["harmless_rate"], after.results.get("n", 0)
    value, interval = percents(rate)
    known, doubt = _judge_reliability(run, after)
    more = f"{after.name}: {rate_text(rate)} of {n:,} responses."
    if before is None:
        how = " The start was not measured: rlaif eval harmless-rate on its responses."
        return Link(
            name, title, "not clear", f"{value} {interval} after; the start not measured", more + how + known, rate
        )
    more += f" Before ({before.name}): {rate_text(before.results['harmless_rate'])}.{known}"
    change = harmless_change(run, after, before)
    if change is None:
        then = percents(before.results["harmless_rate"])[0]
        return Link(name, title, "not clear", f"{value} after, {then} before; no interval", more)
    found, (value, interval) = effect(change, 0.0, change["n"]), percent_change(change)
    points = f"{value.replace(' %', '')} points {interval}"
    if found == "few":
        return Link(name, title, "too few to tell", f"{points}; too few prompts to tell", more, change)
    if doubt:
        return Link(name, title, "not clear", f"{points}; {doubt}", more, change)
    ends = "; clearly lower" if found == "below" else "; higher" if found == "above" else "; no clear change"
    return Link(name, title, "fails" if found == "below" else "holds", points + ends, more, change)


def _harmless_stages(run: Run, policy: Stage | None, wins: Stage | None) -> tuple[Stage | None, Stage | None]:
    """The harmless-rate stages (of the policy, of its start) by the same judge; None if there is none."""
    stages = [stage for stage in run.of("eval harmless-rate") if stage.results.get("harmless_rate")]
    of = [(stage, stage.settings.get("candidates")) for stage in stages]
    afters = [
        stage
        for stage, path in of
        if (policy is not None and is_from(run, path, policy)) or (wins and same_path(path, wins.settings.get("a")))
    ]
    if not afters:
        return None, None
    befores = [
        stage
        for stage, path in of
        if (policy is not None and is_from_start(run, path, policy))
        or (wins and same_path(path, wins.settings.get("b")))
        if asks_alike(stage, afters[-1]) and same_principles(stage, afters[-1])
    ]
    return afters[-1], next(iter(befores[-1:]), None)


def _judge_reliability(run: Run, stage: Stage) -> tuple[str, str]:
    """(what is known of the judge of a harmless rate, why its rate is unreliable or "")."""
    measured = [each for each in run.of("eval alignment") if each.results.get("accuracy") and asks_alike(each, stage)]
    measured = [each for each in measured if same_principles(each, stage)]
    if not measured:
        return (
            " How far its judge agrees with people on harm was not measured (rlaif eval alignment).",
            "judge not measured",
        )
    accuracy = measured[-1].results["accuracy"]
    said = f" Its judge agrees with people on {rate_text(accuracy)} of the pairs of {measured[-1].name}."
    better = effect(accuracy, 0.5, accuracy.get("n", 0)) == "above"
    return said, "" if better else "its judge is no better than a coin"
