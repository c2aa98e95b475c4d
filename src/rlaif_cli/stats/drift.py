"""Has a judge changed? Its earlier judgements of some pairs against two new ones of the same pairs.

The judge is asked twice now, so that its own scatter (sampling, batching, caches) is measured and not assumed. If
nothing has changed, the three judgements of a pair are exchangeable: any of them is as likely to stand apart.

- Winners: of the pairs whose three winners are not all the same, exactly one judgement stands apart; without drift it
  is the earlier one in one third of them. The exact binomial probability of as many or more is the p-value.
- Certainty: the mean over pairs of s (mean of the two new p - earlier p), where p = P(the first response wins) and s
  is the sign of the mean of all three minus 1/2. s treats the three alike, so the expected value without drift is 0;
  below 0: the judge is now less sure of the same winners. Taking the earlier winner's side instead would show a decline
  for every judge that scatters, because a winner was picked for having scored high (regression to the mean).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlaif_cli.stats.as_json import as_json, rate
from rlaif_cli.stats.intervals import mean_estimate

LEVEL = 0.025  # of each of the two tests: a judge that has not changed fails one of them in at most 1 of 20 rechecks


def drift(earlier: ArrayLike, first: ArrayLike, second: ArrayLike, prompts: Sequence[Hashable]) -> dict[str, Any]:
    """The comparison as JSON; `drifted`: the 97.5 % interval of the change excludes 0, or p is below `LEVEL`.

    Args:
        earlier, first, second: [n] P(the first response wins), of the earlier and the two new judgements.
        prompts: [n] the prompt of each pair, whose judgements are not independent.

    Raises:
        ValueError: empty, or the lengths differ.
    """
    p = np.array([earlier, first, second], dtype=float)
    if not p.size:
        raise ValueError("no pairs")
    wins = p >= 0.5
    apart = (wins != wins[0]).any(axis=0)
    earlier_apart = (wins[1] == wins[2]) & (wins[0] != wins[1])
    side = np.where(p.mean(axis=0) >= 0.5, 1.0, -1.0)
    change = as_json(mean_estimate(side * (p[1:].mean(axis=0) - p[0]), prompts, level=1 - LEVEL))
    p_value = upper_tail(int(earlier_apart.sum()), int(apart.sum()), 1 / 3)
    moved = change["low"] is not None and not change["low"] <= 0 <= change["high"]
    return {
        "drifted": bool(moved or p_value < LEVEL),
        "changed_winners": rate(wins[1] != wins[0], prompts),
        "changed_between_the_new": rate(wins[2] != wins[1], prompts),
        "pairs_with_different_winners": int(apart.sum()),
        "earlier_stands_apart": int(earlier_apart.sum()),
        "p_value": round(p_value, 6),
        "mean_change": change,
        "mean_absolute_change": round(float(np.abs(p[1:].mean(axis=0) - p[0]).mean()), 6),
    }


def upper_tail(successes: int, trials: int, p: float) -> float:
    """P(X >= successes) for X binomial."""
    terms = (math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes, trials + 1))
    return min(1.0, sum(terms))
