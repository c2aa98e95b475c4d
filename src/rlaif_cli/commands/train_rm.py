"""rlaif train-rm"""

from __future__ import annotations

from typing import Any

import typer

from rlaif_cli import console
from rlaif_cli.commands.options import command
from rlaif_cli.config import RewardModelConfig


def run(config: RewardModelConfig) -> int:
    from rlaif_cli.train.reward_model import train_reward_model

    with console.progress("train-rm") as progress:
        results = train_reward_model(config, progress=progress)
    if config.dry_run:
        console.say(f"{results['pairs']} pairs, {config.epochs} epochs of batches of {config.batch_size}")
        return 0
    console.say(summary(results))
    console.say(f"train-rm: the reward model is in {config.output}")
    return 0


def summary(results: dict[str, Any]) -> str:
    text = f"train-rm: {results['train_pairs']} pairs"
    held_out = results.get("held_out")
    if held_out:
        low, high = held_out["accuracy_interval"]
        text += (
            f"; held out {held_out['pairs']}: accuracy {held_out['accuracy']:.3f} [{low:.3f}, {high:.3f}], "
            f"loss {held_out['loss']:.4f} (floor {held_out['entropy_floor']:.4f}), "
            f"ECE {held_out['ece']:.3f}, Brier {held_out['brier']:.3f}"
        )
    else:
        text += "; no held-out pair with a preference to measure by"
    return text + f"; reward {results['reward_mean']:.3f} ± {results['reward_std']:.3f}"


def register(app: typer.Typer) -> None:
    command(app, "train-rm", RewardModelConfig, run)
