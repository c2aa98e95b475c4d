"""The recorded step samples what transformers' own loop samples; on a GPU it is recorded, elsewhere only taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from rlaif_cli.engines.base import Completion, Request, Sampling
from rlaif_cli.engines.decoding import recordable
from rlaif_cli.engines.transformers import TransformersEngine
from rlaif_cli.models.load import exact_attention

PLACE = "cuda" if torch.cuda.is_available() else "cpu"
# (prompt tokens, seed): the second fits into what the first has recorded; the others do not.
BATCHES = [[(7, 1), (30, 2), (1, 3)], [(12, 4), (3, 5), (20, 6)], [(200, 7), (1, 8), (5, 9)], [(9, 10)]]


@pytest.fixture
def model(tiny: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).to(PLACE)


@pytest.fixture
def sample(tiny: Path, model: Any) -> Any:
    """All batches by one engine: by a decoder, or by transformers."""

    def run(decoder: bool, logprobs: str, **sampling: Any) -> list[Completion]:
        engine = TransformersEngine(tiny, model=model, logprobs=logprobs)
        engine._recorded = decoder
        found, used = [], []
        for batch in BATCHES:
            requests = [Request(seed, list(range(3, 3 + length)), seed=seed) for length, seed in batch]
            found += [c for _, completions in engine.generate(requests, Sampling(**sampling)) for c in completions]
            used.append(engine._decoder)
        assert len(set(used)) == (3 if decoder else 1) and used[0] is used[1]
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


def test_a_decoder_follows_weights_that_change_in_place(tiny: Path, model: Any) -> None:
    """As a trainer's do between its steps: a recorded step reads them where they lie."""
    engines = {decoder: TransformersEngine(tiny, model=model) for decoder in (True, False)}
    for decoder, engine in engines.items():
        engine._recorded = decoder
    requests = [Request(seed, [5, 6, 7 + seed], seed=seed) for seed in range(4)]
    before, recorded = None, set()
    for _ in range(3):
        found = {}
        for decoder, engine in engines.items():
            done = dict(engine.generate(requests, Sampling(n=2, max_tokens=12)))
            found[decoder] = [c for seed in range(4) for c in done[seed]]
        same(found[True], found[False])
        recorded.add(engines[True]._decoder)
        assert before != [c.token_ids for c in found[True]]
        before = [c.token_ids for c in found[True]]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    assert len(recorded) == 1 and None not in recorded


SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        (transformers.LlamaConfig, {}, True),
        (transformers.Qwen2Config, {}, True),
        (transformers.GPTNeoXConfig, {}, True),
        (
            transformers.LlamaConfig,
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            False,
        ),
        (transformers.LlamaConfig, {"attn_implementation": "eager"}, False),
        (transformers.MistralConfig, {"sliding_window": 8}, False),
        (transformers.Gemma2Config, {"head_dim": 8}, False),
        (transformers.Qwen3NextConfig, {"head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1}, False),
    ],
)
def test_only_models_that_are_the_same_at_every_place_are_recorded(config: Any, options: Any, expected: bool) -> None:
    attention = options.pop("attn_implementation", "sdpa") if options else "sdpa"
    model = AutoModelForCausalLM.from_config(config(**SIZES, **options), attn_implementation=attention)
    assert recordable(model) is expected


def test_no_penalty_of_a_checkpoint_changes_what_is_sampled(tiny: Path, model: Any) -> None:
    requests, found = [Request(0, [5, 6, 7], seed=1)], []
    for penalty in (None, 5.0):
        model.generation_config.repetition_penalty = penalty
        engine = TransformersEngine(tiny, model=model)
        engine._recorded = False
        found += dict(engine.generate(requests, Sampling(n=4, max_tokens=30)))[0]
    same(found[:4], found[4:])


@pytest.mark.parametrize("decoder", [True, False])
def test_of_what_is_sampled_only_the_chosen_tokens_scores_are_kept(
    tiny: Path, model: Any, monkeypatch: pytest.MonkeyPatch, decoder: bool
) -> None:
    """All scores would be rows x tokens x vocabulary numbers: gigabytes, at a real vocabulary."""
    stacked = []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda tensors, dim=0: stacked.append(tensors[0].shape) or stack(tensors, dim))
    engine = TransformersEngine(tiny, model=model)
    engine._recorded = decoder
    list(engine.generate([Request(0, [5, 6, 7], seed=1)], Sampling(n=3, max_tokens=4)))
    assert stacked and set(stacked) == {(3,)}


def test_an_engine_takes_the_attention_that_computes_all_of_a_model() -> None:
    """torch's fused kernel leaves out Gemma 2's cap on the scores."""
    assert exact_attention(transformers.Gemma2Config()) == "eager"
    assert exact_attention(transformers.LlamaConfig()) is None
