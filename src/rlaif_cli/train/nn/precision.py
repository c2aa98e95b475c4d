"""Which number formats a model trains in."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from rlaif_cli.models.precision import has_bf16
from rlaif_cli.train.nn.heads import device
from rlaif_cli.train.parallel.distributed import world_size


def autocast(precision: str) -> Any:
    """bf16 autocast over fp32 weights, or plain fp32.

    Held around a whole optimizer step, so that each weight is cast once and not once a micro-batch.
    """
    if frozen_dtype(precision) == torch.float32:
        return contextlib.nullcontext()
    # A sharded weight is whole for a moment only, and a cast one would be kept for all of the step.
    return torch.autocast(device().type, dtype=torch.bfloat16, cache_enabled=world_size() == 1)


def frozen_dtype(precision: str) -> torch.dtype:
    """The dtype of weights that are only read: the one that is computed in."""
    plain = precision == "fp32" or (precision == "auto" and not has_bf16())
    return torch.float32 if plain else torch.bfloat16
