"""The losses of PPO and of reward models, and scores from a judge."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlaif_cli.train.math.masked import at_least_fp32, explained_variance, masked_mean, real_positions, zero_masked

Number = TypeVar("Number", float, Tensor)


# --- PPO ----------------------------------------------------------------------------------------------------


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped objective, negated (Schulman et al., arXiv 1707.06347).

    Mean of max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)), ratio = exp(logprobs - old_logprobs). The mean
    is over this batch's real tokens; a micro-batch of k of the K tokens of a batch weighs k / K.

    Args:
        logprobs: [B, T] nats, with gradient.
        old_logprobs: [B, T] nats, of the policy before the update.
        advantages: [B, T].
        mask: [B, T], 1 at response tokens.
        clip: epsilon, above 0.
        weights: [B, T] truncated importance weights; they multiply each token's loss, and the mean still
            divides by the number of tokens.

    Returns:
        The loss, 0-d, and for logging: clip_fraction (share of tokens whose gradient the clip removed),
        approx_kl (k3 estimate of KL(old || new), nats per token) and ratio_mean.

    Raises:
        ValueError: shapes differ, no token is real, or clip is not above 0.
    """
    real = real_positions(mask, logprobs, old_logprobs, advantages, *([] if weights is None else [weights]))
    _check_clip(clip)
    log_ratio = zero_masked(logprobs, real) - zero_masked(old_logprobs, real)
    advantages = zero_masked(advantages, real)
    ratio = torch.exp(log_ratio)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    losses = torch.maximum(unclipped, clipped)
    loss = masked_mean(losses if weights is None else zero_masked(weights, real) * losses, mask)
    with torch.no_grad():
        return loss, {
            "clip_fraction": masked_mean(clipped > unclipped, mask),
            "approx_kl": masked_mean(torch.expm1(log_ratio) - log_ratio, mask),
            "ratio_mean": masked_mean(ratio, mask),
        }


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped value loss: mean of max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2.

    As in the PPO implementations since baselines (arXiv 2005.12729) and the N+ details (arXiv 2403.17031).

    Args:
        values: [B, T] with gradient.
        old_values: [B, T] of the value model before the update.
        returns: [B, T].
        mask: [B, T], 1 at response tokens.
        clip: how far a value may move in one update before its gradient vanishes, above 0, in units of reward.

    Returns:
        The loss, 0-d, and for logging: value_clip_fraction (share of tokens where the clipped error is the
        larger) and explained_variance (of ``returns`` by ``values``; NaN if the returns do not vary).

    Raises:
        ValueError: shapes differ, no token is real, or clip is not above 0.
    """
    real = real_positions(mask, values, old_values, returns)
    _check_clip(clip)
    values, old_values, returns = zero_masked(values, real), zero_masked(old_values, real), zero_masked(returns, real)
    near_values = torch.clamp(values, old_values - clip, old_values + clip)
    unclipped = (values - returns).square()
    clipped = (near_values - returns).square()
    loss = masked_mean(torch.maximum(unclipped, clipped), mask) / 2
    with torch.no_grad():
        return loss, {
            "value_clip_fraction": masked_mean(clipped > unclipped, mask),
            "explained_variance": explained_variance(values, returns, mask),
        }


def _check_clip(clip: float) -> None:
    if not clip > 0:
        raise ValueError(f"clip must be above 0, found {clip}")


# --- reward models and judges --------------------------------------------------------------------------------


def soft_pairwise_loss(
    chosen: Tensor, rejected: Tensor, p_chosen: Tensor, margin: Tensor | float | None = None
) -> Tensor:
    """Cross-entropy between a soft label and the Bradley-Terry probability (RLAIF, arXiv 2309.00267).

    L = -[p log s(d) + (1 - p) log s(-d)], d = chosen - rejected - margin. Its floor is ``binary_entropy(p)``,
    reached at d = logit(p).

    Args:
        chosen: [B] rewards of the preferred responses.
        rejected: [B] rewards of the others.
        p_chosen: [B] probability in [0, 1] that ``chosen`` is the better one; not checked here.
        margin: a number or [B], subtracted from the difference.

    Returns:
        The mean over the batch, 0-d, nats.

    Raises:
        ValueError: shapes differ, or the batch is empty.
    """
    if not chosen.shape == rejected.shape == p_chosen.shape:
        raise ValueError(
            f"chosen {tuple(chosen.shape)}, rejected {tuple(rejected.shape)} and "
            f"p_chosen {tuple(p_chosen.shape)} differ"
        )
    if isinstance(margin, Tensor) and margin.dim() and margin.shape != chosen.shape:
        raise ValueError(f"margin must be a number or {tuple(chosen.shape)}, found {tuple(margin.shape)}")
    if chosen.numel() == 0:
        raise ValueError("the mean over an empty batch is undefined")
    difference = at_least_fp32(chosen) - at_least_fp32(rejected)
    if margin is not None:
        difference = difference - margin
    return -(p_chosen * logsigmoid(difference) + (1 - p_chosen) * logsigmoid(-difference)).mean()


def binary_entropy(p: Tensor) -> Tensor:
    """Entropy of a Bernoulli variable, -p log p - (1 - p) log(1 - p): the floor of the soft pairwise loss.

    Args:
        p: any shape, in [0, 1].

    Returns:
        The shape of ``p``, nats; exactly 0 at 0 and 1, and -inf (torch's ``entr``) outside [0, 1].
    """
    p = at_least_fp32(p)
    return torch.special.entr(p) + torch.special.entr(1 - p)


def expected_score(p: Tensor) -> Tensor:
    """Mean of the distribution over the scores 1 to 10: s = sum i P(i) (direct RLAIF, arXiv 2309.00267).

    Args:
        p: [..., 10], each row summing to 1.

    Returns:
        [...], from 1 to 10.

    Raises:
        ValueError: the last dimension is not 10, or a row's sum is off 1 by more than 1e-3.
    """
    if p.dim() == 0 or p.shape[-1] != 10:
        raise ValueError(f"p must be [..., 10], found {tuple(p.shape)}")
    p = at_least_fp32(p)
    if not bool(((p.sum(-1) - 1).abs() <= 1e-3).all()):
        raise ValueError("p must sum to 1 over the ten scores")
    return (p * torch.arange(1, 11, dtype=p.dtype, device=p.device)).sum(-1)


def direct_reward(score: Number) -> Number:
    """The linear map of a score from [1, 10] to [-1, 1]: (2 s - 11) / 9.

    Direct RLAIF (arXiv 2309.00267) states the range but not the map; this is the linear one.

    Args:
        score: a number, or a tensor of any shape.

    Returns:
        The same kind and shape.
    """
    return (score * 2 - 11) / 9
