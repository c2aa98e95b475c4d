"""What every training loop needs: precision, optimizer, schedule, seeds, inputs, and the checkpoint at its end."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from rlaif_cli.config.train import TrainConfig
from rlaif_cli.errors import DivergedError, ModelError, UsageError
from rlaif_cli.train.nn.heads import device, packs, trained_parameters
from rlaif_cli.train.nn.precision import frozen_dtype
from rlaif_cli.train.parallel.distributed import full_tensor, shard, sum_gradients, world_size


def set_seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)


def loading_device(config: TrainConfig) -> torch.device:
    """Where a model for `sharded` is loaded: not onto a GPU, where it would be whole for a moment."""
    return torch.device("cpu") if world_size() > 1 and not config.lora_rank else device()


def sharded(model: Any, config: TrainConfig) -> Any:
    """A model that is trained, or computes beside one, split over the processes; with LoRA each holds it whole.

    Raises:
        ModelError: it reads one sequence at a time: processes would not ask for its blocks equally often.
    """
    if world_size() > 1 and not config.lora_rank and not packs(model):
        raise ModelError(
            f"this kind of model ({model.config.model_type}) is trained one sequence at a time, which cannot be split "
            "over processes",
            where=config.model,
            hint="one process, or --lora-rank",
        )
    return model if config.lora_rank else shard(model, frozen_dtype(config.precision))


def make_optimizer(groups: Iterable[tuple[Any, float]], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over (model, learning rate) groups; eps 1e-5 (arXiv 2403.17031).

    Raises:
        UsageError: the 8-bit one is asked for, and bitsandbytes or a GPU is not there.
    """
    trained = [{"params": [*trained_parameters(model).values()], "lr": lr, "peak_lr": lr} for model, lr in groups]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(trained, eps=1e-5, weight_decay=config.weight_decay, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UsageError("--optimizer adamw-8bit needs a package", hint="pip install bitsandbytes") from None
    if not torch.cuda.is_available():
        raise UsageError("--optimizer adamw-8bit needs a GPU", hint="--optimizer adamw")
    if world_size() > 1 and not config.lora_rank:
        raise UsageError("--optimizer adamw-8bit cannot be split over processes", hint="--optimizer adamw, or LoRA")
    eight_bit: torch.optim.Optimizer = AdamW8bit(trained, eps=1e-5, weight_decay=config.weight_decay)
    return eight_bit


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, total: int) -> float:
    """Linear warm-up, then linear to 0 (the N+ details); `step` counts from 0. Returns the first group's rate."""
    warmup = max(1, round(config.warmup * total))
    share = (step + 1) / warmup if step < warmup else (total - step) / max(1, total - warmup)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
    first: float = optimizer.param_groups[0]["lr"]
    return first


def clip_and_step(optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    """One optimizer step; returns the gradient's norm before clipping.

    Raises:
        DivergedError: it is infinite or no number; the step is not taken.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sum_gradients(parameters)
    norm = float(full_tensor(nn.utils.clip_grad_norm_(parameters, max_norm)))
    if not math.isfinite(norm):
        raise DivergedError(f"the gradient's norm is {norm}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
