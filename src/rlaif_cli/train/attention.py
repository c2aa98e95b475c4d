"""Attention over prompts with branches, laid end to end without padding.

Each branch attends to its prompt and itself, so the work is what the sequences need and no mask of [T, T] exists. On a
GPU, in half precision, all branches are one call of torch's variable-length kernel; else each is a call of its own.
Models of transformers take it through their attention interface (`attn_implementation=NAME`); calls without a
layout, such as generation's, are plain scaled-dot-product attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from rlaif_cli.errors import ModelError
from rlaif_cli.train.packing import Layout

NAME = "rlaif_branches"
_SHORT = 512  # keys up to which the scores of all heads are held in memory
# What a model may ask of its attention that is not done here; doing without it would be another model.
_NOT_DONE = ("softcap", "s_aux", "position_bias")
# Fewer heads of keys than of queries: the kernel always took them, and later versions of torch want to be told.
_FEWER_HEADS: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def register() -> str:
    """Make `NAME` known to transformers; returns it."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if NAME not in AttentionInterface():
        # The layers around it may be compiled: the layout is data, and no part of their program.
        AttentionInterface.register(NAME, torch.compiler.disable(_attention))
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
    _refuse(options, max(map(sum, layout.groups)))
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, rotated ones come in fp32
    if _kernel_takes(query, value):
        return varlen_branch_attention(query, key, value, layout, scaling), None
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) if repeats > 1 else x for x in (key, value))
    return branch_attention(query, key, value, layout, scaling).transpose(1, 2), None


# ------------------------------------------------------------------------------------------------ one call for all


def _kernel_takes(query: Tensor, value: Tensor) -> bool:
    size = query.shape[3]
    if not query.is_cuda or query.dtype == torch.float32 or torch.cuda.get_device_capability(query.device) < (8, 0):
        return False
    return size <= 256 and size % 8 == 0 and size == value.shape[3]


@dataclass(frozen=True, slots=True)
class Branches:
    """The sequences of a layout, for a kernel that takes them end to end: the queries as they lie, the keys gathered.

    Attributes:
        keys: [K]; the places in T of the keys that every sequence sees, one sequence after the other.
        query_ends, key_ends: [sequences + 1] int32, where each begins and ends.
        longest_query, longest_key: tokens.
    """

    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int


@lru_cache(maxsize=2)  # every layer asks for the same
def branches(layout: Layout, device: torch.device) -> Branches:
    queries, keys = zip(*_sequences(layout), strict=True)
    key_lengths = [len(places) for places in keys]
    query_ends, key_ends = (
        torch.tensor([0, *accumulate(of)], dtype=torch.int32, device=device) for of in (queries, key_lengths)
    )
    places = torch.tensor([place for sequence in keys for place in sequence], device=device)
    return Branches(places, query_ends, key_ends, max(queries), max(key_lengths))


def _sequences(layout: Layout) -> Iterator[tuple[int, list[int]]]:
    """(queries, places of the keys) of every sequence; the first branch and its prompt are one."""
    start = 0
    for prompt, first, *rest in layout.groups:
        shared, end = [*range(start, start + prompt)], start + prompt + first
        yield prompt + first, [*range(start, end)]
        for length in rest:
            yield length, [*shared, *range(end, end + length)]
            end += length
        start = end


def varlen_branch_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None = None
) -> Tensor:
    """What `branch_attention` computes, as [1, T, heads, d]; key and value may have fewer heads. bf16 or fp16, CUDA."""
    at = branches(layout, query.device)
    key, value = (x[0].transpose(0, 1).index_select(0, at.keys) for x in (key, value))
    # Where a sequence has fewer queries than keys, they are its last ones.
    output: Any = varlen_attn(
        query[0].transpose(0, 1), key, value, at.query_ends, at.key_ends, at.longest_query, at.longest_key,
        scale=scale, window_size=(-1, 0), **_FEWER_HEADS,
    )  # fmt: skip
    attended: Tensor = output[None]
    return attended


# ------------------------------------------------------------------------------------------------ a call for each


def branch_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None = None) -> Tensor:
    """Causal attention in which a branch sees its prompt and itself. All [1, heads, T, d]."""
    # The first branch goes on where the prompt ends: together they are one causal sequence.
    lengths = [length for prompt, first, *rest in layout.groups for length in (prompt + first, *rest)]
    pieces = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    outputs = []
    for prompt, _, *rest in layout.groups:
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
