"""What every training loop needs: precision, optimizer, schedule, seeds, inputs, and the checkpoint at its end."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rlaif_cli.config.train import TrainConfig
from rlaif_cli.data.paths import set_aside
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import Record
from rlaif_cli.errors import DivergedError, ModelError, UsageError
from rlaif_cli.models.load import set_pad_token
from rlaif_cli.models.metadata import stored_dtype
from rlaif_cli.models.precision import has_bf16
from rlaif_cli.models.tokenizer import ChatTokenizer
from rlaif_cli.train import adapters, distributed, selftest
from rlaif_cli.train.checkpoint import saving
from rlaif_cli.train.models import device, packs, trained_parameters

R = TypeVar("R", bound=Record)


def set_seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)


def autocast(precision: str) -> Any:
    """bf16 autocast over fp32 weights, or plain fp32.

    Held around a whole optimizer step, so that each weight is cast once and not once a micro-batch.
    """
    if frozen_dtype(precision) == torch.float32:
        return contextlib.nullcontext()
    # A sharded weight is whole for a moment only, and a cast one would be kept for all of the step.
    return torch.autocast(device().type, dtype=torch.bfloat16, cache_enabled=distributed.world_size() == 1)


def frozen_dtype(precision: str) -> torch.dtype:
    """The dtype of weights that are only read: the one that is computed in."""
    plain = precision == "fp32" or (precision == "auto" and not has_bf16())
    return torch.float32 if plain else torch.bfloat16


def first_place(config: TrainConfig) -> torch.device:
    """Where a model for `sharded` is loaded: not onto a GPU, where it would be whole for a moment."""
    return torch.device("cpu") if distributed.world_size() > 1 and not config.lora_rank else device()


def sharded(model: Any, config: TrainConfig) -> Any:
    """A model that is trained, or computes beside one, split over the processes; with LoRA each holds it whole.

    Raises:
        ModelError: it reads one sequence at a time: processes would not ask for its blocks equally often.
    """
    if distributed.world_size() > 1 and not config.lora_rank and not packs(model):
        raise ModelError(
            f"this kind of model ({model.config.model_type}) is trained one sequence at a time, which cannot be split "
            "over processes",
            where=config.model,
            hint="one process, or --lora-rank",
        )
    return model if config.lora_rank else distributed.shard(model, frozen_dtype(config.precision))


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
    if distributed.world_size() > 1 and not config.lora_rank:
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
    distributed.sum_gradients(parameters)
    norm = float(distributed.whole(nn.utils.clip_grad_norm_(parameters, max_norm)))
    if not math.isfinite(norm):
        raise DivergedError(f"the gradient's norm is {norm}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


@functools.lru_cache(maxsize=2)  # a step may reach into the next pass
def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of `count` items in a shuffled pass, known from the seed and the pass alone: a resumed run has it too.

    Kept between calls: to shuffle a million prompts again for each of them took longer than a step.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.setflags(write=False)  # all callers share it
    return order


def held_out(keys: Iterable[str], fraction: float, seed: int, *, least: int = 1) -> set[str]:
    """The keys (prompts) that training never sees: `fraction` of the distinct ones, chosen by hash.

    Args:
        least: that many at least; none where not even one more is there.
    """
    distinct = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).hexdigest())
    count = round(fraction * len(distinct))
    return set(distinct[: max(least, count) if fraction > 0 and len(distinct) > least else 0])


def checked_source(
    config: Any, path: str, kind: type[R], check: Callable[[R], str | None], rejected: str = "rejected"
) -> Source[R]:
    """A trainer's input; lines put aside with `skip_invalid` go beside its output folder, into `rejected`."""
    written = set_aside(config.output, rejected) if distributed.is_main() else None
    return Source(path, kind, skip_invalid=config.skip_invalid, rejected_path=written, check=check)


def save_trained_model(config: Any, model: Any, base: Path) -> None:
    """The run's checkpoint; an adapter is merged into it, and stands beside it in a folder of its own."""
    folder = Path(config.output)
    model = distributed.plain(model)
    if not distributed.is_main():
        return
    if config.lora_rank:
        with saving(folder):
            adapters.save(model, config.model, folder / adapters.ADAPTER)
        model = adapters.merge(model)
    save_checkpoint(model, base, folder)


def save_checkpoint(model: Any, base: Path, folder: Path) -> None:
    """A standard checkpoint, in the dtype of the one it started from, with that one's tokenizer.

    A reward model's head stays in fp32, and its pad token is none that ends a turn: transformers finds the end of a
    text by it.
    """
    tokenizer = ChatTokenizer(base)
    head = model.score.state_dict() if hasattr(model, "score") else None
    model.to(getattr(torch, stored_dtype(base)))
    if head is not None:
        model.score.float().load_state_dict(head)
        set_pad_token(model, tokenizer.hf, tokenizer.eos_ids)
    for config in selftest.configs(model.config):
        config.use_cache = True
    with saving(folder):
        model.save_pretrained(folder)
        tokenizer.hf.save_pretrained(folder)
