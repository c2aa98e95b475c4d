"""Attention over prompts with branches, laid end to end without padding.

Each branch attends to its prompt and itself, so the work is what the sequences need and no mask of [T, T] exists. On a
GPU, in half precision, all branches are one call of torch's variable-length kernel; else each is a call of its own.
Models of transformers take it through their attention interface (`attn_implementation=NAME`); calls without a
layout, such as generation's, are plain scaled-dot-product attention.

What a model may ask of its attention is a closed list: sliding windows, caps on the scores (Gemma 2, arXiv 2408.00118)
and sinks (gpt-oss; Xiao et al., arXiv 2309.17453) are computed; whatever is on neither list below is refused.
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
from rlaif_cli.train.nn.packing import Layout

NAME = "rlaif_branches"
_SHORT = 512  # keys up to which the scores of all heads are held in memory
# Arguments of an attention call that say nothing about what a token sees: positions and caches are in the layout, and
# dropout is off (`models.py`). Any other one that is not None is refused: to ignore it would be another model.
_IGNORED_ARGUMENTS = frozenset(
    {
        "cache_position",
        "dropout",
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)
# Fewer heads of keys than of queries: the kernel always took them, and later versions of torch want to be told.
_GQA_OPTIONS: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def register() -> str:
    """Make `NAME` known to transformers; returns it."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if NAME not in AttentionInterface():
        # The layers around it may be compiled: the layout is data, and no part of their program.
        AttentionInterface.register(NAME, torch.compiler.disable(_attention))
        AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def placeholder_mask(device: torch.device | str) -> Tensor:
    """Stands for the mask that the layout makes needless; one with four dimensions is not touched by transformers."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a layer asks of its attention beside causality.

    Attributes:
        scale: of the scores; None: 1 / sqrt(d).
        window: keys that a query sees, itself among them; None: all.
        softcap: scores s become softcap * tanh(s / softcap).
        sinks: [heads]; the score of a key that every query sees and that has no value.
    """

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def fusable(self) -> bool:
        """Whether a fused kernel computes it."""
        return self.softcap is None and self.sinks is None


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """query [B, heads, Q, d], key and value [B, key heads, K, d] -> [B, Q, heads, d]; by a layout B = 1, Q = K = T."""
    rules = Rules(scaling, sliding_window or None, softcap or None, s_aux)
    if layout is None and rules.fusable:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return output, None
    if layout is not None:
        _refuse(options)
        query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, rotated ones come in fp32
        if _kernel_takes(query, value) and rules.fusable:
            return varlen_branch_attention(query, key, value, layout, rules), None
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) if repeats > 1 else x for x in (key, value))
    if layout is None:
        visible = _visible(query.shape[2], key.shape[2], query.device) if attention_mask is None else attention_mask
        return _explicit_attention(query, key, value, visible, rules).transpose(1, 2).contiguous(), None
    return branch_attention(query, key, value, layout, rules).transpose(1, 2).contiguous(), None


# ------------------------------------------------------------------------------------------------ one call for all


def _kernel_takes(query: Tensor, value: Tensor) -> bool:
    size = query.shape[3]
    if not query.is_cuda or query.dtype == torch.float32 or torch.cuda.get_device_capability(query.device) < (8, 0):
        return False
    return size <= 256 and size % 8 == 0 and size == value.shape[3]


@dataclass(frozen=True, slots=True)
class VarlenInputs:
    """The sequences of a layout, for a kernel that takes them end to end: the queries as they lie, the keys gathered.

    Attributes:
        keys: [K]; the places in T of the keys that every sequence sees, one sequence after the other.
        query_offsets, key_offsets: [sequences + 1] int32, where each begins and ends.
        max_query_length, max_key_length: tokens.
    """

    keys: Tensor
    query_offsets: Tensor
    key_offsets: Tensor
    max_query_length: int
    max_key_length: int


@lru_cache(maxsize=2)  # every layer asks for the same
def varlen_inputs(layout: Layout, device: torch.device) -> VarlenInputs:
    queries, keys = zip(*_sequences(layout), strict=True)
    key_lengths = [len(places) for places in keys]
    query_offsets, key_offsets = (
        torch.tensor([0, *accumulate(of)], dtype=torch.int32, device=device) for of in (queries, key_lengths)
    )
    places = torch.tensor([place for sequence in keys for place in sequence], device=device)
    return VarlenInputs(places, query_offsets, key_offsets, max(queries), max(key_lengths))


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
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, rules: Rules = Rules()
) -> Tensor:
    """What `branch_attention` computes by plain rules, as [1, T, heads, d]; key and value may have fewer heads.

    bf16 or fp16, CUDA.
    """
    at = varlen_inputs(layout, query.device)
    key, value = (x[0].transpose(0, 1).index_select(0, at.keys) for x in (key, value))
    # Where a sequence has fewer queries than keys, they are its last ones. The kernel's window leaves out the query.
    before = -1 if rules.window is None else rules.window - 1
    output: Any = varlen_attn(
        query[0].transpose(0, 1), key, value, at.query_offsets, at.key_offsets, at.max_query_length, at.max_key_length,
        scale=rules.scale, window_size=(before, 0), **_GQA_OPTIONS,
    )  # fmt: skip
    attended: Tensor = output[None]
    return attended


# ------------------------------------------------------------------------------------------------ a call for each


def branch_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rules: Rules = Rules()) -> Tensor:
    """Causal attention in which a branch sees its prompt and itself. All [1, heads, T, d]."""
    # The first branch starts where the prompt ends: together they are one causal sequence.
    lengths = [length for prompt, first, *rest in layout.groups for length in (prompt + first, *rest)]
    pieces = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    outputs = []
    for prompt, _, *rest in layout.groups:
        q, k, v = next(pieces)
        outputs.append(causal_attention(q, k, v, rules))
        k_prompt, v_prompt = k[:, :, :prompt], v[:, :, :prompt]
        for _ in rest:
            q, k, v = next(pieces)
            k, v = torch.cat([k_prompt, k], dim=2), torch.cat([v_prompt, v], dim=2)
            outputs.append(causal_attention(q, k, v, rules))
    return torch.cat(outputs, dim=2)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, rules: Rules = Rules()) -> Tensor:
    """[1, heads, Q, d] over two [1, heads, K, d] -> [1, heads, Q, d]; the queries are the last ones of the keys."""
    queries, keys, scale = query.shape[2], key.shape[2], rules.scale
    window = rules.window if rules.window is not None and rules.window < keys else None
    if not rules.fusable:
        return _explicit_attention(query, key, value, _visible(queries, keys, query.device, window), rules)
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and keys <= _SHORT:
        # Three plain products: torch's fused kernel is slow at bf16 gradients on a CPU (docs/benchmarks.md).
        mask = _additive_mask(queries, keys, query.dtype, window)
        scores = torch.baddbmm(mask, query[0], key[0].transpose(1, 2), alpha=scale or query.shape[3] ** -0.5)
        return torch.bmm(scores.softmax(-1), value[0])[None]
    if queries == keys and window is None:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    visible = _visible(queries, keys, query.device, window)
    return scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)


def _explicit_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, rules: Rules) -> Tensor:
    """Rules that no fused kernel has. [B, heads, Q, d] over two [B, heads, K, d]; visible [..., Q, K] bool."""
    scale = query.shape[3] ** -0.5 if rules.scale is None else rules.scale
    scores = query @ key.transpose(2, 3) * scale
    if rules.softcap is not None:
        scores = rules.softcap * torch.tanh(scores / rules.softcap)
    scores = scores.masked_fill(~visible, float("-inf"))
    if rules.sinks is not None:
        sinks = rules.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks.to(scores)], dim=-1)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return weights[..., : value.shape[2]] @ value


def _visible(queries: int, keys: int, device: torch.device, window: int | None = None) -> Tensor:
    """[queries, keys] bool: what each query may see, the queries being the last ones of the keys."""
    visible = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return visible if window is None else visible.triu(keys - queries - window + 1)


@lru_cache(maxsize=512)
def _additive_mask(queries: int, keys: int, dtype: torch.dtype, window: int | None) -> Tensor:
    """[queries, keys]: 0 where a query may look, -inf where it may not."""
    visible = _visible(queries, keys, torch.device("cpu"), window)
    return torch.zeros(queries, keys, dtype=dtype).masked_fill(~visible, float("-inf"))


def _refuse(options: dict[str, Any]) -> None:
    asked = sorted(name for name, value in options.items() if value is not None and name not in _IGNORED_ARGUMENTS)
    if asked:
        raise ModelError(f"the model's attention uses {', '.join(asked)}, which training does not support")
