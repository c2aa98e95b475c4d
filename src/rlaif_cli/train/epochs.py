"""The training loop of `train-rm` and `sft`: epochs over a fixed data set, resumable at every checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from rlaif_cli.config.train import EpochsConfig
from rlaif_cli.train import dataset
from rlaif_cli.train.runtime.best_weights import BestWeights
from rlaif_cli.train.runtime.checkpoint import TrainState
from rlaif_cli.train.runtime.metrics_log import MetricsLog
from rlaif_cli.train.runtime.optim import make_optimizer, set_learning_rate
from rlaif_cli.ui import messages
from rlaif_cli.ui.progress import ProgressCallback

TrainStep = Callable[[torch.optim.Optimizer, list[int]], dict[str, float]]
T = TypeVar("T")


def run_epochs(
    config: EpochsConfig,
    settings: dict[str, Any],
    model: Any,
    count: int,
    train_step: TrainStep,
    held_out_loss: Callable[[], float] | None,
    progress: ProgressCallback,
) -> dict[str, Any]:
    """Train `model` for `config.epochs` passes over `count` items, stopping early by `config.patience`.

    Args:
        settings: everything that determines the result; a resumed run must have the same.
        train_step: one optimizer step on the items with these indices; returns the metrics to log, including `loss`.
        held_out_loss: None if nothing is held out.

    Returns:
        `step`, the step whose weights `model` now holds, and `of`, the number of steps without early stopping.
    """
    folder = Path(config.output)
    optimizer = make_optimizer([(model, config.lr)], config)
    state = TrainState(folder, settings, {"model": model}, optimizer)
    position = state.load() or {"step": 0, "best": None}
    best = BestWeights(folder, model, position["best"])
    log = MetricsLog(config, folder, resume_step=position["step"])
    batches = [
        batch for epoch in range(config.epochs) for batch in epoch_batches(count, config.batch_size, config.seed, epoch)
    ]
    steps_per_epoch = len(batches) // config.epochs
    for step in range(position["step"], len(batches)):
        if best.exhausted(config.patience):
            break
        done = step + 1
        lr = set_learning_rate(optimizer, config, step, len(batches))
        numbers = train_step(optimizer, batches[step])
        if held_out_loss and (done % (config.eval_every or steps_per_epoch) == 0 or done == len(batches)):
            numbers["held_out_loss"] = held_out_loss()
            if config.patience:
                best.update(numbers["held_out_loss"], done)
        log.add(done, **numbers, lr=lr)
        if state.due(done, len(batches), config.save_every):
            state.save({"step": done, "best": best.record})
            best.state_saved()
        floor = f" (floor {numbers['entropy_floor']:.4f})" if "entropy_floor" in numbers else ""
        progress(done, len(batches), f"loss {numbers['loss']:.4f}{floor}", numbers["loss"])
    log.close()
    if best.record:
        best.restore()
    return {"step": best.record["step"] if best.record else len(batches), "of": len(batches)}


def selection_and_report(
    held_out: Sequence[T], prompt_of: Callable[[T], str], config: EpochsConfig
) -> tuple[list[T], list[T]]:
    """Split held-out items by prompt into (those that `patience` selects weights by, those that are reported).

    Two halves, because the lowest of several losses is partly luck: the loss that selected the weights is too
    optimistic to report. Without `patience` nothing is selected, and both are the same list; so they are if fewer than
    two prompts are held out.
    """
    everything = list(held_out)
    selecting = dataset.held_out(map(prompt_of, everything), 0.5, config.seed) if config.patience else set()
    if not selecting:
        if config.patience and everything:
            messages.warn("the only held-out prompt both selects the weights and measures them: raise --eval-fraction")
        elif config.patience:
            messages.warn("--patience has no effect: no prompt is held out")
        return everything, everything
    sides = [[each for each in everything if (prompt_of(each) in selecting) == side] for side in (True, False)]
    return sides[0], sides[1]


def epoch_batches(count: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    """A shuffled pass over `count` items in batches of `size`; a smaller last batch is kept."""
    order = dataset.epoch_order(count, seed, epoch).tolist()
    return [order[i : i + size] for i in range(0, count, size)]
