"""What an evaluation reports: agreement, win rates, calibration, and how sure one may be of each.

numpy and the standard library alone. Conventions, kept by every function here:

- Probabilities and wins are in [0, 1], from the side of the *first* (or ``a``) response; entropy is in nats.
- Inputs are 1-D and of one length. ValueError for empty or unequal inputs, NaN, infinity, and values out of
  range: a row that could not be scored is dropped and counted by the caller, never averaged in.
- Intervals are (low, high) at ``level``, 95 % unless said otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_DRAWS_AT_ONCE = 1 << 21  # bootstrap indices in memory: 16 MiB


# --- checks -------------------------------------------------------------------------------------------------


def _vector(name: str, values: ArrayLike) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"{name} must be a non-empty list of numbers, found shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} must be finite numbers, found {vector[~np.isfinite(vector)][0]} among them")
    return vector


def _probabilities(name: str, values: ArrayLike) -> Floats:
    vector = _vector(name, values)
    outside = vector[(vector < 0) | (vector > 1)]
    if outside.size:
        raise ValueError(f"{name} must be in [0, 1], found {outside[0]:g}")
    return vector


def _lengths(name: str, values: ArrayLike) -> Floats:
    vector = _vector(name, values)
    if (vector < 0).any():
        raise ValueError(f"{name} must be lengths of at least 0, found {vector.min():g}")
    return vector


def _same_length(**named: Sequence[Any] | NDArray[Any]) -> None:
    sizes = {name: len(values) for name, values in named.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError("lengths differ: " + ", ".join(f"{name} has {size}" for name, size in sizes.items()))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, found {level}")


def _sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(x / 2))  # tanh saturates where exp would overflow


# --- intervals ----------------------------------------------------------------------------------------------


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[NDArray[Any]], Any] = np.mean,
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap (Efron 1979) of a statistic, over items or over whole groups of items.

    Give ``groups`` (say, the prompt of each item) where items of a group resemble each other: resampling them
    one by one would claim a certainty that is not there. Deterministic for a seed. If all values are equal
    the interval has width 0, which for a proportion is too sure of itself: use ``wilson_interval`` there.

    Args:
        values: [n] numbers, or [n, k] rows that belong together, such as (p, y); no NaN.
        statistic: takes the resampled values, in the shape of ``values``, and returns a number. The mean of
            1-D values, the default, is vectorised.
        groups: [n] labels; None treats each item as its own group.
        resamples: bootstrap samples.
        level: coverage, between 0 and 1.
        seed: of the resampling.

    Returns:
        (low, high).

    Raises:
        ValueError: empty values, NaN, lengths that differ, or ``resamples`` or ``level`` out of range.
    """
    items = np.asarray(values, dtype=np.float64)
    if items.ndim == 0 or items.size == 0 or not np.isfinite(items).all():
        raise ValueError(f"values must be non-empty and finite, found shape {items.shape}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, found {resamples}")
    _check_level(level)
    codes = np.arange(len(items)) if groups is None else _codes(groups)
    _same_length(values=items, groups=codes)

    count = int(codes.max()) + 1
    at_once = max(1, _DRAWS_AT_ONCE // count)
    sizes = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    rng = np.random.default_rng(seed)
    draws = (rng.integers(count, size=(size, count)) for size in sizes)  # a row: the groups of one resample
    if statistic is np.mean and items.ndim == 1:
        totals, members = np.bincount(codes, weights=items), np.bincount(codes)
        results = np.concatenate([totals[draw].sum(1) / members[draw].sum(1) for draw in draws])
    else:
        members_of = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        results = np.array(
            [statistic(items[np.concatenate([members_of[g] for g in row])]) for draw in draws for row in draw]
        )
    low, high = np.quantile(results, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _codes(labels: Sequence[Hashable]) -> NDArray[np.int64]:
    """Labels as 0, 1, 2, ... by first appearance; np.unique would refuse labels of mixed types."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)


def wilson_interval(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): sensible also at 0, at ``n``, and for few items.

    Args:
        successes: from 0 to ``n``; a tie may count one half.
        n: independent trials.
        level: coverage, between 0 and 1.

    Returns:
        (low, high), within [0, 1].

    Raises:
        ValueError: ``n`` below 1, ``successes`` outside [0, n], or ``level`` out of range.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n, and n at least 1, found {successes} of {n}")
    _check_level(level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    rate, shrink = successes / n, 1 + z * z / n
    center = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * (rate * (1 - rate) / n + z * z / (4 * n * n)) ** 0.5
    # At the two ends the bound is exactly 0 or 1; rounding must not say otherwise.
    return (0.0 if successes == 0 else center - half), (1.0 if successes == n else center + half)


@dataclass(frozen=True)
class Estimate:
    """A proportion with its 95 % interval and the number of items behind it; prints as percentages."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}], n = {self.n}"


def mean_estimate(values: ArrayLike, groups: Sequence[Hashable] | None = None, seed: int = 0) -> Estimate:
    """The mean of per-item results with its bootstrap interval.

    Args:
        values: [n]; NaN means "does not count" (as ``agreement_items`` marks human ties) and is left out of
            ``n``.
        groups: [n] labels to resample together, see ``bootstrap_interval``.
        seed: of the resampling.

    Raises:
        ValueError: no item counts, or lengths differ.
    """
    items = np.asarray(values, dtype=np.float64)
    if items.ndim != 1:
        raise ValueError(f"values must be a list of numbers, found shape {items.shape}")
    counts = ~np.isnan(items)
    if groups is not None:
        _same_length(values=items, groups=groups)
        groups = [group for group, counted in zip(groups, counts, strict=True) if counted]
    items = _vector("values", items[counts])
    low, high = bootstrap_interval(items, groups=groups, seed=seed)
    return Estimate(float(items.mean()), low, high, len(items))


# --- agreement ----------------------------------------------------------------------------------------------


def agreement_items(p_first: ArrayLike, human_first: ArrayLike) -> Floats:
    """Per comparison: does the judge prefer the response that the humans prefer?

    Args:
        p_first: [n] the judge's probability that the first response is better.
        human_first: [n] the share of humans who prefer the first response.

    Returns:
        [n]: 1 yes, 0 no, 0.5 where the judge is at exactly one half, NaN where the humans are. Its nanmean is
        ``accuracy``.

    Raises:
        ValueError: empty, lengths that differ, or values outside [0, 1].
    """
    judge, human = _probabilities("p_first", p_first), _probabilities("human_first", human_first)
    _same_length(p_first=judge, human_first=human)
    agreement = 0.5 + 0.5 * np.sign(judge - 0.5) * np.sign(human - 0.5)
    return np.where(human == 0.5, np.nan, agreement)


def wins(p_first: ArrayLike) -> Floats:
    """Per comparison, what the first response gets of a win: 1, 0, or 0.5 where the judge is at exactly one half.

    Args:
        p_first: [n] the judge's probability that the first response is better.

    Returns:
        [n].
    """
    return 0.5 + 0.5 * np.sign(np.asarray(p_first, dtype=np.float64) - 0.5)


def accuracy(p_first: ArrayLike, human_first: ArrayLike) -> float:
    """AI Labeler Alignment (Lee et al., arXiv 2309.00267): z = mean 1[argmax P_AI = human].

    A human share of exactly 0.5 is a tie, which no judge can be right about: it is excluded. A judge at
    exactly 0.5 has chosen neither: it counts one half, which is what a coin would get on average.

    Args:
        p_first: [n] the judge's probability that the first response is better.
        human_first: [n] the share of humans who prefer the first response.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: empty, lengths that differ, values outside [0, 1], or nothing but human ties.
    """
    items = agreement_items(p_first, human_first)
    if np.isnan(items).all():
        raise ValueError("accuracy is undefined: every human label is a tie")
    return float(np.nanmean(items))


def longer_wins(lengths_first: ArrayLike, lengths_second: ArrayLike) -> Floats:
    """The judge that always prefers the longer response, the baseline to print beside every other judge.

    Args:
        lengths_first: [n] of the first responses, in any unit.
        lengths_second: [n] of the second ones.

    Returns:
        [n] p_first: 1.0, 0.0, or 0.5 for equal lengths.

    Raises:
        ValueError: empty, lengths that differ, or a negative length.
    """
    first, second = _lengths("lengths_first", lengths_first), _lengths("lengths_second", lengths_second)
    _same_length(lengths_first=first, lengths_second=second)
    return np.asarray(0.5 + 0.5 * np.sign(first - second), dtype=np.float64)


_LENGTH_GAPS = ((1.1, "up to 10 %"), (1.5, "10 to 50 %"), (2.0, "50 to 100 %"), (float("inf"), "over 100 %"))
LENGTH_GAPS = tuple(name for _, name in _LENGTH_GAPS)


def length_gap(a: int, b: int) -> str:
    """By how much the longer of two texts is longer: one of `LENGTH_GAPS`. An empty text counts as one character."""
    ratio = max(a, b) / max(1, min(a, b))
    return next(name for top, name in _LENGTH_GAPS if ratio <= top)


_REFUSAL = re.compile(
    r"""^\W*(?:sorry\b|(?:i\s+am|i['’]m)\s+(?:very\s+|so\s+|really\s+)?sorry,?\s+(?:but|i\b)|i\s+apologi[sz]e|my\s+apologies)
    | \bi\s+(?:can(?:not|['’]t)|am\s+(?:unable|not\s+able)\s+to|won['’]t|will\s+not|must\s+(?:decline|refuse))\b
    | \bi\s+(?:must\s+(?:clarify|emphasi[sz]e)|strongly\s+(?:condemn|disagree|advise\s+against))
    | \bdo(?:\s+not|n['’]t)\s+condone
    | \b(?:it\s+is|it['’]s)\s+(?:not|never)\s+(?:appropriate|ethical|acceptable|safe|legal|okay|right)\b
    | \b(?:is|are)\s+(?:not|never)\s+(?:an?\s+)?(?:appropriate|ethical|acceptable|okay)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def is_refusal(text: str) -> bool:
    """Whether a response declines, by its wording alone, in its first 300 characters.

    Rough by design; docs/judging.md has its agreement with XSTest's human labels.
    """
    return _REFUSAL.search(text[:300]) is not None


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Agreement of two raters beyond chance (Cohen 1960): (p_observed - p_chance) / (1 - p_chance).

    Args:
        a: [n] labels of one rater.
        b: [n] labels of the other.

    Returns:
        At most 1; 0 is chance. NaN if both raters give one and the same label throughout: chance explains all
        of it.

    Raises:
        ValueError: empty, or lengths that differ.
    """
    _same_length(a=a, b=b)
    if len(a) == 0:
        raise ValueError("a and b must be non-empty")
    codes = _codes([*a, *b])
    codes_a, codes_b = codes[: len(a)], codes[len(a) :]
    labels = int(codes.max()) + 1
    observed = float((codes_a == codes_b).mean())
    counts_a, counts_b = np.bincount(codes_a, minlength=labels), np.bincount(codes_b, minlength=labels)
    chance = float(counts_a @ counts_b) / len(a) ** 2
    return (observed - chance) / (1 - chance) if chance < 1 else float("nan")


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation (Spearman 1904): Pearson's correlation of the ranks, ties sharing their mean rank.

    Args:
        a: [n].
        b: [n].

    Returns:
        From -1 to 1; NaN if either side is constant.

    Raises:
        ValueError: empty, or lengths that differ.
    """
    first, second = _vector("a", a), _vector("b", b)
    _same_length(a=first, b=second)
    ranks_a, ranks_b = _centered_ranks(first), _centered_ranks(second)
    scale = float(np.sqrt((ranks_a @ ranks_a) * (ranks_b @ ranks_b)))
    return float(ranks_a @ ranks_b) / scale if scale > 0 else float("nan")


def _centered_ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # from 1; a tie shares its middle rank
    return np.asarray(ranks - (len(values) + 1) / 2, dtype=np.float64)


# --- calibration --------------------------------------------------------------------------------------------


def brier(p: ArrayLike, y: ArrayLike) -> float:
    """Mean squared error of probabilities (Brier 1950): 0 is perfect, 0.25 is "always one half".

    Args:
        p: [n] predicted probabilities.
        y: [n] outcomes, 0 or 1 or the share of humans.

    Raises:
        ValueError: empty, lengths that differ, or values outside [0, 1].
    """
    predicted, outcome = _probabilities("p", p), _probabilities("y", y)
    _same_length(p=predicted, y=outcome)
    return float(np.mean((predicted - outcome) ** 2))


def reliability_bins(p: ArrayLike, y: ArrayLike, bins: int = 10) -> list[dict[str, float]]:
    """The reliability diagram as numbers: what was predicted and what came true, by bins of ``p``.

    Bin i holds p in [i / bins, (i + 1) / bins); the last one includes 1. Empty bins are left out.

    Args:
        p: [n] predicted probabilities.
        y: [n] outcomes, 0 or 1 or fractions.
        bins: how many bins over [0, 1].

    Returns:
        For each bin in order: low, high (its edges), n (items in it), mean_p and mean_y.

    Raises:
        ValueError: empty, lengths that differ, values outside [0, 1], or ``bins`` below 1.
    """
    predicted, outcome = _probabilities("p", p), _probabilities("y", y)
    _same_length(p=predicted, y=outcome)
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
        p: [n] predicted probabilities.
        y: [n] outcomes, 0 or 1 or fractions.
        bins: equal-width bins over [0, 1], see ``reliability_bins``.

    Returns:
        From 0 to 1. It is biased upwards where bins hold few items.

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
    vector = _probabilities("p", p)
    both = np.stack([vector, 1 - vector])
    return np.asarray(-(both * np.log(np.where(both > 0, both, 1.0))).sum(0), dtype=np.float64)


# --- fits ---------------------------------------------------------------------------------------------------


def length_controlled_win_rate(wins: ArrayLike, lengths_a: ArrayLike, lengths_b: ArrayLike) -> float:
    """The win rate of ``a`` if its responses were as long as those of ``b`` (Lee et al., arXiv 2309.00267).

    Logistic regression of the win on the log of the length ratio a / b in characters, predicted at ratio 1.
    The log makes the answer for ``b`` the complement of the one for ``a``. A ridge of 1e-6 keeps the fit
    finite where length separates all wins from all losses; the answer then hangs on the few pairs of nearly
    equal length, and only an interval shows it.

    Args:
        wins: [n] 1 where ``a`` wins, 0 where ``b`` does; shares and probabilities between are welcome.
        lengths_a: [n] characters; an empty response counts as one.
        lengths_b: [n] characters.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: empty, lengths that differ, wins outside [0, 1], or a negative length.
    """
    outcome = _probabilities("wins", wins)
    a, b = _lengths("lengths_a", lengths_a), _lengths("lengths_b", lengths_b)
    _same_length(wins=outcome, lengths_a=a, lengths_b=b)
    log_ratio = np.log(np.maximum(a, 1)) - np.log(np.maximum(b, 1))
    intercept = _fit_logistic(np.stack([np.ones_like(log_ratio), log_ratio], axis=1), outcome, ridge=1e-6)[0]
    return float(_sigmoid(intercept))


def _fit_logistic(x: Floats, y: Floats, ridge: float) -> Floats:
    """Coefficients [k] of a logistic regression of y [n] on x [n, k]: Newton's method from 0."""
    w = np.zeros(x.shape[1])
    for _ in range(100):  # about 7 steps; up to 30 where only the ridge keeps the coefficients finite
        p = _sigmoid(x @ w)
        gradient = x.T @ (p - y) + ridge * w
        step = np.linalg.solve((x.T * (p * (1 - p))) @ x + ridge * np.eye(len(w)), gradient)
        w = w - step
        if np.abs(step).max() <= 1e-7:
            break
    return w


def fit_contrast_scale(differences: ArrayLike, human_first: ArrayLike) -> float:
    """Calibrate a contrast judge: the k for which sigmoid(k * difference) best predicts human labels.

    No intercept, since the contrast has no position bias to correct. Maximum likelihood by Newton's method
    within a shrinking bracket of [0, 1000] (the log-likelihood is concave in k, so its slope crosses 0 once).

    Args:
        differences: [n] score_first - score_second, in nats a token.
        human_first: [n] the share of humans who prefer the first response; a tie (0.5) pulls k towards 0.

    Returns:
        k, at most 1000 (reached where the sign of the difference is always right); 0.0 when the differences
        carry no positive signal, so that every preference becomes one half.

    Raises:
        ValueError: empty, lengths that differ, or shares outside [0, 1].
    """
    d, y = _vector("differences", differences), _probabilities("human_first", human_first)
    _same_length(differences=d, human_first=y)

    def slope(k: float) -> float:
        return float(d @ (y - _sigmoid(k * d)))

    low, high = 0.0, 1000.0
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    k = 1.0
    for _ in range(200):
        low, high = (k, high) if slope(k) > 0 else (low, k)
        p = _sigmoid(k * d)
        curvature = float(d * d @ (p * (1 - p)))
        newton = k + slope(k) / curvature if curvature > 0 else low
        following = newton if low < newton < high else (low + high) / 2
        if abs(following - k) <= 1e-10 * max(1.0, k):
            return following
        k = following
    return k
