"""Measure how fast a model trains on this machine: two steps of a reward model on random pairs, for plans."""

from __future__ import annotations

import time
from typing import Any

import torch

from rlaif_cli.config.train import RewardModelConfig
from rlaif_cli.models.resolve import resolve_model
from rlaif_cli.pipeline.plan.throughput import Rate
from rlaif_cli.train.nn.packing import Group
from rlaif_cli.train.reward_model import Pair, train_step, untrained
from rlaif_cli.train.runtime.optim import make_optimizer

_PAIRS, _PROMPT, _RESPONSE = 16, 96, 64


def measure(model: str, **settings: Any) -> Rate:
    """Train one warm-up step and one timed step; the caller measures memory.

    Args:
        settings: those of `TrainConfig` that affect speed and memory.
    """
    config = RewardModelConfig(preferences="-", model=model, output="-", **settings)
    started = time.monotonic()
    trained = untrained(resolve_model(model), config)
    optimizer = make_optimizer([(trained, 1e-6)], config)
    start = time.monotonic() - started
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(0, min(1000, trained.config.vocab_size), (count,), generator=draw).tolist()

    pairs = [Pair(Group(tokens(_PROMPT), (tokens(_RESPONSE), tokens(_RESPONSE))), 0.7, "") for _ in range(_PAIRS)]
    for _ in range(2):
        started = time.monotonic()
        train_step(trained, optimizer, pairs, config)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    seconds = time.monotonic() - started
    return Rate(train=round(sum(pair.group.tokens for pair in pairs) / seconds, 1), start=round(start, 1))
