"""Attention over prompts with branches, laid end to end without padding.

Each branch attends to its prompt and itself, so the work is what the sequences need and no mask of [T, T] exists.
Models of transformers take it through their attention interface (`attn_implementation=NAME`); calls without a
layout, such as generation's, are plain scaled-dot-product attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rlaif_cli.errors import ModelError

NAME = "rlaif_branches"
Layout = Sequence[tuple[int, ...]]  # per group: tokens of the prompt, then of each branch
_SHORT = 512  # keys up to which the scores of all heads are held in memory
# What a model may ask of its attention that is not done here; doing without it would be another model.
_NOT_DONE = ("softcap", "s_aux", "position_bias")


def register() -> str:
    """Make `NAME` known to transformers; returns it."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def no_mask(device: torch.device | str) -> Tensor:
    """Stands for the mask that the layout makes needless; one with four dimensions is not touched by transformers."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, T, d], key and value [1, key heads, T, d] -> [1, T, heads, d]."""
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return output, None
    _refuse(options, max(map(sum, layout)))
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, rotated ones come in fp32
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) if repeats > 1 else x for x in (key, value))
    return branch_attention(query, key, value, layout, scaling).transpose(1, 2), None


def branch_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None = None) -> Tensor:
    """Causal attention in which a branch sees its prompt and itself. All [1, heads, T, d]."""
    # The first branch goes on where the prompt ends: together they are one causal sequence.
    lengths = [length for prompt, first, *rest in layout for length in (prompt + first, *rest)]
    pieces = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    outputs = []
    for prompt, _, *rest in layout:
        q, k, v = next(pieces)
        outputs.append(causal_attention(q, k, v, scale))
        k_prompt, v_prompt = k[:, :, :prompt], v[:, :, :prompt]
        for _ in rest:
            q, k, v = next(pieces)
            k, v = torch.cat([k_prompt, k], dim=2), torch.cat([v_prompt, v], dim=2)
            outputs.append(causal_attention(q, k, v, scale))
    return torch.cat(outputs, dim=2)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """[1, heads, Q, d] over two [1, heads, K, d] -> [1, heads, Q, d]; the queries are the last ones of the keys."""
    queries, keys = query.shape[2], key.shape[2]
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and keys <= _SHORT:
        # Three plain products: torch's fused kernel is slow at bf16 gradients on a CPU (docs/benchmarks.md).
        mask = _additive_mask(queries, keys, query.dtype)
        scores = torch.baddbmm(mask, query[0], key[0].transpose(1, 2), alpha=scale or query.shape[3] ** -0.5)
        return torch.bmm(scores.softmax(-1), value[0])[None]
    if queries == keys:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


@lru_cache(maxsize=512)
def _additive_mask(queries: int, keys: int, dtype: torch.dtype) -> Tensor:
    """[queries, keys]: 0 where a query may look, -inf where it may not."""
    return torch.full((queries, keys), float("-inf"), dtype=dtype).triu(keys - queries + 1)


def _refuse(options: dict[str, Any], longest: int) -> None:
    asked = [name for name in _NOT_DONE if options.get(name) is not None]
    if (options.get("sliding_window") or longest) < longest:
        asked.append("sliding_window")
    if asked:
        raise ModelError(f"the model's attention uses {', '.join(asked)}, which training here does not know")
