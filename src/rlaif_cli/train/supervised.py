"""Passes over a fixed data set, resumable at every checkpoint: what `train-rm` and `sft` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlaif_cli.config import EpochsConfig
from rlaif_cli.console import ProgressCallback
from rlaif_cli.train import loop
from rlaif_cli.train.checkpoint import MetricsLog, TrainState

TrainStep = Callable[[torch.optim.Optimizer, list[int]], dict[str, float]]


def run_epochs(
    config: EpochsConfig,
    settings: dict[str, Any],
    folder: Path,
    model: Any,
    count: int,
    train_step: TrainStep,
    progress: ProgressCallback,
) -> None:
    """Train `model` for `config.epochs` passes over `count` items.

    Args:
        settings: all that decides the result; a resumed run must have the same.
        train_step: one optimizer step on the items of these numbers; returns what is logged, `loss` among it.
    """
    optimizer = loop.make_optimizer([(model, config.lr)], config)
    state = TrainState(folder, settings, {"model": model}, optimizer)
    position = state.load() or {"step": 0}
    log = MetricsLog(folder, keep_through_step=position["step"])
    batches = [
        batch for epoch in range(config.epochs) for batch in epoch_batches(count, config.batch_size, config.seed, epoch)
    ]
    save_every = config.save_every or len(batches) // config.epochs
    for step in range(position["step"], len(batches)):
        lr = loop.set_learning_rate(optimizer, config, step, len(batches))
        numbers = train_step(optimizer, batches[step])
        log.add(step + 1, **numbers, lr=lr)
        if (step + 1) % save_every == 0 and step + 1 < len(batches):
            state.save({"step": step + 1})
        floor = f" (floor {numbers['entropy_floor']:.4f})" if "entropy_floor" in numbers else ""
        progress(step + 1, len(batches), f"loss {numbers['loss']:.4f}{floor}")
    log.close()


def epoch_batches(count: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    """A shuffled pass over `count` items in batches of `size`; a last small batch is kept."""
    order = np.random.default_rng([seed, epoch]).permutation(count).tolist()
    return [order[i : i + size] for i in range(0, count, size)]
