"""Whether training helped, what was trained on what, and what to do next, in one sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif_cli.registry import STAGES, Makes, part
from rlaif_cli.report.chain import Chain, win_stage
from rlaif_cli.report.findings import judge_name, names
from rlaif_cli.report.run_folder import Run, Stage
from rlaif_cli.report.wording import percents


def trained(run: Run) -> str:
    """How the last policy was made, else the last other checkpoint, else the labels; "" if there is none of these."""
    made: tuple[Makes, ...] = ("policy", "fine-tuned model", "reward model", "preferences")
    for stage in (stages[-1] for each in made if (stages := run.making(each))):
        if story := STAGES[stage.kind].story:
            return str(part(story)(stage, run))
    return ""


def ppo(stage: Stage, run: Run) -> str:
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
        return [_judged_by(settings)]
    models = names(settings, "reward_model")
    made = [stage for stage in run.making("reward model") if stage.settings.get("output") in models]
    if len(models) == len(made) == 1:
        return [f"a reward model, {_training_data(made[0], run)}"]
    return [f"reward model {' + '.join(models)}"] if models else []


def reward_model(stage: Stage, run: Run) -> str:
    return f"{_from(stage.settings, run)} became a reward model, {_training_data(stage, run)}."


def _training_data(stage: Stage, run: Run) -> str:
    pairs, source = stage.results.get("train_pairs", 0), stage.settings.get("preferences")
    label = next((each for each in run.making("preferences") if each.settings.get("output") == source), None)
    by = f"labelled by {_judged_by(label.settings)}" if label else f"of {Path(str(source)).name}"
    return f"trained on {pairs:,} pairs {by}"


def _judged_by(settings: dict[str, Any]) -> str:
    return f"the judge {judge_name(settings)} by the constitution {settings.get('constitution')}"


def fine_tuned(stage: Stage, run: Run) -> str:
    return (
        f"{_from(stage.settings, run)} was fine-tuned on the responses in {Path(str(stage.settings['records'])).name}."
    )


def labelled(stage: Stage, run: Run) -> str:
    return (
        f"{stage.results.get('pairs') or 0:,} pairs were labelled by {_judged_by(stage.settings)}. Nothing was trained."
    )


def _from(settings: dict[str, Any], run: Run) -> str:
    """The model it started from; if this run trained that model, its own start and stage."""
    model = str(settings.get("model"))
    made = next((stage for stage in run.stages if stage.settings.get("output") == model), None)
    return f"{_from(made.settings, run)}, after {made.name}," if made and made.settings.get("model") else model


def headline(found: Sequence[Chain]) -> str:
    """Whether training helped, in one sentence that claims no more than the interval allows; about the first policy.

    Args:
        found: the `chains` of the run.
    """
    sentence = _helped(found[0])
    return f"{found[0].policy}: {sentence}" if len(found) > 1 else sentence


def _helped(chain: Chain) -> str:
    wins = chain.link("win rate")
    if wins is None or wins.estimate is None:
        return "Whether it helped was not measured: this run has no win rate."
    share = percents(wins.estimate, 0.5)[0]
    return {
        "holds": f"The judge prefers the tuned model: it wins {share}, and the interval excludes 50 %.",
        "warning": f"The judge prefers the tuned model ({share}), but at equal length no effect can be seen.",
        "fails": f"It got worse: the judge prefers the start; the tuned model wins {share}.",
        "not clear": f"No effect can be seen: the tuned model wins {share}, and the interval includes 50 %.",
    }.get(wins.verdict, f"Too few prompts to tell whether it helped ({wins.estimate['prompts']}).")


def caution(chain: Chain) -> str:
    """The caveats of a win by this judge; "" without a win."""
    if chain.verdict("win rate") not in ("holds", "warning"):
        return ""
    judge, said = chain.verdict("judge"), []
    if judge == "not measured":
        said.append("How far this judge agrees with people was not measured.")
    elif judge != "holds":
        said.append("The judge itself was not shown to agree with people, so people might not prefer the tuned model.")
    if chain.verdict("gold") == "fails":
        said.append("A measure that nothing was trained on fell.")
    if chain.verdict("openings") == "warning":
        said.append("Many of its responses begin alike.")
    return " ".join(said)


def next_step(run: Run, chain: Chain, stopping: str = "") -> str:
    """What to do next: address the greatest doubt about the verdict of the run.

    Args:
        stopping: why the audit of the labels advises against training on them, if it does.
    """
    if stopping:
        return f"Do not train on these labels as they are: {stopping}."
    judge = chain.verdict("judge")
    if judge == "not measured" and chain.link("judge"):
        return "Measure how far the judge agrees with people, on pairs that people compared: rlaif eval alignment."
    if chain.link("judge") and judge != "holds":
        return (
            "Use a judge that agrees with people, or show that this one does on more pairs (rlaif eval alignment): "
            "until then, do not trust any reward here."
        )
    if chain.verdict("win rate") == "not measured":
        if chain.policy:
            return "Compare with the start on prompts that were not trained on: rlaif generate, rlaif eval win-rate."
        return "Train on them: rlaif train-rm, then rlaif ppo." if run.making("preferences") else ""
    return _after_a_win_rate(chain, run)


def _after_a_win_rate(chain: Chain, run: Run) -> str:
    verdict = chain.verdict("win rate")
    if verdict == "too few to tell":
        return "Compare on more prompts: a hundred or more."
    if verdict == "not clear":
        rose = any(s.results.get("reward_last", 0) > s.results.get("reward_first", 0) for s in run.of("ppo"))
        more = (
            "train longer, on more prompts"
            if rose
            else "the reward did not rise: try a higher --lr or a lower --kl-coef"
        )
        return f"Compare on more prompts for a narrower interval, or {more}."
    if verdict == "fails":
        return "Read the samples below for what went wrong, and try a higher --kl-coef or fewer --steps."
    if "fails" in (chain.verdict("gold"), chain.verdict("harmless")) or chain.verdict("openings") == "warning":
        return "The reward is being gamed: read the samples below, and try a higher --kl-coef or fewer --steps."
    if verdict == "warning" or chain.verdict("length") == "fails":
        return "Train with --length-penalty, and compare at equal length again: so far the gain may be length alone."
    wins = win_stage(run, next((stage for stage in run.stages if stage.name == chain.policy), None))
    taught_by = [judge_name(stage.settings) for stage in run.making("preferences", "policy")]
    if wins and judge_name(wins.settings) in taught_by:
        return "Compare with a different judge, or with people (rlaif annotate): training aimed at this judge."
    return "Repeat it with other seeds (a matrix in the pipeline file), and let people compare some (rlaif annotate)."
