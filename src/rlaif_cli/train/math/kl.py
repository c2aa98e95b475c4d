"""KL estimates, and controllers of the KL coefficient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlaif_cli.train.math.masked import at_least_fp32


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: str, clamp: float | None = None) -> Tensor:
    """Per-token estimates of KL(policy || reference) from tokens that the policy sampled.

    With log r = ref_logprobs - logprobs: k1 = -log r, k2 = (log r)^2 / 2, k3 = (r - 1) - log r
    (Schulman, "Approximating KL divergence", 2020). k1 is unbiased and may be negative; k2 and k3 are
    never negative. *In the reward*, k1 is correct; as a *loss*, k2 is, and k3 is biased (arXiv 2510.01555).

    Args:
        logprobs: any shape, nats, of the policy.
        ref_logprobs: the shape of ``logprobs``, of the reference.
        kind: "k1", "k2" or "k3".
        clamp: if given, log r is first clamped to [-clamp, clamp]; no gradient flows beyond the bound.

    Returns:
        The shape of ``logprobs``.

    Raises:
        ValueError: unknown ``kind``, ``clamp`` not above 0, or shapes differ.
    """
    if logprobs.shape != ref_logprobs.shape:
        shapes = f"{tuple(logprobs.shape)} and {tuple(ref_logprobs.shape)}"
        raise ValueError(f"logprobs and ref_logprobs must have one shape, found {shapes}")
    log_ratio = at_least_fp32(ref_logprobs) - at_least_fp32(logprobs)
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
    """A KL coefficient that may change during training.

    Attributes:
        value: the current coefficient.
    """

    def __init__(self, init: float) -> None:
        if not (math.isfinite(init) and init >= 0):
            raise ValueError(f"a KL coefficient must be finite and at least 0, found {init}")
        self.value = float(init)

    def update(self, kl: float, n: int) -> None:
        """Update the coefficient after ``n`` sequences with a mean KL of ``kl`` nats."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, float]:
        """What changes during training; target and horizon are in the config."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore ``state_dict()``. Raises KeyError if ``value`` is missing."""
        self.value = float(state["value"])


class FixedKLController(KLController):
    """A constant coefficient."""

    def update(self, kl: float, n: int) -> None:
        """Does nothing: the coefficient is fixed."""


class AdaptiveKLController(KLController):
    """Proportional control of the coefficient in log space (Ziegler et al., arXiv 1909.08593).

    value <- value * (1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon)

    Args:
        init: the initial coefficient, above 0.
        target: the KL to aim for, nats per sequence.
        horizon: the number of sequences over which an error of 20 %, the maximum, changes the
            coefficient by 20 %.

    Raises:
        ValueError: an argument is not above 0.
    """

    def __init__(self, init: float, target: float, horizon: float) -> None:
        super().__init__(init)
        if not (init > 0 and target > 0 and horizon > 0):  # a coefficient of 0 could never rise again
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
            raise ValueError(f"kl must be finite and n at least 1, found kl {kl}, n {n}")
        error = min(max(float(kl) / self.target - 1, -0.2), 0.2)
        factor = 1 + error * n / self.horizon
        if factor <= 0:
            raise ValueError(f"a horizon of {self.horizon:g} is too short for updates of {n} sequences")
        self.value *= factor
