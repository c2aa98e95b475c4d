"""Agreement of judges and humans, wins, and refusals.

Only numpy and the standard library. Conventions of all functions in `stats`:

- Probabilities and wins are in [0, 1], from the side of the *first* (or ``a``) response; entropy is in nats.
- Inputs are 1-D and of one length. ValueError for empty or unequal inputs, NaN, infinity, and values out of
  range: a row that could not be scored is dropped and counted by the caller, never averaged in.
- Intervals are (low, high) at ``level``, 95 % unless said otherwise, and take prompts to be independent, not pairs.
- Which response of a pair comes first carries no information: no number here changes if some pairs are swapped.
  Calibration and kappa therefore count every pair in both orders, as (p, y) and as (1 - p, 1 - y).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from rlaif_cli.stats.checks import Floats, as_probabilities, check_same_length
from rlaif_cli.stats.intervals import group_codes


def agreement_items(p_first: ArrayLike, human_first: ArrayLike) -> Floats:
    """Per comparison: does the judge prefer the response that the humans prefer?

    Args:
        p_first: [n] the judge's probability that the first response is better.
        human_first: [n] the share of humans who prefer the first response.

    Returns:
        [n]: 1 yes, 0 no, 0.5 if the judge is at exactly 0.5, NaN if the humans are. Its nanmean is the AI Labeler
        Alignment of Lee et al. (arXiv 2309.00267).

    Raises:
        ValueError: empty, lengths that differ, or values outside [0, 1].
    """
    judge, human = as_probabilities("p_first", p_first), as_probabilities("human_first", human_first)
    check_same_length(p_first=judge, human_first=human)
    agreement = 0.5 + 0.5 * np.sign(judge - 0.5) * np.sign(human - 0.5)
    return np.where(human == 0.5, np.nan, agreement)


def wins(p_first: ArrayLike) -> Floats:
    """Per comparison, the win of the first response: 1, 0, or 0.5 if the judge is at exactly 0.5.

    Args:
        p_first: [n] the judge's probability that the first response is better.

    Returns:
        [n].
    """
    return 0.5 + 0.5 * np.sign(np.asarray(p_first, dtype=np.float64) - 0.5)


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
    """Whether a response declines, by the wording of its first 300 characters.

    A rough heuristic; docs/judging.md has its agreement with XSTest's human labels.
    """
    return _REFUSAL.search(text[:300]) is not None


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Agreement of two raters beyond chance (Cohen 1960): (p_observed - p_chance) / (1 - p_chance).

    Args:
        a: [n] labels of one rater.
        b: [n] labels of the other.

    Returns:
        At most 1; 0 is chance. NaN if both raters always give the same one label: chance explains everything.

    Raises:
        ValueError: empty, or lengths that differ.
    """
    check_same_length(a=a, b=b)
    if len(a) == 0:
        raise ValueError("a and b must be non-empty")
    codes = group_codes([*a, *b])
    codes_a, codes_b = codes[: len(a)], codes[len(a) :]
    labels = int(codes.max()) + 1
    observed = float((codes_a == codes_b).mean())
    counts_a, counts_b = np.bincount(codes_a, minlength=labels), np.bincount(codes_b, minlength=labels)
    chance = float(counts_a @ counts_b) / len(a) ** 2
    return (observed - chance) / (1 - chance) if chance < 1 else float("nan")


def pair_kappa(first: ArrayLike, second: ArrayLike) -> float:
    """Cohen's kappa of two raters of pairs, each pair counted in both orders.

    Chance agreement then does not depend on the order within pairs: if all preferred responses were on one side, it
    would explain everything. Without ties it is one half, and kappa is 2 x agreement - 1. A tie is a label of its
    own; exclude pairs that cannot be judged correctly.

    Args:
        first: [n] one rater's probability (or share) for the first response of each pair; 0.5 is a tie.
        second: [n] the other's.

    Returns:
        From -1 to 1; NaN if both say "tie" throughout.

    Raises:
        ValueError: empty, lengths that differ, or values outside [0, 1].
    """
    a, b = np.sign(as_probabilities("first", first) - 0.5), np.sign(as_probabilities("second", second) - 0.5)
    return cohen_kappa([*a, *-a], [*b, *-b])
