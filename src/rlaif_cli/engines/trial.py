"""Whether transformers computes a model right in batches: found by trying it when the engine is opened.

Sequences of different lengths are padded on the left, and sampling goes token by token over a cache. Some models have
their positions counted from the padding, or a state that runs through it; in a few the cache gives other numbers. What
they then say looks like an answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from rlaif_cli.errors import ModelError

_LENGTHS = (3, 11)  # of the prompts that are tried together
_NEW = 3  # tokens that are sampled after each; the last one's distribution is looked at
_SHARE = 0.2  # of what another prompt changes; a fault that is smaller is not told from rounding in half precision


def works_padded(model: Any, padded: Callable[[list[list[int]]], tuple[Any, Any]], eos_ids: Sequence[int]) -> bool:
    """Whether sequences of different lengths may go through the model together; else equally long ones alone may.

    Distances are of total variation between next-token distributions, from 0 to 1.

    Args:
        padded: rows of tokens -> (input ids, attention mask), padded on the left.

    Raises:
        ModelError: not even a single sequence is computed as the model's own forward computes it.
    """
    import torch

    rows = _rows(model, set(eos_ids))
    change = _distance(*(_next(model, row) for row in rows))
    allowed = 1e-3 if model.dtype == torch.float32 else 0.03 + _SHARE * change
    reason = ""
    for batches in ([rows], [[row] for row in rows]):
        try:
            found = max(_error(model, padded, batch) for batch in batches)
        except Exception as error:  # whatever layers raise that do not know padding, or a cache
            reason = f"{type(error).__name__}: {error}"
            continue
        if found <= allowed:
            return len(batches) == 1
        reason = "what it samples token by token is not what its own forward says"
    raise ModelError(
        f"transformers cannot sample from this kind of model ({model.config.model_type}) here: {reason}",
        hint="--engine vllm",
    )


def _rows(model: Any, ends: set[int]) -> list[list[int]]:
    vocabulary = [token for token in range(min(model.config.get_text_config().vocab_size, 10_000)) if token not in ends]
    draw = random.Random(0)
    return [draw.choices(vocabulary, k=length) for length in _LENGTHS]


def _next(model: Any, row: list[int]) -> Any:
    """The next token's distribution after a sequence by itself, without a cache: [vocabulary]."""
    import torch

    ids = torch.tensor([row], device=model.device)
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[0, -1].float().softmax(-1)


def _error(model: Any, padded: Callable[[list[list[int]]], tuple[Any, Any]], batch: list[list[int]]) -> float:
    """The largest distance between what a batch computes and what each sequence does alone."""
    import torch

    ids, mask = padded(batch)
    with torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        scored = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1]
        sampled = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=_NEW,
            min_new_tokens=_NEW,
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
