"""What an evaluation reports: agreement, win rates, calibration, and how sure one may be of each.

numpy and the standard library alone. Conventions, kept by every function here:

- Probabilities and wins are in [0, 1], from the side of the *first* (or ``a``) response; entropy is in nats.
- Inputs are 1-D and of one length. ValueError for empty or unequal inputs, NaN, infinity, and values out of
  range: a row that could not be scored is dropped and counted by the caller, never averaged in.
- Intervals are (low, high) at ``level``, 95 % unless said otherwise, and take prompts to be independent, not pairs.
- Which response of a pair is called the first says nothing about it: no number here changes if some pairs are turned
  round. Calibration and kappa therefore count every pair in both orders, as (p, y) and as (1 - p, 1 - y).
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_RIDGE = 1e-6
_ALL_ALIKE = 1e-24  # squared error of a rate that is nothing but rounding


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
#
# Results of one prompt resemble each other, so every interval counts prompts and not results: its variance is the
# cluster-robust one, of sums over prompts (Liang and Zeger 1986).

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
    items = _probabilities("values", values)
    totals, sizes = _by_prompt(items, prompts)
    rate = float(items.mean())
    n = _effective_n((totals - rate * sizes) / len(items), sizes, rate)
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
    items = _vector("values", values)
    _check_level(level)
    totals, sizes = _by_prompt(items, prompts)
    mean, count = float(items.mean()), len(sizes)
    half = math.inf
    if count > 1:
        deviations = totals - mean * sizes
        error = math.sqrt(float(deviations @ deviations) * count / (count - 1)) / len(items)
        half = student_quantile((1 + level) / 2, count - 1) * error
    return Estimate(mean, mean - half, mean + half, len(items), count)


def _by_prompt(values: Floats, prompts: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    """([prompts] sums of their values, [prompts] how many they have)."""
    if prompts is None:
        return values, np.ones_like(values)
    _same_length(values=values, prompts=prompts)
    codes = _codes(prompts)
    return np.bincount(codes, weights=values).astype(np.float64), np.bincount(codes).astype(np.float64)


def _effective_n(
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


def _codes(labels: Sequence[Hashable]) -> NDArray[np.int64]:
    """Labels as 0, 1, 2, ... by first appearance; np.unique would refuse labels of mixed types."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)


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


def pair_kappa(first: ArrayLike, second: ArrayLike) -> float:
    """Cohen's kappa of two raters of pairs, each pair counted in both orders.

    Chance then knows nothing of how a file orders its pairs: were all preferred responses on one side, it would explain
    everything. Without ties it chooses right half of the time, and kappa is 2 x agreement - 1. A tie is an
    answer of its own; leave out the pairs that cannot be got right.

    Args:
        first: [n] one rater's probability (or share) for the first response of each pair; one half is a tie.
        second: [n] the other's.

    Returns:
        From -1 to 1; NaN if both say "tie" throughout.

    Raises:
        ValueError: empty, lengths that differ, or values outside [0, 1].
    """
    a, b = np.sign(_probabilities("first", first) - 0.5), np.sign(_probabilities("second", second) - 0.5)
    return cohen_kappa([*a, *-a], [*b, *-b])


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


def in_both_orders(p: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    """Every pair as (p, y) and, its responses exchanged, as (1 - p, 1 - y); each [2n].

    Args:
        p: [n] P(the first response is better).
        y: [n] 1 where it was, 0 where not, one half for a tie, or the share of humans.

    Raises:
        ValueError: empty, lengths that differ, or values outside [0, 1].
    """
    predicted, outcome = _probabilities("p", p), _probabilities("y", y)
    _same_length(p=predicted, y=outcome)
    # 1 - 0.9 is a little less than 0.1 and would fall below that bin's edge.
    both = np.round(np.concatenate([predicted, 1 - predicted]), 12)
    return both, np.concatenate([outcome, 1 - outcome])


def reliability_bins(p: ArrayLike, y: ArrayLike, bins: int = 10) -> list[dict[str, float]]:
    """The reliability diagram as numbers: what was predicted and what came true, by bins of ``p``.

    Bin i holds p in [i / bins, (i + 1) / bins); the last one includes 1. Empty bins are left out. Predictions about
    pairs go through ``in_both_orders`` first: from one side alone, say that of the preferred response, what came
    true would be 1 in every bin.

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
        p: [n] predicted probabilities; of pairs, ``in_both_orders``.
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
    return length_controlled_estimate(wins, lengths_a, lengths_b).value


def length_controlled_estimate(
    wins: ArrayLike,
    lengths_a: ArrayLike,
    lengths_b: ArrayLike,
    prompts: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
) -> Estimate:
    """`length_controlled_win_rate` with its interval: Wilson's at the effective number of items, as `rate_estimate`.

    The variance is the regression's cluster-robust one (Liang and Zeger 1986), carried over to the rate. Where it
    cannot be estimated, an item counts for as much of one as linear regression leaves it at a ratio of 1.

    Args:
        wins, lengths_a, lengths_b: [n], see `length_controlled_win_rate`.
        prompts: [n] whose comparisons they are; None: each of its own.
        level: coverage, between 0 and 1.

    Raises:
        ValueError: as `length_controlled_win_rate`.
    """
    outcome = _probabilities("wins", wins)
    a, b = _lengths("lengths_a", lengths_a), _lengths("lengths_b", lengths_b)
    _same_length(wins=outcome, lengths_a=a, lengths_b=b)
    log_ratio = np.log(np.maximum(a, 1)) - np.log(np.maximum(b, 1))
    x = np.stack([np.ones_like(log_ratio), log_ratio], axis=1)
    w = _fit_logistic(x, outcome, ridge=_RIDGE)
    rate, p = float(_sigmoid(w[0])), _sigmoid(x @ w)
    information = (x.T * (p * (1 - p))) @ x + _RIDGE * np.eye(2)
    influence = rate * (1 - rate) * (x @ np.linalg.inv(information)[0]) * (outcome - p)
    totals, sizes = _by_prompt(influence, prompts)
    if float(p @ (1 - p)) < 0.5:  # next to all comparisons have one outcome: the fit leans on its ridge
        totals = np.zeros_like(totals)
    # Without a spread of lengths there is nothing to control for, and an item counts in full.
    worth = 1 / float(np.linalg.pinv(x.T @ x)[0, 0]) / len(x) if np.ptp(log_ratio) > 0 else 1.0
    n = _effective_n(totals, sizes, rate, carriers=CARRIERS_AT_EQUAL_LENGTH, worth=worth)
    return Estimate(rate, *wilson_interval(rate * n, n, level), len(outcome), len(sizes))


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
