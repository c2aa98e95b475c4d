"""Log-probs and entropy of tokens, without an fp32 copy of the logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlaif_cli.train.math.masked import at_least_fp32

# fp32 elements (16 MiB) per block of logits: 85 rows of a 49k vocabulary, 27 of a 152k one.
_BLOCK_ELEMENTS = 1 << 22


def _blocks(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Index pairs that divide [B, T, V] into blocks of at most ``_BLOCK_ELEMENTS``.

    Both B and T are divided, rather than one flattened dimension, because ``logits[:, :-1]`` cannot be flattened
    without a copy.
    """
    batch, length, vocabulary = logits.shape
    columns = max(1, min(length, _BLOCK_ELEMENTS // vocabulary))
    rows = max(1, _BLOCK_ELEMENTS // (columns * vocabulary))
    for row in range(0, batch, rows):
        for column in range(0, length, columns):
            yield slice(row, row + rows), slice(column, column + columns)


class _GatherLogprobs(torch.autograd.Function):
    """Gathered log-softmax that saves one fp32 number per token for the backward pass instead of V."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
        chosen = at_least_fp32(logits.gather(-1, labels[..., None])[..., 0]) / temperature
        normalizer = torch.empty_like(chosen)
        for block in _blocks(logits):
            normalizer[block] = torch.logsumexp(at_least_fp32(logits[block]) / temperature, dim=-1)
        ctx.save_for_backward(logits, labels, normalizer)
        ctx.temperature = temperature
        return chosen - normalizer

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, normalizer = ctx.saved_tensors
        grad = (grad / ctx.temperature)[..., None]
        grad_logits = torch.empty_like(logits)
        for block in _blocks(logits):  # d logp(label) / d logits = (onehot(label) - softmax) / temperature
            scaled = at_least_fp32(logits[block]) / ctx.temperature
            softmax = scaled.sub_(normalizer[block][..., None]).exp_()
            softmax.mul_(-grad[block]).scatter_add_(-1, labels[block][..., None], grad[block])
            grad_logits[block] = softmax
        return grad_logits, None, None


def _check_logits(logits: Tensor, temperature: float) -> None:
    if logits.dim() not in (2, 3):
        raise ValueError(f"logits must be [B, T, V] or [N, V], found {tuple(logits.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")


def gather_logprobs(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at ``labels``: the log-probability of each sampled token.

    Computed as the label's logit minus a logsumexp, block by block, so that no fp32 copy of all logits exists
    in the forward or the backward pass; the only thing of that size is the gradient, in the logits' own
    precision. The division by the temperature follows the N+ implementation details of PPO (arXiv
    2403.17031).

    Args:
        logits: [B, T, V] (or [N, V]), any float type; ``logits[..., t, :]`` must predict ``labels[..., t]``.
        labels: [B, T] (or [N]) integers in [0, V), at masked positions too: put any valid token there.
        temperature: the sampling temperature.

    Returns:
        [B, T] (or [N]) nats, fp32 (fp64 for fp64 logits). Differentiable once.

    Raises:
        ValueError: shapes do not match, or temperature is not above 0.
    """
    _check_logits(logits, temperature)
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} need labels {tuple(logits.shape[:-1])}, found {tuple(labels.shape)}"
        )
    if logits.dim() == 2:
        return gather_logprobs(logits[None], labels[None], temperature)[0]
    logprobs: Tensor = _GatherLogprobs.apply(logits, labels.long(), temperature)
    return logprobs
