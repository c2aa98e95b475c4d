"""Advantages and baselines."""

from __future__ import annotations

import torch
from torch import Tensor

from rlaif_cli.train.math.masked import has_known_zero, real_positions, zero_masked


def remove_length_effect(scores: Tensor, lengths: Tensor, n: int) -> Tensor:
    """Remove from scores the part that is linear in the responses' lengths, keeping each prompt's mean.

    Least squares on deviations from the prompt's mean, so that scores no longer correlate with length among the
    responses to a prompt, and the policy gradient no longer rewards longer or shorter responses. The training-time
    counterpart of length-controlled win rates (Dubois et al. 2024, arXiv 2404.04475).

    Args:
        scores: [S], the `n` responses of each prompt one after another; values that are not finite are unscored and
            stay as they are.
        lengths: [S], in tokens.
        n: responses per prompt; with 1, deviations are from the mean of all scores.
    """
    rows = n if n > 1 else len(scores)
    y, x = scores.view(-1, rows).double(), lengths.view(-1, rows).double()
    known = y.isfinite()
    count = known.sum(1, keepdim=True).clamp(min=1)
    x = (x - (x * known).sum(1, keepdim=True) / count) * known
    y = y.where(known, 0.0)
    y = (y - y.sum(1, keepdim=True) / count) * known
    spread = (x * x).sum()
    slope = (x * y).sum() / spread if spread > 0 else spread
    return scores - (slope * x).flatten().to(scores)


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438) over the real steps of each row.

    delta_t = r_t + gamma V_next - V_t;  A_t = delta_t + gamma lam A_next;  both are 0 after the last real
    step. "Next" is the next *real* step: masked steps, wherever they are, pass its state through (for the bug
    otherwise, see https://github.com/alibaba/ROLL/issues/447).

    Args:
        rewards: [B, T].
        values: [B, T].
        mask: [B, T], 1 at response tokens.
        gamma: discount, in [0, 1].
        lam: 0 is one-step TD, 1 the Monte Carlo return.

    Returns:
        advantages [B, T] and returns [B, T] = advantages + values; both 0 at masked steps, without gradient.

    Raises:
        ValueError: shapes differ or are not [B, T], or gamma or lam is outside [0, 1].
    """
    real = real_positions(mask, rewards, values)
    if rewards.dim() != 2:
        raise ValueError(f"rewards must be [B, T], found {tuple(rewards.shape)}")
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma and lam must be in [0, 1], found {gamma} and {lam}")
    rewards, values = zero_masked(rewards, real), zero_masked(values, real)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = values.new_zeros(values.shape[0])  # [B]
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = delta + gamma * lam * next_advantage
        next_advantage = torch.where(real[:, t], advantages[:, t], next_advantage)
        next_value = torch.where(real[:, t], values[:, t], next_value)
    return zero_masked(advantages, real), zero_masked(advantages + values, real)


@torch.no_grad()
def truncated_importance_weights(
    logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, cap: float = 2.0, level: str = "token"
) -> Tensor:
    """min(pi_trainer / pi_engine, cap): corrects for an engine whose log-probs differ from the trainer's.

    Sequence-level weights (one per row: the product of its ratios) are unbiased apart from the cap; token-level
    ones have lower variance. Truncation as in Ionides (2008), "Truncated importance sampling".

    Args:
        logprobs: [B, T] nats, of the trainer's policy *before* the update.
        rollout_logprobs: [B, T] nats, from the engine that sampled.
        mask: [B, T], 1 at response tokens.
        cap: the largest weight, above 0.
        level: "token" or "sequence".

    Returns:
        [B, T] without gradient; 0 at masked positions.

    Raises:
        ValueError: unknown ``level``, ``cap`` not above 0, or shapes differ.
    """
    real = real_positions(mask, logprobs, rollout_logprobs)
    if level not in ("token", "sequence"):
        raise ValueError(f"level must be token or sequence, found {level!r}")
    if not cap > 0:
        raise ValueError(f"cap must be above 0, found {cap}")
    log_ratio = zero_masked(logprobs, real) - zero_masked(rollout_logprobs, real)
    if level == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True).expand_as(log_ratio)
    # exp may overflow to infinity, which the cap fixes; capping the log instead would round the cap itself.
    return zero_masked(torch.exp(log_ratio).clamp(max=cap), real)


def leave_one_out_baseline(rewards: Tensor, mask: Tensor | None = None) -> Tensor:
    """For each sample the mean reward of the prompt's other samples (RLOO, arXiv 2402.14740).

    Args:
        rewards: [P, n].
        mask: [P, n], 0 at samples without a reward, which are left out of their group; None if all have one.

    Returns:
        [P, n]; the advantage is ``rewards`` minus this. 0 at masked samples.

    Raises:
        ValueError: not [P, n], shapes differ, or a prompt has fewer than two samples with a reward.
    """
    real, count = _groups(rewards, mask)
    rewards = zero_masked(rewards, real)
    return zero_masked((rewards.sum(1, keepdim=True) - rewards) / (count - 1), real)


def group_normalized_advantage(rewards: Tensor, scale_by_std: bool = True, mask: Tensor | None = None) -> Tensor:
    """Rewards minus their prompt's mean, over their prompt's standard deviation (GRPO, arXiv 2402.03300).

    Unbiased standard deviation plus 1e-6, so that a prompt whose samples all have the same score gets zero
    advantages. Pass scores without the KL penalty: with it, tied samples would be divided by the deviation of
    their KL (`Trainer` in `ppo_update.py` subtracts the KL afterwards).
    ``scale_by_std=False`` is Dr. GRPO (arXiv 2503.20783), which does not favour prompts of low variance.

    Args:
        rewards: [P, n].
        scale_by_std: divide by the deviation.
        mask: [P, n], 0 at samples without a reward, which are left out of their group; None if all have one.

    Returns:
        [P, n]; 0 at masked samples.

    Raises:
        ValueError: not [P, n], shapes differ, or a prompt has fewer than two samples with a reward.
    """
    real, count = _groups(rewards, mask)
    rewards = zero_masked(rewards, real)
    # Subtract the first sample's reward first, so that equal rewards become exactly 0: otherwise the rounding error of
    # their mean, divided by a deviation of nearly 0, would look like an advantage.
    first = real.int().argmax(1, keepdim=True)
    rewards = zero_masked(rewards - rewards.gather(1, first), real)
    centered = zero_masked(rewards - rewards.sum(1, keepdim=True) / count, real)
    if not scale_by_std:
        return centered
    deviation = (centered.square().sum(1, keepdim=True) / (count - 1)).sqrt()
    return centered / (deviation + 1e-6)


def _groups(rewards: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(which samples have a reward, [P, n]; their number per prompt, [P, 1])."""
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be [P, n] with n of at least 2, found {tuple(rewards.shape)}")
    real = real_positions(torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask, rewards)
    count = real.sum(1, keepdim=True)
    if mask is not None and has_known_zero((count - 1).clamp(min=0)):
        raise ValueError("a prompt has fewer than two samples with a reward: there is nothing to compare")
    return real, count
