"""The recorded step samples what transformers' own loop samples; on a GPU it is recorded, elsewhere only taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlaif_cli.engines import transformers as backend
from rlaif_cli.engines.base import Completion, Request, Sampling
from rlaif_cli.engines.transformers import TransformersEngine

PLACE = "cuda" if torch.cuda.is_available() else "cpu"
BATCHES = [[(7, 1), (30, 2), (1, 3)], [(12, 4), (3, 5), (20, 6)], [(200, 7), (1, 8), (5, 9)], [(9, 10)]]


@pytest.fixture
def model(tiny: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).to(PLACE)


@pytest.fixture
def sample(tiny: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """All batches by one engine: by a decoder, or by transformers."""

    def run(decoder: bool, logprobs: str, **sampling: Any) -> list[Completion]:
        monkeypatch.setattr(backend, "replayable", lambda _: decoder)
        engine = TransformersEngine(tiny, model=model, logprobs=logprobs)
        found = []
        for batch in BATCHES:
            requests = [Request(seed, list(range(3, 3 + length)), seed=seed) for length, seed in batch]
            found += [c for _, completions in engine.generate(requests, Sampling(**sampling)) for c in completions]
        return found

    return run


def same(found: list[Completion], expected: list[Completion]) -> None:
    assert [(c.token_ids, c.finish_reason) for c in found] == [(c.token_ids, c.finish_reason) for c in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)


@pytest.mark.parametrize("logprobs", ["raw", "processed"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_decoder_samples_what_transformers_does(sample: Any, logprobs: str, temperature: float) -> None:
    options = {"logprobs": logprobs, "n": 3, "max_tokens": 40, "temperature": temperature}
    expected = sample(False, **options)
    assert {c.finish_reason for c in expected} == {"stop", "length"} if temperature else len(expected) == 30
    same(sample(True, **options), expected)


def test_a_decoder_follows_weights_that_change_in_place(
    tiny: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a trainer's do between its steps: a recorded step reads them where they lie."""
    engines = {}
    for decoder in (True, False):
        engines[decoder] = TransformersEngine(tiny, model=model)
    requests = [Request(seed, [5, 6, 7 + seed], seed=seed) for seed in range(4)]
    before = None
    for _ in range(3):
        found = {}
        for decoder, engine in engines.items():
            monkeypatch.setattr(backend, "replayable", lambda _, decoder=decoder: decoder)
            done = dict(engine.generate(requests, Sampling(n=2, max_tokens=12)))
            found[decoder] = [c for seed in range(4) for c in done[seed]]
        same(found[True], found[False])
        assert before != [c.token_ids for c in found[True]]
        before = [c.token_ids for c in found[True]]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
