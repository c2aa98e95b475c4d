"""Check, when the engine is opened, that transformers computes a model correctly in padded batches and with a cache.

Sequences of different lengths are left-padded, and sampling uses a KV cache. Some models count positions from the
padding, or carry a state through it; for a few the cache gives other numbers. Their output would still look like an
answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from rlaif_cli.config.naming import option
from rlaif_cli.errors import ModelError

_LENGTHS = (3, 11)  # of the two test prompts
_NEW_TOKENS = 3  # sampled after each prompt; the last one's distribution is compared
_TOLERANCE = 0.2  # share of the distance between the two prompts; smaller errors look like half-precision rounding


def supports_left_padding(
    model: Any, padded: Callable[[list[list[int]]], tuple[Any, Any]], eos_ids: Sequence[int]
) -> bool:
    """Whether the model can process left-padded sequences of different lengths together.

    Distances are total variation between next-token distributions, from 0 to 1.

    Args:
        padded: rows of tokens -> (input ids, attention mask), padded on the left.

    Raises:
        ModelError: even a single sequence differs from the model's own forward pass.
    """
    import torch

    rows = _rows(model, set(eos_ids))
    change = _distance(*(_next(model, row) for row in rows))
    allowed = 1e-3 if model.dtype == torch.float32 else 0.03 + _TOLERANCE * change
    reason = ""
    for batches in ([rows], [[row] for row in rows]):
        try:
            found = max(_largest_distance(model, padded, batch) for batch in batches)
        except Exception as error:  # layers that do not support padding or a cache raise various types
            reason = f"{type(error).__name__}: {error}"
            continue
        if found <= allowed:
            return len(batches) == 1
        reason = "sampling with a cache differs from its own forward pass"
    raise ModelError(
        f"transformers cannot sample from this kind of model here ({model.config.model_type}): {reason}",
        hint=f"{option('engine')} vllm",
    )


def _rows(model: Any, ends: set[int]) -> list[list[int]]:
    vocabulary = [token for token in range(min(model.config.get_text_config().vocab_size, 10_000)) if token not in ends]
    draw = random.Random(0)
    return [draw.choices(vocabulary, k=length) for length in _LENGTHS]


def _next(model: Any, row: list[int]) -> Any:
    """The next-token distribution after a single sequence, without a cache: [vocabulary]."""
    import torch

    ids = torch.tensor([row], device=model.device)
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[0, -1].float().softmax(-1)


def _largest_distance(
    model: Any, padded: Callable[[list[list[int]]], tuple[Any, Any]], batch: list[list[int]]
) -> float:
    """The largest distance between the results of a batch and those of each sequence alone."""
    import torch

    ids, mask = padded(batch)
    with torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        scored = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1]
        sampled = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=_NEW_TOKENS,
            min_new_tokens=_NEW_TOKENS,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    errors = [
        _distance(logits.float().softmax(-1), _next(model, row)) for logits, row in zip(scored, batch, strict=True)
    ]
    new = sampled.sequences[:, ids.shape[1] : -1].tolist()
    for logits, row, tokens in zip(sampled.logits[-1], batch, new, strict=True):
        errors.append(_distance(logits.float().softmax(-1), _next(model, row + tokens)))
    return max(errors)


def _distance(p: Any, q: Any) -> float:
    return float((p - q).abs().sum() / 2)
