"""Measure how fast an engine runs a model on this machine, for plans."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif_cli.engines import open_engine
from rlaif_cli.engines.base import Engine, Failed, Request, Sampling
from rlaif_cli.pipeline.plan.throughput import Rate

_PREFILL = (24, 192)  # prompts, tokens per prompt
_DECODE = (48, 48)  # responses decoded together, tokens per response


def measure(name: str, path: Path, **options: Any) -> Rate:
    """Start the engine, prefill one batch and decode another; the caller measures memory."""
    started = time.monotonic()
    engine = open_engine(name, path, **options)
    start = time.monotonic() - started
    try:
        _prefill_seconds(engine, _prompts(engine, 4, 64, seed=0))  # warm-up
        count, length = _PREFILL
        prefill = count * length / _prefill_seconds(engine, _prompts(engine, count, length, seed=1))
        return Rate(prefill=round(prefill, 1), decode=round(_decode_rate(engine), 1), start=round(start, 1))
    finally:
        engine.close()


def _prompts(engine: Engine, count: int, length: int, seed: int) -> list[list[int]]:
    """Random tokens, so that the prefix cache never hits."""
    draw = random.Random(seed)
    alphabet: list[int] = list(engine.tokenizer.text("the quick brown fox jumps over a lazy dog: 0123456789 and so on"))  # type: ignore[arg-type]
    return [draw.choices(alphabet, k=length) for _ in range(count)]


def _prefill_seconds(engine: Engine, prompts: Sequence[Sequence[int]]) -> float:
    started = time.monotonic()
    for _ in engine.logprobs(Request(place, prompt, choices=prompt[:1]) for place, prompt in enumerate(prompts)):
        pass
    return time.monotonic() - started


def _decode_rate(engine: Engine) -> float:
    count, length = _DECODE
    requests = [Request(place, prompt, seed=place) for place, prompt in enumerate(_prompts(engine, count, 16, seed=2))]
    started = time.monotonic()
    tokens = 0
    for _, found in engine.generate(requests, Sampling(max_tokens=length)):
        tokens += 0 if isinstance(found, Failed) else sum(len(completion.token_ids) for completion in found)
    return tokens / (time.monotonic() - started)
