"""Agreement of probabilities with human labels, and their calibration."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif_cli.stats.agreement import agreement_items, pair_kappa
from rlaif_cli.stats.as_json import rate
from rlaif_cli.stats.calibration import calibration
from rlaif_cli.stats.length import length_gap, longer_wins


def agreement(
    p: NDArray[Any],
    human: NDArray[Any],
    lengths: NDArray[Any],
    sources: Sequence[str | None],
    prompts: Sequence[Hashable],
) -> dict[str, Any]:
    """Agreement of probabilities with human labels, with the baselines "longer wins" and "first wins".

    Args:
        p: [n] P(a is better) by a judge or reward model.
        human: [n] fraction of annotators who preferred a.
        lengths: [n, 2] lengths of a and b in characters.
        sources: [n] group of each pair, or None.
        prompts: [n] prompt of each pair, for intervals.
    """
    decided = human != 0.5
    names = np.array(prompts, dtype=object)
    return {
        "n": int(decided.sum()),
        "prompts": len(set(names[decided])),
        "human_ties": int((~decided).sum()),
        **_accuracy(p, human, lengths, names),
        "first_wins": _right(np.ones(len(p)), human, names),
        "human_share": rate(_share_that_agrees(p, human), prompts),
        "kappa": round(pair_kappa(p[decided], human[decided]), 9),
        **calibration(p, human),
        "by_source": _by_group(sources, p, human, lengths, names),
        "by_length_gap": _by_group([length_gap(a, b) for a, b in lengths], p, human, lengths, names),
    }


def _accuracy(p: Any, human: Any, lengths: Any, prompts: Any) -> dict[str, Any]:
    longer = longer_wins(lengths[:, 0], lengths[:, 1])
    return {"accuracy": _right(p, human, prompts), "longer_wins": _right(longer, human, prompts)}


def _right(p: Any, human: Any, prompts: Any) -> dict[str, Any]:
    """How often p agrees with the human majority; human ties are left out."""
    decided = human != 0.5
    return rate(agreement_items(p, human)[decided], prompts[decided].tolist())


def _share_that_agrees(p: Any, human: Any) -> Any:
    """Per pair, the fraction of annotators who agree with the judge; one half if the judge is undecided."""
    return np.where(p > 0.5, human, np.where(p < 0.5, 1 - human, 0.5))


def _by_group(names: Sequence[str | None], p: Any, human: Any, lengths: Any, prompts: Any) -> dict[str, Any] | None:
    """Agreement within each group that has a pair with a preference; None if there is only one group."""
    groups = sorted({name for name in names if name is not None})
    if len(groups) < 2:
        return None
    found = {}
    for group in groups:
        rows = np.array([name == group for name in names])
        if (human[rows] != 0.5).any():
            found[group] = _accuracy(p[rows], human[rows], lengths[rows], prompts[rows])
    return found
