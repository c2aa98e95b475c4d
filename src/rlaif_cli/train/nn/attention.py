"""Attention for packed sequences: prompts with branches, laid end to end without padding.

Each branch attends to its prompt and itself, without wasted work or a [T, T] mask. On a GPU in half precision, all
branches are one call of torch's variable-length kernel; otherwise each is a separate call. Models from transformers use
it through the attention interface (`attn_implementation=NAME`). Calls without a layout, such as those of generation,
get ordinary scaled-dot-product attention.

Only a closed list of attention features is supported: sliding windows, soft caps on the scores (Gemma 2, arXiv
2408.00118) and sinks (gpt-oss; Xiao et al., arXiv 2309.17453). Any argument that is neither one of these nor in
`_IGNORED_ARGUMENTS` is refused.
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
_SHORT = 512  # up to this many keys, the scores of all heads may be held in memory
# Arguments of an attention call that do not change what a token sees: the layout has the positions, there is no cache,
# and dropout is off (`heads.py`). Any other argument that is not None is refused: ignoring it would change the model.
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
# Fewer key heads than query heads: the kernel always supported this, but newer versions of torch need the option.
_GQA_OPTIONS: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def register() -> str:
    """Register this attention with transformers and return its `NAME`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if NAME not in AttentionInterface():
        # Not compiled, even if the layers around it are: the layout is data, not part of the graph.
        AttentionInterface.register(NAME, torch.compiler.disable(_attention))
        AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def placeholder_mask(device: torch.device | str) -> Tensor:
    """A dummy mask, since the layout replaces it; transformers passes 4-dimensional masks through unchanged."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


@dataclass(frozen=True, slots=True)
class Rules:
    """Attention features of a layer, besides causality.

    Attributes:
        scale: factor on the scores; None for 1 / sqrt(d).
        window: number of keys that a query sees, including its own; None for all.
        softcap: scores s become softcap * tanh(s / softcap).
        sinks: [heads]; the score of an extra key that every query sees and that has no value.
    """

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def fusable(self) -> bool:
        """Whether a fused kernel supports it."""
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
    """query [B, heads, Q, d], key and value [B, kv heads, K, d] -> [B, Q, heads, d]; B = 1, Q = K = T with a layout."""
    rules = Rules(scaling, sliding_window or None, softcap or None, s_aux)
    if layout is None and rules.fusable:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return output, None
    if layout is not None:
        _refuse(options)
        query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves rotary outputs in fp32
        if _kernel_supports(query, value) and rules.fusable:
            return varlen_branch_attention(query, key, value, layout, rules), None
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) if repeats > 1 else x for x in (key, value))
    if layout is None:
        visible = _visible(query.shape[2], key.shape[2], query.device) if attention_mask is None else attention_mask
        return _explicit_attention(query, key, value, visible, rules).transpose(1, 2).contiguous(), None
    return branch_attention(query, key, value, layout, rules).transpose(1, 2).contiguous(), None


# ------------------------------------------------------------------------------------------------ one kernel call


def _kernel_supports(query: Tensor, value: Tensor) -> bool:
    size = query.shape[3]
    if not query.is_cuda or query.dtype == torch.float32 or torch.cuda.get_device_capability(query.device) < (8, 0):
        return False
    return size <= 256 and size % 8 == 0 and size == value.shape[3]


@dataclass(frozen=True, slots=True)
class VarlenInputs:
    """A layout as arguments of a variable-length kernel; the queries stay in place, the keys are gathered.

    Attributes:
        keys: [K]; indices in T of the keys that each sequence sees, one sequence after another.
        query_offsets, key_offsets: [sequences + 1] int32; cumulative lengths, from 0.
        max_query_length, max_key_length: in tokens.
    """

    keys: Tensor
    query_offsets: Tensor
    key_offsets: Tensor
    max_query_length: int
    max_key_length: int


@lru_cache(maxsize=2)  # all layers share the result
def varlen_inputs(layout: Layout, device: torch.device) -> VarlenInputs:
    queries, keys = zip(*_sequences(layout), strict=True)
    key_lengths = [len(indices) for indices in keys]
    query_offsets, key_offsets = (
        torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device) for lengths in (queries, key_lengths)
    )
    indices = torch.tensor([index for sequence in keys for index in sequence], device=device)
    return VarlenInputs(indices, query_offsets, key_offsets, max(queries), max(key_lengths))


def _sequences(layout: Layout) -> Iterator[tuple[int, list[int]]]:
    """(number of queries, indices of the keys) of every sequence; a prompt and its first branch are one sequence."""
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
    """`branch_attention` for fusable rules, as [1, T, heads, d]; key and value may have fewer heads.

    Needs bf16 or fp16 on CUDA.
    """
    at = varlen_inputs(layout, query.device)
    key, value = (x[0].transpose(0, 1).index_select(0, at.keys) for x in (key, value))
    # If a sequence has fewer queries than keys, they are its last tokens. The kernel's window excludes the query.
    before = -1 if rules.window is None else rules.window - 1
    output: Any = varlen_attn(
        query[0].transpose(0, 1), key, value, at.query_offsets, at.key_offsets, at.max_query_length, at.max_key_length,
        scale=rules.scale, window_size=(before, 0), **_GQA_OPTIONS,
    )  # fmt: skip
    attended: Tensor = output[None]
    return attended


# ------------------------------------------------------------------------------------------------ a call per branch


def branch_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rules: Rules = Rules()) -> Tensor:
    """Causal attention in which each branch sees its prompt and itself. All tensors are [1, heads, T, d]."""
    # The prompt and its first branch are contiguous, so together they are one causal sequence.
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
    """query [1, heads, Q, d], key and value [1, heads, K, d] -> [1, heads, Q, d]; the queries are the last Q tokens."""
    queries, keys, scale = query.shape[2], key.shape[2], rules.scale
    window = rules.window if rules.window is not None and rules.window < keys else None
    if not rules.fusable:
        return _explicit_attention(query, key, value, _visible(queries, keys, query.device, window), rules)
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and keys <= _SHORT:
        # Explicit matrix products: torch's fused kernel has slow bf16 gradients on a CPU (docs/benchmarks.md).
        mask = _additive_mask(queries, keys, query.dtype, window)
        scores = torch.baddbmm(mask, query[0], key[0].transpose(1, 2), alpha=scale or query.shape[3] ** -0.5)
        return torch.bmm(scores.softmax(-1), value[0])[None]
    if queries == keys and window is None:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    visible = _visible(queries, keys, query.device, window)
    return scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)


def _explicit_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, rules: Rules) -> Tensor:
    """For rules that no fused kernel supports.

    query [B, heads, Q, d], key and value [B, heads, K, d], visible [..., Q, K] bool -> [B, heads, Q, d].
    """
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
    """[queries, keys] bool: which keys each query sees; the queries are the last tokens of the keys."""
    visible = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return visible if window is None else visible.triu(keys - queries - window + 1)


@lru_cache(maxsize=512)
def _additive_mask(queries: int, keys: int, dtype: torch.dtype, window: int | None) -> Tensor:
    """[queries, keys]: 0 where a query sees a key, -inf elsewhere."""
    visible = _visible(queries, keys, torch.device("cpu"), window)
    return torch.zeros(queries, keys, dtype=dtype).masked_fill(~visible, float("-inf"))


def _refuse(options: dict[str, Any]) -> None:
    unsupported = sorted(
        name for name, value in options.items() if value is not None and name not in _IGNORED_ARGUMENTS
    )
    if unsupported:
        raise ModelError(f"the model's attention uses {', '.join(unsupported)}, which training does not support")
