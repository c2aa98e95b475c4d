"""The stages of a pipeline, each with the function that its subcommand also runs.

Each function imports what its stage needs, so that `rlaif --help` stays fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlaif_cli.config.engine import GenerateConfig, ReviseConfig
from rlaif_cli.config.evaluate import (
    AlignmentConfig,
    BestOfNConfig,
    HarmlessRateConfig,
    RewardConfig,
    RewardModelEvalConfig,
    WinRateConfig,
)
from rlaif_cli.config.judge import LabelConfig
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.config.report import ReportConfig
from rlaif_cli.config.train import RewardModelConfig, SftConfig, TrainConfig
from rlaif_cli.pipeline.file import StageKind
from rlaif_cli.ui.progress import ProgressCallback

# run(config, engines, progress) -> the stage's numbers; `engines` is an EnginePool.
Run = Callable[[Any, Any, ProgressCallback], dict[str, Any]]


def generate(config: GenerateConfig, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
    from rlaif_cli.stages import generate

    return vars(generate.generate(config, engines, progress=progress))


def revise(config: ReviseConfig, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
    from rlaif_cli.stages import revise

    return vars(revise.revise(config, engines, progress=progress))


def label(config: LabelConfig, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
    from rlaif_cli.stages import label

    return label.label(config, engines, progress=progress).as_numbers()


def sft(config: SftConfig, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
    from rlaif_cli.train.sft import train_sft

    return train_sft(config, progress=progress)


def train_rm(config: RewardModelConfig, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
    from rlaif_cli.train.reward_model import train_reward_model

    return train_reward_model(config, progress=progress)


def ppo(config: PPOConfig, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
    from rlaif_cli.engines import EnginePool
    from rlaif_cli.judge.compare import comparer
    from rlaif_cli.judge.constitution_files import load_constitution
    from rlaif_cli.judge.context_budget import ContextBudget
    from rlaif_cli.train.ppo import train_ppo
    from rlaif_cli.train.reward_source import reward_source

    def make_reward(load_adapter: Any) -> Any:
        return reward_source(config, engines, load_adapter)

    checks: dict[str, Any] = {}
    if config.judge is not None:
        judge = config.reward_judge
        budget = ContextBudget(judge, load_constitution(judge.constitution))
        checks["judge_fits"] = lambda messages: budget.check_length(messages, config.max_tokens)
    with EnginePool() as others:  # separate from the pool of the reward's judge, which stays open
        compare = comparer(config.eval_comparison, others) if config.eval_judge else None
        return train_ppo(config, make_reward, compare, **checks, progress=progress)


def alignment(config: AlignmentConfig, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
    from rlaif_cli.evaluation import alignment

    return alignment.alignment(config, engines, progress=progress)


def win_rate(config: WinRateConfig, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
    from rlaif_cli.evaluation import win_rate

    return win_rate.win_rate(config, engines, progress=progress)


def harmless_rate(config: HarmlessRateConfig, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
    from rlaif_cli.evaluation import harmless_rate

    return harmless_rate.harmless_rate(config, engines, progress=progress)


def reward_model(config: RewardModelEvalConfig, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
    from rlaif_cli.evaluation import reward_model

    return reward_model.reward_model(config)


def best_of_n(config: BestOfNConfig, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
    from rlaif_cli.engines.server_account import until_paused
    from rlaif_cli.evaluation import best_of_n
    from rlaif_cli.judge.compare import comparer

    return until_paused(lambda config: best_of_n.best_of_n(config, comparer(config, engines)))(config)


def reward(config: RewardConfig, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
    from rlaif_cli.evaluation import reward

    return reward.reward(config, engines)


def report(config: ReportConfig, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
    from rlaif_cli.report.write import write

    return {"report": str(write(config)[0])}


STAGES: dict[str, StageKind] = {
    "generate": StageKind(GenerateConfig, generate, ".jsonl"),
    "revise": StageKind(ReviseConfig, revise, ".jsonl"),
    "label": StageKind(LabelConfig, label, ".jsonl"),
    "sft": StageKind(SftConfig, sft, ""),
    "train-rm": StageKind(RewardModelConfig, train_rm, ""),
    "ppo": StageKind(PPOConfig, ppo, ""),
    "eval alignment": StageKind(AlignmentConfig, alignment, ".json"),
    "eval win-rate": StageKind(WinRateConfig, win_rate, ".json"),
    "eval harmless-rate": StageKind(HarmlessRateConfig, harmless_rate, ".json"),
    "eval reward-model": StageKind(RewardModelEvalConfig, reward_model, ".json"),
    "eval best-of-n": StageKind(BestOfNConfig, best_of_n, ".json"),
    "eval reward": StageKind(RewardConfig, reward, ".json"),
    "report": StageKind(ReportConfig, report, ".html"),
}


def run_stage(name: str, config: Any, /, *, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
    """Run a stage. A training stage first closes the engines, then starts `--num-processes` processes."""
    if not isinstance(config, TrainConfig):
        return STAGES[name].run(config, engines, progress)
    from rlaif_cli.train.parallel import launch

    engines.close()
    if config.num_processes == 1 or config.dry_run:
        return STAGES[name].run(config, engines, progress)
    try:
        return launch.start(name, config, quiet=True)
    except launch.AlreadyReported as error:
        raise launch.AlreadyReported(error.exit_code, "one of its processes failed, see above") from error
