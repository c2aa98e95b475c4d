"""Optimizer, learning-rate schedule, gradient clipping, seeds and sharding, for all training loops."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from rlaif_cli.config.naming import option
from rlaif_cli.config.train import TrainConfig
from rlaif_cli.errors import DivergedError, ModelError, UsageError
from rlaif_cli.train.nn.heads import device, packs, trained_parameters
from rlaif_cli.train.nn.precision import frozen_dtype
from rlaif_cli.train.parallel.distributed import full_tensor, shard, sum_gradients, world_size


def set_seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)


def loading_device(config: TrainConfig) -> torch.device:
    """Where to load a model before `sharded`: the CPU if it will be sharded, because a GPU may not hold all of it."""
    return torch.device("cpu") if world_size() > 1 and not config.lora_rank else device()


def sharded(model: Any, config: TrainConfig) -> Any:
    """Shard a model over the processes; with LoRA each process holds all of it.

    Raises:
        ModelError: the model cannot pack sequences: the processes would gather its blocks a different number of times.
    """
    if world_size() > 1 and not config.lora_rank and not packs(model):
        raise ModelError(
            f"this kind of model ({model.config.model_type}) is trained one sequence at a time, which cannot be split "
            "over several processes",
            where=config.model,
            hint=f"use one process, or {option('lora_rank')}",
        )
    return model if config.lora_rank else shard(model, frozen_dtype(config.precision))


def make_optimizer(groups: Iterable[tuple[Any, float]], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over (model, learning rate) groups; eps 1e-5 (arXiv 2403.17031).

    Raises:
        UsageError: 8-bit AdamW without bitsandbytes or a GPU, or with sharded weights.
    """
    trained = [{"params": [*trained_parameters(model).values()], "lr": lr, "peak_lr": lr} for model, lr in groups]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(trained, eps=1e-5, weight_decay=config.weight_decay, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UsageError(f"{option('optimizer')} adamw-8bit needs a package", hint="pip install bitsandbytes") from None
    if not torch.cuda.is_available():
        raise UsageError(f"{option('optimizer')} adamw-8bit needs a GPU", hint=f"use {option('optimizer')} adamw")
    if world_size() > 1 and not config.lora_rank:
        raise UsageError(
            f"{option('optimizer')} adamw-8bit cannot be sharded over processes",
            hint=f"use {option('optimizer')} adamw, or LoRA",
        )
    eight_bit: torch.optim.Optimizer = AdamW8bit(trained, eps=1e-5, weight_decay=config.weight_decay)
    return eight_bit


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, total: int) -> float:
    """Linear warm-up, then linear decay to 0 (arXiv 2403.17031); `step` is 0-based. Returns the first group's rate."""
    warmup = max(1, round(config.warmup * total))
    share = (step + 1) / warmup if step < warmup else (total - step) / max(1, total - warmup)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
    first: float = optimizer.param_groups[0]["lr"]
    return first


def clip_and_step(optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    """Take one optimizer step; returns the gradient norm before clipping.

    Raises:
        DivergedError: the norm is infinite or NaN; no step is taken.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sum_gradients(parameters)
    norm = float(full_tensor(nn.utils.clip_grad_norm_(parameters, max_norm)))
    if not math.isfinite(norm):
        raise DivergedError(f"the gradient norm is {norm}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
