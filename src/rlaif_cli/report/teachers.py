"""The links of the judge and the reward model: whether they agree with people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlaif_cli.errors import RlaifError
from rlaif_cli.pipeline.lineage import manifest_of
from rlaif_cli.report.findings import effect, held_out_accuracy, judge_name, names, rate_text
from rlaif_cli.report.link import VERDICTS, Link, not_measured
from rlaif_cli.report.run_folder import Run, Stage
from rlaif_cli.report.trace import asks_alike, maker, same_path, same_principles
from rlaif_cli.report.wording import percents


def judge_link(run: Run, taught: Stage | None) -> Link:
    name, title = "judge", "Judge"
    measured = [stage for stage in run.of("eval alignment") if stage.results.get("accuracy")]
    found = _of_judge(measured, taught)
    if found is None:
        how = "Measure it on pairs that people compared: rlaif eval alignment, with the judge, constitution and method "
        other = " The run measured a different judge, or the same judge with different settings." if measured else ""
        return not_measured(name, title, f"{how}that gave the labels.{other}")
    differs = taught is not None and not same_principles(found, taught)
    more = f"{found.name}: {judge_name(found.settings)}, {found.settings.get('method')}."
    more += " It was measured with different principles from those it labelled with." if differs else ""
    return _agreement(name, title, found, more)


def _of_judge(measured: Sequence[Stage], taught: Stage | None) -> Stage | None:
    """The last alignment of the judge that gave the labels, preferably by the same principles."""
    alike = [stage for stage in measured if taught is None or asks_alike(stage, taught)]
    exact = [stage for stage in alike if taught is not None and same_principles(stage, taught)]
    return next(iter((exact or alike)[-1:]), None)


def reward_model_link(run: Run, models: Sequence[str]) -> Link:
    name, title = "reward model", "Reward model"
    found = [stage for stage in run.of("eval reward-model") if _by_people(run, stage) and _measures(stage, models)]
    if found:
        return _agreement(name, title, found[-1], f"{found[-1].name}.")
    trained = [stage for model in models if (stage := maker(run, model)) and stage.results.get("human")]
    if trained and (accuracy := held_out_accuracy(trained[-1].results["human"])):
        pairs = trained[-1].results["human"]["pairs"]
        as_evaluated = replace(trained[-1], results={"accuracy": accuracy, "n": pairs})
        return _agreement(name, title, as_evaluated, f"{trained[-1].name}, on the pairs of --human.")
    how = "Measure it on pairs that people compared: rlaif eval reward-model."
    labels = " The judge's own labels are no test: it learned from them." if run.of("eval reward-model") else ""
    return not_measured(name, title, how + labels)


def _measures(stage: Stage, models: Sequence[str]) -> bool:
    """Whether the stage measured exactly these reward models."""
    measured = names(stage.settings, "reward_model")
    return len(measured) == len(models) and all(any(same_path(one, each) for each in measured) for one in models)


def _by_people(run: Run, stage: Stage) -> bool:
    """Whether the pairs are human labels, not those of a judge of this or a different run."""
    pairs = stage.settings.get("pairs")
    made, path = maker(run, pairs), run.locate(pairs)
    if not stage.results.get("accuracy") or (made is not None and made.kind == "label"):
        return False
    try:
        return (manifest_of(path) or {}).get("stage") != "label" if path else True
    except RlaifError:
        return True


def _agreement(name: str, title: str, stage: Stage, more: str) -> Link:
    r = stage.results
    accuracy, n = r["accuracy"], r.get("n", r["accuracy"].get("n", 0))
    found = effect(accuracy, 0.5, n)
    value, interval = percents(accuracy, 0.5)
    said = f"{value} of {n:,} human pairs"
    ends = {"above": "; a coin: 50 %", "none": "; no better than a coin", "below": "; worse than a coin"}
    if longer := r.get("longer_wins"):
        more += f" The rule that the longer response wins: {rate_text(longer)}."
    sentence = f"{said}; too few to tell" if found == "few" else f"{said} {interval}{ends[found]}"
    return Link(name, title, VERDICTS[found], sentence, more, accuracy)
