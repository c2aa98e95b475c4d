"""rlaif ppo"""

from __future__ import annotations

from typing import Any

import typer

from rlaif_cli import console
from rlaif_cli.commands.options import command
from rlaif_cli.config import JudgeConfig, PPOConfig


def run(config: PPOConfig) -> int:
    from rlaif_cli.engines import EnginePool

    with EnginePool() as engines, console.progress("ppo") as progress:
        results = train(config, engines, progress)
    if config.dry_run:
        sequences = config.prompts_per_step * config.n
        console.say(f"{results['prompts']} prompts, {config.steps} steps of {sequences} sequences")
        return 0
    console.say(summary(results))
    console.say(f"ppo: the tuned policy is in {config.output}")
    return 0


def train(config: PPOConfig, engines: Any, progress: Any) -> dict[str, Any]:
    """Bring the trainer and, with `--judge`, a judge together: training knows of no other stage."""
    from rlaif_cli import constitution as constitutions
    from rlaif_cli import models
    from rlaif_cli.train.ppo import train_ppo
    from rlaif_cli.train.rewards import JudgeScorer

    def judge() -> JudgeScorer:
        wanted = JudgeConfig(
            judge=config.judge or "",
            constitution=config.constitution or "",
            method="contrast",
            principles=config.principles,
            contrast_scale=config.contrast_scale,
            engine_memory=config.engine_memory,
            seed=config.seed,
        )
        return JudgeScorer(wanted, engines.get(wanted, wanted.judge))

    if config.judge is not None and config.constitution is not None:  # found out before compute is spent
        constitutions.load(config.constitution)
        if config.judge != models.FAKE:
            models.resolve(config.judge)
    return train_ppo(config, judge, progress=progress)


def summary(results: dict[str, Any]) -> str:
    return (
        f"ppo: {results['steps']} steps, reward {results['reward_first']:.3f} -> {results['reward_last']:.3f} "
        f"(first and last fifth), KL {results['kl_last']:.2f} nats a response, "
        f"{results['samples_per_second']:.1f} samples/s"
    )


def register(app: typer.Typer) -> None:
    command(app, "ppo", PPOConfig, run)
