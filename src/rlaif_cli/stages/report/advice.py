"""What was trained on what, and what to do next: the first screen's other two questions, in one sentence each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif_cli.stages.report.findings import caution, effect, judge_name, names, rate_text
from rlaif_cli.stages.report.run import Run, Stage


def trained(run: Run) -> str:
    """What the run made of what: of its last policy, else its last other checkpoint, else its labels; "" of neither."""
    for kind, sentence in (("ppo", _policy), ("sft", _fine_tuned), ("train-rm", _reward_model), ("label", _labelled)):
        if stages := run.of(kind):
            return sentence(stages[-1], run)
    return ""


def _policy(stage: Stage, run: Run) -> str:
    s = stage.settings
    on = f"the prompts of {Path(str(s.get('prompts'))).name}, {stage.results.get('steps', 0):,} steps"
    if s.get("prompts_per_step"):
        on += f" of {s['prompts_per_step']} prompts x {s.get('n')} responses"
    return f"{_from(s, run)} was tuned by PPO ({s.get('advantage', 'gae')}) on {on}; its reward: {_reward(s, run)}."


def _reward(settings: dict[str, Any], run: Run) -> str:
    functions = [f"the function {Path(spec).name}" for spec in names(settings, "reward_function")]
    return " + ".join([*_model_or_judge(settings, run), *functions])


def _model_or_judge(settings: dict[str, Any], run: Run) -> list[str]:
    if settings.get("judge"):
        return [_by(settings)]
    models = names(settings, "reward_model")
    made = [stage for stage in run.of("train-rm") if stage.settings.get("output") in models]
    if len(models) == len(made) == 1:
        return [f"a reward model, {_learned(made[0], run)}"]
    return [f"reward model {' + '.join(models)}"] if models else []


def _reward_model(stage: Stage, run: Run) -> str:
    return f"{_from(stage.settings, run)} became a reward model, {_learned(stage, run)}."


def _learned(stage: Stage, run: Run) -> str:
    pairs, source = stage.results.get("train_pairs", 0), stage.settings.get("preferences")
    label = next((each for each in run.of("label") if each.settings.get("output") == source), None)
    by = f"labelled by {_by(label.settings)}" if label else f"of {Path(str(source)).name}"
    return f"trained on {pairs:,} pairs {by}"


def _by(settings: dict[str, Any]) -> str:
    return f"the judge {judge_name(settings)} by the constitution {settings.get('constitution')}"


def _fine_tuned(stage: Stage, run: Run) -> str:
    return (
        f"{_from(stage.settings, run)} was fine-tuned on the responses in {Path(str(stage.settings['records'])).name}."
    )


def _labelled(stage: Stage, run: Run) -> str:
    return f"{stage.results.get('pairs') or 0:,} pairs were labelled by {_by(stage.settings)}. Nothing was trained."


def _from(settings: dict[str, Any], run: Run) -> str:
    """The model it began from; one that this run made, by its stage."""
    model = str(settings.get("model"))
    made = next((stage for stage in run.stages if stage.settings.get("output") == model), None)
    return f"{_from(made.settings, run)}, after {made.name}," if made and made.settings.get("model") else model


def how_sure(run: Run) -> str:
    """The last win rate with its interval, and how far its judge is shown to agree with people; "" without either."""
    wins, judges = run.measured("eval win-rate", "win_rate"), run.measured("eval alignment", "accuracy")
    said = []
    if wins:
        said.append(f"It wins {rate_text(wins[-1]['win_rate'])} on n = {wins[-1].get('prompts', 0)} prompts.")
    if judges:
        n = judges[-1].get("n", 0)
        said.append(f"The judge agrees with people on {rate_text(judges[-1]['accuracy'])} of n = {n} pairs.")
    return " ".join([*said, caution(run)]).strip()


def next_step(run: Run, stopping: str = "") -> str:
    """What to do now: what stands most in the way of believing the run's verdict, first.

    Args:
        stopping: what the audit of the labels says against training on them, if anything.
    """
    if stopping:
        return f"Do not train on these labels as they are: {stopping}."
    judged = [stage for kind in ("label", "ppo") for stage in run.of(kind) if stage.settings.get("judge")]
    alignments = run.measured("eval alignment", "accuracy")
    if judged and not alignments:
        return "Measure how far the judge agrees with people, on pairs that people compared: rlaif eval alignment."
    if alignments and effect(alignments[-1]["accuracy"], 0.5, alignments[-1].get("n", 0)) != "above":
        return (
            "Take a judge that agrees with people, or show that this one does on more pairs (rlaif eval alignment): "
            "until then no reward here can be believed."
        )
    wins = [stage for stage in run.of("eval win-rate") if stage.results.get("win_rate")]
    if not wins:
        if run.of("ppo") or run.of("sft"):
            return "Compare with the start on prompts that were not trained on: rlaif generate, rlaif eval win-rate."
        return "Train on them: rlaif train-rm, then rlaif ppo." if run.of("label") else ""
    return _after_a_win_rate(wins[-1], run)


def _after_a_win_rate(stage: Stage, run: Run) -> str:
    r, prompts = stage.results, stage.results.get("prompts", 0)
    found = effect(r["win_rate"], 0.5, prompts)
    if found == "few":
        return "Compare on more prompts: a hundred or more."
    if found == "none":
        rose = any(s.results.get("reward_last", 0) > s.results.get("reward_first", 0) for s in run.of("ppo"))
        more = (
            "train longer, on more prompts"
            if rose
            else "the reward did not rise: try a higher --lr or a lower --kl-coef"
        )
        return f"Compare on more prompts for a narrower interval, or {more}."
    if found == "below":
        return "Read the samples below for what went wrong, and try a higher --kl-coef or fewer --steps."
    controlled = r.get("length_controlled")
    if controlled and controlled["low"] <= 0.5:
        return "Train with --length-penalty, and compare at equal length again: so far the gain may be length alone."
    if judge_name(stage.settings) in [judge_name(s.settings) for kind in ("label", "ppo") for s in run.of(kind)]:
        return "Let another judge compare, or people (rlaif annotate): this one is the one that was trained for."
    return "Repeat it with other seeds (a matrix in the pipeline file), and let people compare some (rlaif annotate)."
