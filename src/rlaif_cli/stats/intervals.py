"""Rates and means with intervals over prompts.

Results of one prompt resemble each other, so intervals count prompts, not results: the variance is cluster-robust, of
sums over prompts (Liang and Zeger 1986).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlaif_cli.stats.checks import Floats, as_probabilities, as_vector, check_same_length

_ZERO_VARIANCE = 1e-24  # below this, the squared error of a rate is only rounding


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, found {level}")


# The minimum effective number of prompts (participation ratio of their squared errors: 3 if three prompts carry all of
# it) to estimate the correlation within prompts; from simulation, for a rate and for a length-controlled rate.
MIN_CLUSTERS = 3.0


MIN_CLUSTERS_AT_EQUAL_LENGTH = 2.0


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, the number of items and the number of their prompts.

    Attributes:
        low, high: minus and plus infinity if there is only one prompt, which does not show the spread.
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
    interval is Wilson's own. With other values the variance of an item is estimated too, and their number is multiplied
    by (z / t)^2, t with (prompts - 1) degrees of freedom (Korn and Graubard 1998). If one or two prompts carry all the
    variation (by the participation ratio of their squared deviations), deff cannot be estimated; the results of a
    prompt then count as one result, which for prompts of different sizes gives Kish's n (1965).

    `benchmarks/coverage.py` simulates the coverage: 93 to 97 %.

    Args:
        values: [n] in [0, 1]: 1 for what is counted, 0.5 for a tie, or probabilities.
        prompts: [n] the prompt of each value; None: all different.
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
    """A mean of unbounded values, such as rewards, with Student's interval: t with (prompts - 1) degrees of freedom.

    Args:
        values: [n].
        prompts: [n] the prompt of each value; None: all different.
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
    """([prompts] sum of values, [prompts] number of values)."""
    if prompts is None:
        return values, np.ones_like(values)
    check_same_length(values=values, prompts=prompts)
    codes = group_codes(prompts)
    return np.bincount(codes, weights=values).astype(np.float64), np.bincount(codes).astype(np.float64)


def effective_n(
    influence: Floats, sizes: Floats, rate: float, *, min_clusters: float = MIN_CLUSTERS, item_weight: float = 1.0
) -> float:
    """The number of independent trials that would give a rate this variance; see `rate_estimate`.

    Args:
        influence: [prompts] the contribution of each to the error of the rate.
        sizes: [prompts] number of items.
        min_clusters: effective number of prompts needed to estimate the variance.
        item_weight: of an item, if the variance cannot be estimated.
    """
    count, items = len(sizes), float(sizes.sum())
    squares = influence**2
    total = float(squares.sum())
    known = total > _ZERO_VARIANCE and total**2 >= min_clusters * float((squares**2).sum())
    if not known:
        return item_weight * items**2 / float((sizes**2).sum())
    # Both variances, of the rate and of one trial, are unbiased: one result of 0 or 1 a prompt is one trial exactly.
    return rate * (1 - rate) / (total * count / (count - 1) * (items - 1) / items)


def wilson_interval(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): also valid at 0, at ``n``, and for few items.

    Args:
        successes: from 0 to ``n``; a tie may count 0.5.
        n: independent trials, above 0; for correlated results, their effective number.
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
    # At the ends the bound is exactly 0 or 1, without rounding errors.
    return (0.0 if successes == 0 else center - half), (1.0 if successes == n else center + half)


@lru_cache
def student_quantile(share: float, df: int) -> float:
    """The quantile of Student's t distribution.

    By bisection of the angle atan(t / sqrt(df)), whose distribution is a finite sum (Abramowitz and Stegun 26.7.3-4);
    above 1,000 degrees of freedom by the first terms of its expansion (26.7.5), exact to 1e-8.

    Args:
        share: probability below the quantile, from 0.5 and below 1.
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
