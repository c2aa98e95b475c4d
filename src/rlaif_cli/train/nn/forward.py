"""The forward passes of training: log-probs of responses, and rewards and values of packed sequences.

Log-probs come from the model's own `forward`, including whatever it does to its logits (a scale, a cap, another norm).
A model that cannot take packed sequences (see `selftest.py`) gets one sequence at a time.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from rlaif_cli.models.transformers_internals import attention_name
from rlaif_cli.train.math.logprobs import gather_logprobs
from rlaif_cli.train.nn import attention
from rlaif_cli.train.nn.lora import Adapted
from rlaif_cli.train.nn.packing import Packed
from rlaif_cli.train.parallel.distributed import with_gathered_weights


def packs(model: Any) -> bool:
    """Whether the model takes packed sequences, that is, whether `selftest` gave it the attention for them."""
    return attention_name(_module(model).config) == attention.NAME


@with_gathered_weights
def response_logprobs(model: Any, batch: Packed, temperature: float) -> Tensor:
    """log p of every response token, [B, n, R], nats; 0 at padding. Computes logits only at real response tokens."""
    mask = batch.response_mask
    module = model.activate() if isinstance(model, Adapted) else model
    if packs(model):
        logits = _logits(module, batch.input_ids, batch.predictor[mask], **_packing(batch))
        found = gather_logprobs(logits, batch.response_ids[mask], temperature)
    else:
        found = torch.cat([_sequence_logprobs(module, ids, prompt, temperature) for ids, prompt in _sequences(batch)])
    return found.new_zeros(mask.shape).masked_scatter(mask, found)


@with_gathered_weights
def rewards(model: Any, batch: Packed) -> Tensor:
    """The reward of every branch, [B, n]: the head's output at its last token, found by position, not by a pad id."""
    batch = batch if packs(model) else batch.split_branches()
    return _scored(model, hidden_states(model, batch)[batch.last])


@with_gathered_weights
def values(model: Any, batch: Packed) -> Tensor:
    """The value before each response token, [B, n, R]."""
    batch = batch if packs(model) else batch.split_branches()
    return _scored(model, hidden_states(model, batch)[batch.predictor])


def hidden_states(model: Any, batch: Packed) -> Tensor:
    """The body's last hidden states, [T, d]. For a model that cannot pack, `batch` comes from `split_branches()`."""
    module = model.activate() if isinstance(model, Adapted) else model
    body = getattr(module, module.base_model_prefix)
    if packs(model):
        states: Tensor = body(input_ids=batch.input_ids, use_cache=False, **_packing(batch)).last_hidden_state[0]
        return states
    lengths = [prompt + branch for prompt, branch in batch.layout.groups]
    parts = batch.input_ids.split(lengths, dim=1)
    return torch.cat([body(input_ids=ids, use_cache=False).last_hidden_state[0] for ids in parts])


def _module(model: Any) -> Any:
    return model.shared if isinstance(model, Adapted) else model


def _packing(batch: Packed) -> dict[str, Any]:
    """The arguments of a forward pass over packed sequences, besides the tokens."""
    mask = attention.placeholder_mask(batch.input_ids.device)
    return {"attention_mask": mask, "position_ids": batch.position_ids, "layout": batch.layout}


def _sequences(batch: Packed) -> list[tuple[Tensor, int]]:
    """(token ids [1, L], prompt length) of every branch with its prompt, in the order of [B, n]."""
    batch = batch.split_branches()
    groups = batch.layout.groups
    return [
        (ids, prompt) for ids, (prompt, _) in zip(batch.input_ids.split([*map(sum, groups)], 1), groups, strict=True)
    ]


def _sequence_logprobs(model: Any, ids: Tensor, prompt: int, temperature: float) -> Tensor:
    """Log-probs of the tokens after the prompt, [L - prompt]."""
    predictors = torch.arange(prompt - 1, ids.shape[1] - 1, device=ids.device)
    return gather_logprobs(_logits(model, ids, predictors), ids[0, prompt:], temperature)


def _logits(model: Any, ids: Tensor, positions: Tensor, **packing: Any) -> Tensor:
    """The model's own logits at `positions` of ids [1, T]: [positions, V]."""
    # `forward`, not a call: `with_gathered_weights` has already gathered a sharded model's weights.
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits: Tensor = model.forward(input_ids=ids, use_cache=False, logits_to_keep=positions, **packing).logits[0]
        return logits
    logits = model.forward(input_ids=ids, use_cache=False, **packing).logits[0]
    return logits[positions]


def _scored(model: Any, states: Tensor) -> Tensor:
    """The head's output, in fp32: rewards matter by their differences, and bf16 has only three digits."""
    weight, bias = model.score.weight.float(), model.score.bias
    with torch.autocast(states.device.type, enabled=False):
        score = torch.nn.functional.linear(states.float(), weight, None if bias is None else bias.float())
    return score[..., 0]
