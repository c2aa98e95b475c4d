"""Rates and means with intervals over prompts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlaif_cli.stats.checks import Floats, as_probabilities, as_vector, check_same_length

_ALL_ALIKE = 1e-24  # squared error of a rate that is nothing but rounding


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, found {level}")


# The fewest prompts, by the participation ratio of their squared errors (3 where three of them make up all of it), that
# tell how far results of one prompt resemble each other; found by simulation, for a rate and for one at equal length.
CARRIERS = 3.0


CARRIERS_AT_EQUAL_LENGTH = 2.0


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, the items behind it and the prompts that these belong to.

    Attributes:
        low, high: minus and plus infinity where one prompt alone says nothing of the spread.
    """

    value: float
    low: float
    high: float
    n: int
    prompts: int

    def __str__(self) -> str:
        interval = f"[{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{100 * self.value:.1f} % {interval}, n = {self.n} of {self.prompts} prompts"


def rate_estimate(values: ArrayLike, prompts: Sequence[Hashable] | None = None, *, level: float = 0.95) -> Estimate:
    """A rate, or any mean of values in [0, 1], with Wilson's interval (1927) at the effective number of items.

    That number is n / deff, deff being the design effect (Rao and Scott 1992): the variance of the rate by sums over
    prompts, divided by what it would be for n independent items. With one result of 0 or 1 a prompt, deff is 1 and the
    interval is Wilson's own. With other values the variance of one is estimated too, and their number is multiplied
    by (z / t)^2, t of (prompts - 1) degrees of freedom (Korn and Graubard 1998). Where one or two prompts carry all
    the variation (by the participation ratio of their squared deviations), deff cannot be estimated; results of one
    prompt then count as one result, which for prompts of different sizes is Kish's n (1965).

    `benchmarks/coverage.py` simulates the coverage: 93 to 97 %.

    Args:
        values: [n] in [0, 1]: 1 for what is counted, a half for a tie, or probabilities.
        prompts: [n] whose results they are; None: each of its own.
        level: coverage, between 0 and 1.

    Raises:
        ValueError: empty, values outside [0, 1], lengths that differ, or ``level`` out of range.
    """
    items = as_probabilities("values", values)
    totals, sizes = by_prompt(items, prompts)
    rate = float(items.mean())
    n = effective_n((totals - rate * sizes) / len(items), sizes, rate)
    if len(sizes) > 1 and not np.isin(items, (0, 1)).all():
        n *= (NormalDist().inv_cdf((1 + level) / 2) / student_quantile((1 + level) / 2, len(sizes) - 1)) ** 2
    return Estimate(rate, *wilson_interval(rate * n, n, level), len(items), len(sizes))


def mean_estimate(values: ArrayLike, prompts: Sequence[Hashable] | None = None, *, level: float = 0.95) -> Estimate:
    """A mean of unbounded values, such as rewards, with Student's interval: t of (prompts - 1) degrees of freedom.

    Args:
        values: [n].
        prompts: [n] whose results they are; None: each of its own.
        level: coverage, between 0 and 1.

    Raises:
        ValueError: empty, NaN, lengths that differ, or ``level`` out of range.
    """
    items = as_vector("values", values)
    _check_level(level)
    totals, sizes = by_prompt(items, prompts)
    mean, count = float(items.mean()), len(sizes)
    half = math.inf
    if count > 1:
        deviations = totals - mean * sizes
        error = math.sqrt(float(deviations @ deviations) * count / (count - 1)) / len(items)
        half = student_quantile((1 + level) / 2, count - 1) * error
    return Estimate(mean, mean - half, mean + half, len(items), count)


def by_prompt(values: Floats, prompts: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    """([prompts] sums of their values, [prompts] how many they have)."""
    if prompts is None:
        return values, np.ones_like(values)
    check_same_length(values=values, prompts=prompts)
    codes = group_codes(prompts)
    return np.bincount(codes, weights=values).astype(np.float64), np.bincount(codes).astype(np.float64)


def effective_n(
    influence: Floats, sizes: Floats, rate: float, *, carriers: float = CARRIERS, worth: float = 1.0
) -> float:
    """How many independent trials would give a rate the variance that this one has; see `rate_estimate`.

    Args:
        influence: [prompts] what each adds to the error of the rate.
        sizes: [prompts] its items.
        carriers: prompts that must carry the variation for it to be estimated.
        worth: of an item, where the variance cannot be estimated.
    """
    count, items = len(sizes), float(sizes.sum())
    squares = influence**2
    total = float(squares.sum())
    known = total > _ALL_ALIKE and total**2 >= carriers * float((squares**2).sum())
    if not known:
        return worth * items**2 / float((sizes**2).sum())
    # Both variances, of the rate and of one trial, are unbiased: one result of 0 or 1 a prompt is one trial exactly.
    return rate * (1 - rate) / (total * count / (count - 1) * (items - 1) / items)


def wilson_interval(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): sensible also at 0, at ``n``, and for few items.

    Args:
        successes: from 0 to ``n``; a tie may count one half.
        n: independent trials, above 0; of results that resemble each other, their effective number.
        level: coverage, between 0 and 1.

    Returns:
        (low, high), within [0, 1].

    Raises:
        ValueError: ``n`` not above 0, ``successes`` outside [0, n], or ``level`` out of range.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n, and n above 0, found {successes} of {n}")
    _check_level(level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    rate, shrink = successes / n, 1 + z * z / n
    center = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * (rate * (1 - rate) / n + z * z / (4 * n * n)) ** 0.5
    # At the two ends the bound is exactly 0 or 1; rounding must not say otherwise.
    return (0.0 if successes == 0 else center - half), (1.0 if successes == n else center + half)


@lru_cache
def student_quantile(share: float, df: int) -> float:
    """The quantile of Student's t: the value that a share of it lies below.

    By bisection of the angle atan(t / sqrt(df)), whose distribution is a finite sum (Abramowitz and Stegun 26.7.3-4);
    above 1,000 degrees of freedom by the first terms of its expansion (26.7.5), exact to 1e-8.

    Args:
        share: from one half, below 1.
        df: at least 1.
    """
    if df > 1000:
        z = NormalDist().inv_cdf(share)
        return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    odd = df % 2
    steps = np.arange(1 + odd, df - 1, 2)
    factors = np.cumprod(np.concatenate([[1.0], steps / (steps + 1)]))[: df // 2]

    def within(angle: float) -> float:
        """P(|atan(t / sqrt(df))| < angle)."""
        powers = math.cos(angle) ** (2 * np.arange(len(factors)) + odd)
        partial = math.sin(angle) * float(factors @ powers)
        return 2 / math.pi * (angle + partial) if odd else partial

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 2 * share - 1 else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def group_codes(labels: Sequence[Hashable]) -> NDArray[np.int64]:
    """Labels as 0, 1, 2, ... by first appearance; np.unique would refuse labels of mixed types."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)
