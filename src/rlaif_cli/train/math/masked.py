"""Means and variances over the real positions of padded tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def real_positions(mask: Tensor, *tensors: Tensor) -> Tensor:
    """``mask`` as bool, after checking that all ``tensors`` have its shape: broadcasting here would hide a bug."""
    for tensor in tensors:
        if tensor.shape != mask.shape:
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} needs a mask of that shape, found {tuple(mask.shape)}"
            )
    return mask.bool()


def has_known_zero(count: Tensor) -> bool:
    """Whether a count on the CPU is 0 anywhere. Always False on a GPU, where checking would synchronise the device."""
    return count.device.type == "cpu" and bool((count == 0).any())


def zero_masked(x: Tensor, real: Tensor) -> Tensor:
    """``x`` with 0 outside ``real``. Apply before any arithmetic: 0 * NaN is NaN, in gradients too."""
    return at_least_fp32(x).masked_fill(~real, 0.0)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of ``x`` over real positions.

    Args:
        x: any shape.
        mask: the shape of ``x``.
        dim: the dimension to reduce; all of them if None.

    Returns:
        A 0-d tensor, or ``x`` without dimension ``dim``.

    Raises:
        ValueError: shapes differ, or no position is real (along ``dim``: anywhere).
    """
    real = real_positions(mask, x)
    count = real.sum(dim=dim)
    if count.numel() == 0 or has_known_zero(count):
        raise ValueError("the mean over an all-zero mask is undefined")
    return zero_masked(x, real).sum(dim=dim) / count


def masked_var(x: Tensor, mask: Tensor, unbiased: bool = True) -> Tensor:
    """Variance of ``x`` over real positions; with Bessel's correction (n - 1) if ``unbiased``.

    Args:
        x: any shape.
        mask: the shape of ``x``.
        unbiased: divide by n - 1 instead of n.

    Returns:
        A 0-d tensor.

    Raises:
        ValueError: shapes differ, no position is real, or only one is and ``unbiased``.
    """
    real = real_positions(mask, x)
    variance = masked_mean((zero_masked(x, real) - masked_mean(x, mask)).square(), mask)
    if not unbiased:
        return variance
    count = real.sum()
    if has_known_zero(count - 1):
        raise ValueError("the unbiased variance of one value is undefined")
    return variance * count / (count - 1)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """``x`` with variance 1 and, if ``shift_mean``, mean 0 over real positions; 0 at masked positions.

    Unbiased variance with 1e-8 added, as in the N+ implementation details of PPO (arXiv 2403.17031).

    Args:
        x: any shape.
        mask: the shape of ``x``.
        shift_mean: False keeps the mean as it was.

    Returns:
        The shape of ``x``.

    Raises:
        ValueError: shapes differ, or fewer than two positions are real.
    """
    real = real_positions(mask, x)
    mean = masked_mean(x, mask)
    whitened = (zero_masked(x, real) - mean) * torch.rsqrt(masked_var(x, mask) + 1e-8)
    return zero_masked(whitened if shift_mean else whitened + mean, real)


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over real tokens: 1 is perfect, 0 no better than a constant.

    Args:
        values: [B, T] predictions.
        returns: [B, T] targets.
        mask: [B, T].

    Returns:
        A 0-d tensor; NaN if the returns do not vary, since there is nothing to explain.

    Raises:
        ValueError: shapes differ, or no token is real.
    """
    real = real_positions(mask, values, returns)
    values, returns = zero_masked(values, real), zero_masked(returns, real)
    total = masked_var(returns, mask, unbiased=False)
    unexplained = masked_var(returns - values, mask, unbiased=False)
    rounding = torch.finfo(returns.dtype).eps ** 2 * masked_mean(returns.square(), mask)
    return torch.where(total > rounding, 1 - unexplained / total, torch.nan)


def last_token_index(attention_mask: Tensor) -> Tensor:
    """Index of each row's last real token, for left, right or no padding.

    Found from the mask, never by searching for a pad id: the pad token may be the end-of-text token, and
    then the search finds the wrong position (https://github.com/huggingface/trl/issues/3750).

    Args:
        attention_mask: [B, T].

    Returns:
        [B] int64.

    Raises:
        ValueError: the mask is not [B, T], or a row has no real token.
    """
    if attention_mask.dim() != 2:
        raise ValueError(f"attention_mask must be [B, T], found {tuple(attention_mask.shape)}")
    real = attention_mask.bool()
    if has_known_zero(real.sum(1)):
        raise ValueError("attention_mask has a row without a real token")
    return (real * torch.arange(real.shape[1], device=real.device)).amax(1)
