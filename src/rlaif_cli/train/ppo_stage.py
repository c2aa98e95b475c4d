"""PPO as a stage: the reward, the judge's context budget and the held-out comparisons that its config names."""

from __future__ import annotations

from typing import Any

from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.engines import EnginePool
from rlaif_cli.judge.compare import comparer
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.judge.context_budget import ContextBudget
from rlaif_cli.train.ppo import train_ppo
from rlaif_cli.train.reward_source import RewardSource, reward_source
from rlaif_cli.ui.progress import ProgressCallback


def run(config: PPOConfig, engines: EnginePool, *, progress: ProgressCallback) -> dict[str, Any]:
    """The stage as `registry.py` has it; `engines` are for the judge that gives the reward."""

    def make_reward(load_adapter: Any) -> RewardSource:
        return reward_source(config, engines, load_adapter)

    checks: dict[str, Any] = {}
    if config.judge is not None:
        judge = config.reward_judge
        budget = ContextBudget(judge, load_constitution(judge.constitution))
        checks["judge_fits"] = lambda messages: budget.check_length(messages, config.max_tokens)
    with EnginePool() as others:  # separate from the pool of the reward's judge, which stays open
        compare = comparer(config.eval_comparison, others) if config.eval_judge else None
        return train_ppo(config, make_reward, compare, **checks, progress=progress)
