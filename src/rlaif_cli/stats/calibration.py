"""Calibration of probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlaif_cli.stats.checks import Floats, as_probabilities, as_vector, check_same_length, sigmoid


def brier(p: ArrayLike, y: ArrayLike) -> float:
    """Mean squared error of probabilities (Brier 1950): 0 is perfect, 0.25 is "always 0.5".

    Args:
        p: [n] predicted probabilities.
        y: [n] outcomes, 0 or 1 or the share of humans.

    Raises:
        ValueError: empty, lengths that differ, or values outside [0, 1].
    """
    predicted, outcome = as_probabilities("p", p), as_probabilities("y", y)
    check_same_length(p=predicted, y=outcome)
    return float(np.mean((predicted - outcome) ** 2))


def in_both_orders(p: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    """Every pair as (p, y) and, with its responses swapped, as (1 - p, 1 - y); each [2n].

    Args:
        p: [n] P(the first response is better).
        y: [n] 1 if it was, 0 if not, 0.5 for a tie, or the share of humans.

    Raises:
        ValueError: empty, lengths that differ, or values outside [0, 1].
    """
    predicted, outcome = as_probabilities("p", p), as_probabilities("y", y)
    check_same_length(p=predicted, y=outcome)
    # 1 - 0.9 is a little less than 0.1 and would fall below that bin's edge.
    both = np.round(np.concatenate([predicted, 1 - predicted]), 12)
    return both, np.concatenate([outcome, 1 - outcome])


def reliability_bins(p: ArrayLike, y: ArrayLike, bins: int = 10) -> list[dict[str, float]]:
    """The reliability diagram as numbers: mean prediction and mean outcome by bins of ``p``.

    Bin i holds p in [i / bins, (i + 1) / bins); the last one includes 1. Empty bins are omitted. Pass predictions
    about pairs through ``in_both_orders`` first: from one side only, say that of the preferred response, the outcome
    would be 1 in every bin.

    Args:
        p: [n] predicted probabilities.
        y: [n] outcomes, 0 or 1 or fractions.
        bins: how many bins over [0, 1].

    Returns:
        For each bin in order: low, high (its edges), n (items in it), mean_p and mean_y.

    Raises:
        ValueError: empty, lengths that differ, values outside [0, 1], or ``bins`` below 1.
    """
    predicted, outcome = as_probabilities("p", p), as_probabilities("y", y)
    check_same_length(p=predicted, y=outcome)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, found {bins}")
    edges = np.arange(bins + 1) / bins  # not linspace, whose 0.3 is 0.30000000000000004
    index = np.searchsorted(edges[1:-1], predicted, side="right")
    return [
        {
            "low": float(edges[i]),
            "high": float(edges[i + 1]),
            "n": int((index == i).sum()),
            "mean_p": float(predicted[index == i].mean()),
            "mean_y": float(outcome[index == i].mean()),
        }
        for i in np.unique(index)
    ]


def expected_calibration_error(p: ArrayLike, y: ArrayLike, bins: int = 10) -> float:
    """ECE: mean over items of |mean p - mean y| of the item's bin (Naeini et al. 2015).

    Args:
        p: [n] predicted probabilities; of pairs, ``in_both_orders``.
        y: [n] outcomes, 0 or 1 or fractions.
        bins: equal-width bins over [0, 1], see ``reliability_bins``.

    Returns:
        From 0 to 1. Biased upwards if bins hold few items.

    Raises:
        ValueError: as ``reliability_bins``.
    """
    table = reliability_bins(p, y, bins)
    return sum(b["n"] * abs(b["mean_p"] - b["mean_y"]) for b in table) / sum(b["n"] for b in table)


def entropy(p: ArrayLike) -> Floats:
    """Entropy of Bernoulli variables, -p log p - (1 - p) log(1 - p), in nats; exactly 0 at 0 and 1.

    Args:
        p: [n] probabilities.

    Returns:
        [n].

    Raises:
        ValueError: empty, or values outside [0, 1].
    """
    vector = as_probabilities("p", p)
    both = np.stack([vector, 1 - vector])
    return np.asarray(-(both * np.log(np.where(both > 0, both, 1.0))).sum(0), dtype=np.float64)


def fit_contrast_scale(differences: ArrayLike, human_first: ArrayLike) -> float:
    """Calibrate a contrast judge: the k for which sigmoid(k * difference) best predicts human labels.

    No intercept, since the contrast has no position bias to correct. Maximum likelihood by Newton's method
    within a shrinking bracket of [0, 1000] (the log-likelihood is concave in k, so its slope crosses 0 once).

    Args:
        differences: [n] score_first - score_second, in nats per token.
        human_first: [n] the share of humans who prefer the first response; a tie (0.5) pulls k towards 0.

    Returns:
        k, at most 1000 (reached if the sign of the difference is always right); 0.0 if the differences carry no
        positive signal, so that every preference becomes 0.5.

    Raises:
        ValueError: empty, lengths that differ, or shares outside [0, 1].
    """
    d, y = as_vector("differences", differences), as_probabilities("human_first", human_first)
    check_same_length(differences=d, human_first=y)

    def slope(k: float) -> float:
        return float(d @ (y - sigmoid(k * d)))

    low, high = 0.0, 1000.0
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    k = 1.0
    for _ in range(200):
        low, high = (k, high) if slope(k) > 0 else (low, k)
        p = sigmoid(k * d)
        curvature = float(d * d @ (p * (1 - p)))
        newton = k + slope(k) / curvature if curvature > 0 else low
        following = newton if low < newton < high else (low + high) / 2
        if abs(following - k) <= 1e-10 * max(1.0, k):
            return following
        k = following
    return k


def calibration(p: NDArray[Any], y: NDArray[Any]) -> dict[str, Any]:
    """Calibration of probabilities about pairs: ECE, Brier score and the reliability diagram.

    Every pair counts in both orders, so the bins hold twice as many items as there are pairs.

    Args:
        p: [n] P(the first of a pair is better).
        y: [n] 1 if it was, 0 if not, or the share of people.
    """
    both = in_both_orders(p, y)
    return {
        "ece": round(expected_calibration_error(*both), 9),
        "brier": round(brier(p, y), 9),
        "reliability": [{name: round(value, 6) for name, value in found.items()} for found in reliability_bins(*both)],
    }
