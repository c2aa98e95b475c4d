"""The transformers engine: kinds of models that it computes right padded, alone, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import families
from rlaif_cli.engines.trial import supports_left_padding
from rlaif_cli.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")


def left_padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


def tried(family: str) -> bool:
    model: Any = families.tiny_model(family).eval()
    return supports_left_padding(model, left_padded, [2])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "mamba2", "qwen3_next", "gpt_oss"])
def test_most_kinds_of_models_are_right_in_padded_batches(family: str) -> None:
    assert tried(family)


@pytest.mark.parametrize("family", ["rwkv", "recurrent_gemma", "bart"])
def test_models_whose_state_or_positions_run_through_the_padding_go_alone(family: str) -> None:
    assert not tried(family)


@pytest.mark.parametrize(
    "family, reason", [("doge", "differs from its own forward pass"), ("roberta", "with a cache"), ("jamba", "Error")]
)
def test_models_that_are_wrong_even_alone_are_refused(family: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as refused:
        tried(family)
    assert refused.value.hint == "--engine vllm"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_fault(dtype: torch.dtype) -> None:
    assert supports_left_padding(families.tiny_model("llama").eval().to(dtype), left_padded, [2])
