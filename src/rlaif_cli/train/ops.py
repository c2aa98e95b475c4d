"""The maths of training: pure functions on tensors, each with its shapes and its source.

Conventions, kept by every function here:

- ``B`` sequences, ``T`` positions, ``V`` vocabulary entries; ``P`` prompts with ``n`` samples each.
- Log-probabilities, KL and entropy are in nats.
- A mask (bool, int or float) is nonzero at real positions. Whatever stands at masked positions, NaN and
  infinity included, reaches neither a result nor a gradient: it is replaced before any arithmetic, never
  multiplied by zero.
- Results are fp32 (fp64 for fp64 input), also for bf16 input: sums over thousands of tokens do not fit in 8
  bits.
- Scalars for logging come back as detached 0-d tensors, so that reading them is the caller's choice of when
  to wait. For the same reason a mask without a real position is an error on a CPU alone: on a GPU the question
  would stop the program until all work in flight is done, several times a micro-batch. There 0 / 0 gives NaN,
  at which an optimizer step stops (`loop.clip_and_step`).

Departures from the papers: none in the formulas; where implementations differ, the docstring names the one
followed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Number = TypeVar("Number", float, Tensor)

# fp32 elements (16 MiB) that one step over logits may hold: 85 rows of a 49k vocabulary, 27 of a 152k one.
_BLOCK_ELEMENTS = 1 << 22


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _real_positions(mask: Tensor, *tensors: Tensor) -> Tensor:
    """``mask`` as bool, after checking that all ``tensors`` have its shape: broadcasting here hides a bug."""
    for tensor in tensors:
        if tensor.shape != mask.shape:
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} needs a mask of that shape, found {tuple(mask.shape)}"
            )
    return mask.bool()


def _known_zero(count: Tensor) -> bool:
    """Whether a count is 0 anywhere; never asked of a GPU, see the top."""
    return count.device.type == "cpu" and bool((count == 0).any())


def _keep(x: Tensor, real: Tensor) -> Tensor:
    """``x``, 0 where not ``real``: before any arithmetic, since 0 * NaN is NaN, in gradients too."""
    return _at_least_fp32(x).masked_fill(~real, 0.0)


# --- masked statistics --------------------------------------------------------------------------------------


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
    real = _real_positions(mask, x)
    count = real.sum(dim=dim)
    if count.numel() == 0 or _known_zero(count):
        raise ValueError("the mean over an all-zero mask is undefined")
    return _keep(x, real).sum(dim=dim) / count


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
    real = _real_positions(mask, x)
    variance = masked_mean((_keep(x, real) - masked_mean(x, mask)).square(), mask)
    if not unbiased:
        return variance
    count = real.sum()
    if _known_zero(count - 1):
        raise ValueError("the unbiased variance of one value is undefined")
    return variance * count / (count - 1)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """``x`` with variance 1 and, if ``shift_mean``, mean 0 over real positions; 0 at masked positions.

    Unbiased variance with 1e-8 added, as in the N+ implementation details of PPO (arXiv 2403.17031).

    Args:
        x: any shape.
        mask: the shape of ``x``.
        shift_mean: False keeps the mean where it was.

    Returns:
        The shape of ``x``.

    Raises:
        ValueError: shapes differ, or fewer than two positions are real.
    """
    real = _real_positions(mask, x)
    mean = masked_mean(x, mask)
    whitened = (_keep(x, real) - mean) * torch.rsqrt(masked_var(x, mask) + 1e-8)
    return _keep(whitened if shift_mean else whitened + mean, real)


def without_length(scores: Tensor, lengths: Tensor, n: int) -> Tensor:
    """What is left of scores after the part that is linear in the responses' lengths, each prompt's mean kept.

    Least squares on deviations from the prompt's mean, so that scores are no longer correlated with length among the
    responses to a prompt, and a policy gradient from them has no reason to lengthen or shorten. The training-time
    counterpart of length-controlled win rates (Dubois et al. 2024, arXiv 2404.04475).

    Args:
        scores: [S], the `n` responses of a prompt one after another; not finite: unscored, and left as it is.
        lengths: [S], tokens.
        n: responses to a prompt; with one, deviations are from the mean of all.
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
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over real tokens: 1 is perfect, 0 no better than a constant.

    Args:
        values: [B, T] predictions.
        returns: [B, T] what was to be predicted.
        mask: [B, T].

    Returns:
        A 0-d tensor; NaN where the returns do not vary, since there is nothing to explain.

    Raises:
        ValueError: shapes differ, or no token is real.
    """
    real = _real_positions(mask, values, returns)
    values, returns = _keep(values, real), _keep(returns, real)
    total = masked_var(returns, mask, unbiased=False)
    unexplained = masked_var(returns - values, mask, unbiased=False)
    rounding = torch.finfo(returns.dtype).eps ** 2 * masked_mean(returns.square(), mask)
    return torch.where(total > rounding, 1 - unexplained / total, torch.nan)


# --- log-probabilities from logits --------------------------------------------------------------------------


def _blocks(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Index pairs that cut [B, T, V] into blocks of at most ``_BLOCK_ELEMENTS``.

    Both B and T are cut, rather than one flattened dimension, because ``logits[:, :-1]`` cannot be flattened
    without a copy.
    """
    batch, length, vocabulary = logits.shape
    columns = max(1, min(length, _BLOCK_ELEMENTS // vocabulary))
    rows = max(1, _BLOCK_ELEMENTS // (columns * vocabulary))
    for row in range(0, batch, rows):
        for column in range(0, length, columns):
            yield slice(row, row + rows), slice(column, column + columns)


class _GatherLogprobs(torch.autograd.Function):
    """Gathered log-softmax that keeps one fp32 number a token for the backward pass instead of V of them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
        chosen = _at_least_fp32(logits.gather(-1, labels[..., None])[..., 0]) / temperature
        normalizer = torch.empty_like(chosen)
        for block in _blocks(logits):
            normalizer[block] = torch.logsumexp(_at_least_fp32(logits[block]) / temperature, dim=-1)
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
            scaled = _at_least_fp32(logits[block]) / ctx.temperature
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
    """log softmax(logits / temperature) at ``labels``: the log-probability of each token as it was sampled.

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
        ValueError: shapes do not fit, or temperature is not above 0.
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


@torch.no_grad()
def entropy_from_logits(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of softmax(logits / temperature) at every position, for logging: no gradient.

    Args:
        logits: [B, T, V] (or [N, V]), any float type; -inf (a forbidden token) contributes nothing.
        temperature: the sampling temperature.

    Returns:
        [B, T] (or [N]) nats, from 0 to log V.

    Raises:
        ValueError: logits have another number of dimensions, or temperature is not above 0.
    """
    _check_logits(logits, temperature)
    if logits.dim() == 2:
        return entropy_from_logits(logits[None], temperature)[0]
    entropy = torch.empty(
        logits.shape[:-1], dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device
    )
    for block in _blocks(logits):
        softmax = torch.softmax(_at_least_fp32(logits[block]) / temperature, dim=-1)
        entropy[block] = torch.special.entr(softmax).sum(-1)
    return entropy


def last_token_index(attention_mask: Tensor) -> Tensor:
    """Index of each row's last real token, for left, right or no padding.

    Found from the mask and never by searching for a pad id: a pad token may be the end-of-text token, and
    then the search finds the wrong place (trl#3750).

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
    if _known_zero(real.sum(1)):
        raise ValueError("attention_mask has a row without a real token")
    return (real * torch.arange(real.shape[1], device=real.device)).amax(1)


# --- KL -----------------------------------------------------------------------------------------------------


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: str, clamp: float | None = None) -> Tensor:
    """Per-token estimates of KL(policy || reference) from tokens that the policy sampled.

    With log r = ref_logprobs - logprobs: k1 = -log r, k2 = (log r)^2 / 2, k3 = (r - 1) - log r
    (Schulman, "Approximating KL divergence", 2020). k1 is unbiased and may be negative; k2 and k3 never are.
    As a term *in the reward* k1 is right, as a *loss* k2 is, and k3 as a loss is biased (arXiv 2510.01555).

    Args:
        logprobs: any shape, nats, of the policy.
        ref_logprobs: the shape of ``logprobs``, of the reference.
        kind: "k1", "k2" or "k3".
        clamp: if given, log r is first bounded to [-clamp, clamp]; no gradient flows beyond the bound.

    Returns:
        The shape of ``logprobs``.

    Raises:
        ValueError: unknown ``kind``, ``clamp`` not above 0, or shapes differ.
    """
    if logprobs.shape != ref_logprobs.shape:
        shapes = f"{tuple(logprobs.shape)} and {tuple(ref_logprobs.shape)}"
        raise ValueError(f"logprobs and ref_logprobs must have one shape, found {shapes}")
    log_ratio = _at_least_fp32(ref_logprobs) - _at_least_fp32(logprobs)
    if clamp is not None:
        if not clamp > 0:
            raise ValueError(f"clamp must be above 0, found {clamp}")
        log_ratio = log_ratio.clamp(-clamp, clamp)
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    if kind == "k3":
        return torch.expm1(log_ratio) - log_ratio  # expm1: never negative, also where r is near 1
    raise ValueError(f"kind must be k1, k2 or k3, found {kind!r}")


class KLController:
    """A KL coefficient that may change as training goes on.

    Attributes:
        value: the coefficient now.
    """

    def __init__(self, init: float) -> None:
        if not (math.isfinite(init) and init >= 0):
            raise ValueError(f"a KL coefficient must be finite and at least 0, found {init}")
        self.value = float(init)

    def update(self, kl: float, n: int) -> None:
        """Take note of a mean ``kl`` (nats a sequence) over ``n`` sequences."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, float]:
        """What changes in training; target and horizon belong to the config."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from ``state_dict()``. Raises KeyError if it is of something else."""
        self.value = float(state["value"])


class FixedKLController(KLController):
    """The coefficient that it was given."""

    def update(self, kl: float, n: int) -> None:
        """Nothing: the coefficient is fixed."""


class AdaptiveKLController(KLController):
    """Proportional control of the coefficient in log space (Ziegler et al., arXiv 1909.08593).

    value <- value * (1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon)

    Args:
        init: the first coefficient, above 0.
        target: the KL to hold, nats a sequence.
        horizon: the sequences over which an error of 20 %, the most that counts, moves the
            coefficient by 20 %.

    Raises:
        ValueError: an argument is not above 0.
    """

    def __init__(self, init: float, target: float, horizon: float) -> None:
        super().__init__(init)
        if not (init > 0 and target > 0 and horizon > 0):  # from 0, a product never rises again
            raise ValueError(f"init, target and horizon must be above 0, found {init}, {target}, {horizon}")
        self.target = float(target)
        self.horizon = float(horizon)

    def update(self, kl: float, n: int) -> None:
        """Raise or lower the coefficient after ``n`` sequences with a mean KL of ``kl`` nats.

        Raises:
            ValueError: ``kl`` is not finite, ``n`` is below 1, or ``n`` is so far above the horizon that the
                coefficient would become 0 or negative.
        """
        if not math.isfinite(kl) or n < 1:
            raise ValueError(f"a finite kl and n of at least 1 are needed, found kl {kl}, n {n}")
        error = min(max(float(kl) / self.target - 1, -0.2), 0.2)
        factor = 1 + error * n / self.horizon
        if factor <= 0:
            raise ValueError(f"a horizon of {self.horizon:g} is too short for updates of {n} sequences")
        self.value *= factor


# --- PPO ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438) over the real steps of each row.

    delta_t = r_t + gamma V_next - V_t;  A_t = delta_t + gamma lam A_next;  both are 0 after the last real
    step. "Next" is the next *real* step: masked steps, wherever they are, pass its state through (ROLL#447 is
    what happens otherwise).

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
    real = _real_positions(mask, rewards, values)
    if rewards.dim() != 2:
        raise ValueError(f"rewards must be [B, T], found {tuple(rewards.shape)}")
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma and lam must be in [0, 1], found {gamma} and {lam}")
    rewards, values = _keep(rewards, real), _keep(values, real)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = values.new_zeros(values.shape[0])  # [B]
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = delta + gamma * lam * next_advantage
        next_advantage = torch.where(real[:, t], advantages[:, t], next_advantage)
        next_value = torch.where(real[:, t], values[:, t], next_value)
    return _keep(advantages, real), _keep(advantages + values, real)


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
        old_logprobs: [B, T] nats, of the policy that the update started from.
        advantages: [B, T].
        mask: [B, T], 1 at response tokens.
        clip: epsilon, above 0.
        weights: [B, T] truncated importance weights; they multiply each token's loss, and the mean still
            divides by the number of tokens.

    Returns:
        The loss, 0-d, and for the log: clip_fraction (share of tokens whose gradient the clip removed),
        approx_kl (k3 of KL(old || new), nats a token) and ratio_mean.

    Raises:
        ValueError: shapes differ, no token is real, or clip is not above 0.
    """
    real = _real_positions(mask, logprobs, old_logprobs, advantages, *([] if weights is None else [weights]))
    _check_clip(clip)
    log_ratio = _keep(logprobs, real) - _keep(old_logprobs, real)
    advantages = _keep(advantages, real)
    ratio = torch.exp(log_ratio)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    losses = torch.maximum(unclipped, clipped)
    loss = masked_mean(losses if weights is None else _keep(weights, real) * losses, mask)
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
        old_values: [B, T] of the value model that the update started from.
        returns: [B, T].
        mask: [B, T], 1 at response tokens.
        clip: how far a value may usefully move in one update, above 0, in units of reward.

    Returns:
        The loss, 0-d, and for the log: value_clip_fraction (share of tokens where the clipped error is the
        larger) and explained_variance (of ``returns`` by ``values``; NaN where the returns do not vary).

    Raises:
        ValueError: shapes differ, no token is real, or clip is not above 0.
    """
    real = _real_positions(mask, values, old_values, returns)
    _check_clip(clip)
    values, old_values, returns = _keep(values, real), _keep(old_values, real), _keep(returns, real)
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


@torch.no_grad()
def truncated_importance_weights(
    logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, cap: float = 2.0, level: str = "token"
) -> Tensor:
    """min(pi_trainer / pi_engine, cap): corrects for an engine whose numbers differ from the trainer's.

    Sequence-level weights (one a row, of the product of its ratios) are unbiased but for the cap; token-level
    ones have the lower variance. Truncation as in Ionides (2008), "Truncated importance sampling"; C = 2 as
    in practice.

    Args:
        logprobs: [B, T] nats, of the trainer's policy *before* the update.
        rollout_logprobs: [B, T] nats, as the engine that sampled gave them.
        mask: [B, T], 1 at response tokens.
        cap: the largest weight, above 0.
        level: "token" or "sequence".

    Returns:
        [B, T] without gradient; 0 at masked positions.

    Raises:
        ValueError: unknown ``level``, ``cap`` not above 0, or shapes differ.
    """
    real = _real_positions(mask, logprobs, rollout_logprobs)
    if level not in ("token", "sequence"):
        raise ValueError(f"level must be token or sequence, found {level!r}")
    if not cap > 0:
        raise ValueError(f"cap must be above 0, found {cap}")
    log_ratio = _keep(logprobs, real) - _keep(rollout_logprobs, real)
    if level == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True).expand_as(log_ratio)
    # exp may overflow to infinity, which the cap mends; capping the log instead would round the cap itself.
    return _keep(torch.exp(log_ratio).clamp(max=cap), real)


def leave_one_out_baseline(rewards: Tensor, mask: Tensor | None = None) -> Tensor:
    """For each sample the mean reward of the prompt's other samples (RLOO, arXiv 2402.14740).

    Args:
        rewards: [P, n].
        mask: [P, n], 0 at samples without a reward, which are no part of their group; None: all have one.

    Returns:
        [P, n]; the advantage is ``rewards`` minus this. 0 at masked samples.

    Raises:
        ValueError: not [P, n], shapes differ, or a prompt has fewer than two samples with a reward.
    """
    real, count = _groups(rewards, mask)
    rewards = _keep(rewards, real)
    return _keep((rewards.sum(1, keepdim=True) - rewards) / (count - 1), real)


def group_normalized_advantage(rewards: Tensor, scale_by_std: bool = True, mask: Tensor | None = None) -> Tensor:
    """Rewards minus their prompt's mean, over their prompt's standard deviation (GRPO, arXiv 2402.03300).

    Unbiased deviation with 1e-6 added, so that a prompt whose samples all score the same teaches nothing. That
    holds for what is passed in: scores alone. With a KL penalty among them, samples that tie would be divided
    by the deviation of their KL (`trainer.group_advantages` takes the KL off afterwards).
    ``scale_by_std=False`` is Dr. GRPO (arXiv 2503.20783), which does not favour prompts of low variance.

    Args:
        rewards: [P, n].
        scale_by_std: divide by the deviation.
        mask: [P, n], 0 at samples without a reward, which are no part of their group; None: all have one.

    Returns:
        [P, n]; 0 at masked samples.

    Raises:
        ValueError: not [P, n], shapes differ, or a prompt has fewer than two samples with a reward.
    """
    real, count = _groups(rewards, mask)
    rewards = _keep(rewards, real)
    # From the first sample's reward, so that equal rewards become exactly 0: else the rounding of their mean,
    # divided by a deviation of nearly 0, would pass for an advantage.
    first = real.int().argmax(1, keepdim=True)
    rewards = _keep(rewards - rewards.gather(1, first), real)
    centered = _keep(rewards - rewards.sum(1, keepdim=True) / count, real)
    if not scale_by_std:
        return centered
    deviation = (centered.square().sum(1, keepdim=True) / (count - 1)).sqrt()
    return centered / (deviation + 1e-6)


def _groups(rewards: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which samples have a reward, [P, n], and how many of each prompt, [P, 1]."""
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be [P, n] with n of at least 2, found {tuple(rewards.shape)}")
    real = _real_positions(torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask, rewards)
    count = real.sum(1, keepdim=True)
    if mask is not None and _known_zero((count - 1).clamp(min=0)):
        raise ValueError("a prompt has fewer than two samples with a reward: there is nothing to compare")
    return real, count


# --- reward model and judge ---------------------------------------------------------------------------------


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
    difference = _at_least_fp32(chosen) - _at_least_fp32(rejected)
    if margin is not None:
        difference = difference - margin
    return -(p_chosen * logsigmoid(difference) + (1 - p_chosen) * logsigmoid(-difference)).mean()


def binary_entropy(p: Tensor) -> Tensor:
    """Entropy of a Bernoulli variable, -p log p - (1 - p) log(1 - p): the floor of the soft pairwise loss.

    Args:
        p: any shape, in [0, 1].

    Returns:
        The shape of ``p``, nats; exactly 0 at 0 and 1, and -inf (torch's ``entr``) outside of [0, 1].
    """
    p = _at_least_fp32(p)
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
    p = _at_least_fp32(p)
    if not bool(((p.sum(-1) - 1).abs() <= 1e-3).all()):
        raise ValueError("p must sum to 1 over the ten scores")
    return (p * torch.arange(1, 11, dtype=p.dtype, device=p.device)).sum(-1)


def direct_reward(score: Number) -> Number:
    """The linear map of a score from [1, 10] to [-1, 1]: (2 s - 11) / 9.

    Direct RLAIF (arXiv 2309.00267) states the range and not the map; this is the linear one.

    Args:
        score: a number, or a tensor of any shape.

    Returns:
        The same kind and shape.
    """
    return (score * 2 - 11) / 9
