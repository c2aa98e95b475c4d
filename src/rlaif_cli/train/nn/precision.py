"""Number formats for training."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from rlaif_cli.models.precision import has_bf16
from rlaif_cli.train.nn.heads import device
from rlaif_cli.train.parallel.distributed import world_size


def autocast(precision: str) -> Any:
    """A context for bf16 autocast over fp32 weights, or a null context in fp32.

    Enter it once per optimizer step, so that each weight is cast once per step and not once per micro-batch.
    """
    if frozen_dtype(precision) == torch.float32:
        return contextlib.nullcontext()
    # No cache with sharded weights: it would keep every gathered weight in memory for the whole step.
    return torch.autocast(device().type, dtype=torch.bfloat16, cache_enabled=world_size() == 1)


def frozen_dtype(precision: str) -> torch.dtype:
    """The dtype of weights that are not trained: the compute dtype."""
    fp32 = precision == "fp32" or (precision == "auto" and not has_bf16())
    return torch.float32 if fp32 else torch.bfloat16
