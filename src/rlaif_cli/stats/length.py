"""Bias towards longer responses."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from rlaif_cli.stats.checks import Floats, as_lengths, as_probabilities, check_same_length, sigmoid
from rlaif_cli.stats.intervals import MIN_CLUSTERS_AT_EQUAL_LENGTH, Estimate, by_prompt, effective_n, wilson_interval

_RIDGE = 1e-6


def longer_wins(lengths_first: ArrayLike, lengths_second: ArrayLike) -> Floats:
    """A judge that always prefers the longer response: the baseline for every other judge.

    Args:
        lengths_first: [n] of the first responses, in any unit.
        lengths_second: [n] of the second ones.

    Returns:
        [n] p_first: 1.0, 0.0, or 0.5 for equal lengths.

    Raises:
        ValueError: empty, lengths that differ, or a negative length.
    """
    first, second = as_lengths("lengths_first", lengths_first), as_lengths("lengths_second", lengths_second)
    check_same_length(lengths_first=first, lengths_second=second)
    return np.asarray(0.5 + 0.5 * np.sign(first - second), dtype=np.float64)


_LENGTH_GAPS = ((1.1, "up to 10 %"), (1.5, "10 to 50 %"), (2.0, "50 to 100 %"), (float("inf"), "over 100 %"))


LENGTH_GAPS = tuple(name for _, name in _LENGTH_GAPS)


def length_gap(a: int, b: int) -> str:
    """How much longer the longer of two texts is: one of `LENGTH_GAPS`. An empty text counts as one character."""
    ratio = max(a, b) / max(1, min(a, b))
    return next(name for top, name in _LENGTH_GAPS if ratio <= top)


def length_controlled_estimate(
    wins: ArrayLike,
    lengths_a: ArrayLike,
    lengths_b: ArrayLike,
    prompts: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
) -> Estimate:
    """The win rate of ``a`` if its responses were as long as those of ``b`` (Lee et al., arXiv 2309.00267).

    Logistic regression of the win on the log of the length ratio a / b in characters, predicted at ratio 1.
    The log makes the rate of ``b`` the complement of that of ``a``. A ridge of 1e-6 keeps the fit finite if
    length separates all wins from all losses; the rate then depends on the few pairs of nearly equal length,
    which only the interval shows.

    The interval is Wilson's at the effective number of items, as in `rate_estimate`. The variance is the regression's
    cluster-robust one (Liang and Zeger 1986), propagated to the rate. If it cannot be estimated, items are weighted by
    their leverage in a linear regression, predicted at a length ratio of 1.

    Args:
        wins: [n] 1 if ``a`` wins, 0 if ``b`` does; shares and probabilities are allowed.
        lengths_a: [n] characters; an empty response counts as one.
        lengths_b: [n] characters.
        prompts: [n] the prompt of each comparison; None: all different.
        level: coverage, between 0 and 1.

    Raises:
        ValueError: empty, lengths that differ, wins outside [0, 1], or a negative length.
    """
    outcome = as_probabilities("wins", wins)
    a, b = as_lengths("lengths_a", lengths_a), as_lengths("lengths_b", lengths_b)
    check_same_length(wins=outcome, lengths_a=a, lengths_b=b)
    log_ratio = np.log(np.maximum(a, 1)) - np.log(np.maximum(b, 1))
    x = np.stack([np.ones_like(log_ratio), log_ratio], axis=1)
    w = _fit_logistic(x, outcome, ridge=_RIDGE)
    rate, p = float(sigmoid(w[0])), sigmoid(x @ w)
    information = (x.T * (p * (1 - p))) @ x + _RIDGE * np.eye(2)
    influence = rate * (1 - rate) * (x @ np.linalg.inv(information)[0]) * (outcome - p)
    totals, sizes = by_prompt(influence, prompts)
    if float(p @ (1 - p)) < 0.5:  # nearly all comparisons have one outcome: the ridge dominates the fit
        totals = np.zeros_like(totals)
    # If all length ratios are equal there is nothing to control for, and an item counts fully.
    item_weight = 1 / float(np.linalg.pinv(x.T @ x)[0, 0]) / len(x) if np.ptp(log_ratio) > 0 else 1.0
    n = effective_n(totals, sizes, rate, min_clusters=MIN_CLUSTERS_AT_EQUAL_LENGTH, item_weight=item_weight)
    return Estimate(rate, *wilson_interval(rate * n, n, level), len(outcome), len(sizes))


def _fit_logistic(x: Floats, y: Floats, ridge: float) -> Floats:
    """Coefficients [k] of a logistic regression of y [n] on x [n, k]: Newton's method from 0."""
    w = np.zeros(x.shape[1])
    for _ in range(100):  # about 7 steps; up to 30 where only the ridge keeps the coefficients finite
        p = sigmoid(x @ w)
        gradient = x.T @ (p - y) + ridge * w
        step = np.linalg.solve((x.T * (p * (1 - p))) @ x + ridge * np.eye(len(w)), gradient)
        w = w - step
        if np.abs(step).max() <= 1e-7:
            break
    return w
