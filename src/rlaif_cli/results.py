"""An evaluation's result: JSON in which every number has its n and interval, and per-item rows beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif_cli import metrics
from rlaif_cli.jsonl import beside, file_of, open_for_writing, write_json


def estimate(values: Any, groups: Sequence[Any] | None = None) -> dict[str, Any]:
    """A mean with its bootstrap interval, as JSON."""
    found = metrics.mean_estimate(values, groups)
    return {
        "value": round(found.value, 9),
        "low": round(found.low, 9),
        "high": round(found.high, 9),
        "n": found.n,
    }


def share(count: float, n: int) -> dict[str, Any]:
    """A share with its Wilson interval, as JSON."""
    low, high = metrics.wilson_interval(count, n)
    return {"value": round(count / n, 9), "low": round(low, 9), "high": round(high, 9), "n": n}


def agreement(
    p: NDArray[Any], human: NDArray[Any], lengths: NDArray[Any], sources: Sequence[str | None]
) -> dict[str, Any]:
    """How far probabilities agree with people, beside "the longer one wins" and "the first one wins".

    Args:
        p: [n] P(a is better), by a judge or reward model.
        human: [n] the share of people who preferred a.
        lengths: [n, 2] characters of a and b.
        sources: [n] what to split by.
    """
    return {
        "n": int((human != 0.5).sum()),
        "human_ties": int((human == 0.5).sum()),
        **_accuracy(p, human, lengths),
        "first_wins": estimate(_decided(metrics.agreement_items(np.ones(len(p)), human))),
        "human_share": estimate(_share_that_agrees(p, human)),
        "kappa": round(metrics.cohen_kappa(np.sign(p - 0.5).tolist(), np.sign(human - 0.5).tolist()), 9),
        "ece": round(metrics.expected_calibration_error(p, human), 9),
        "brier": round(metrics.brier(p, human), 9),
        "reliability": [
            {name: round(value, 6) for name, value in found.items()} for found in metrics.reliability_bins(p, human)
        ],
        "by_source": _by_group(sources, p, human, lengths),
        "by_length_gap": _by_group([metrics.length_gap(a, b) for a, b in lengths], p, human, lengths),
    }


def _accuracy(p: Any, human: Any, lengths: Any) -> dict[str, Any]:
    longer = metrics.longer_wins(lengths[:, 0], lengths[:, 1])
    return {
        "accuracy": estimate(_decided(metrics.agreement_items(p, human))),
        "longer_wins": estimate(_decided(metrics.agreement_items(longer, human))),
    }


def _decided(items: Any) -> Any:
    """Without the pairs on which people are split evenly."""
    return items[~np.isnan(items)]


def _share_that_agrees(p: Any, human: Any) -> Any:
    """Per pair, the share of its annotators who chose as the judge did; one half where it chose neither."""
    return np.where(p > 0.5, human, np.where(p < 0.5, 1 - human, 0.5))


def _by_group(names: Sequence[str | None], p: Any, human: Any, lengths: Any) -> dict[str, Any] | None:
    """Agreement within each group that has a pair with a preference; None where there is one group alone."""
    groups = sorted({name for name in names if name is not None})
    if len(groups) < 2:
        return None
    found = {}
    for group in groups:
        rows = np.array([name == group for name in names])
        if (human[rows] != 0.5).any():
            found[group] = _accuracy(p[rows], human[rows], lengths[rows])
    return found


def save(output: str, stage: str, result: dict[str, Any], items: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Write `<output>` and `<output>.items.jsonl` beside it; a result for stdout is the caller's to print."""
    path = file_of(output)
    if path is not None:
        items_path = beside(output, stage, "items")
        with open_for_writing(items_path, "w") as file:
            file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        result = result | {"items": items_path.name}
        write_json(path, result)
    return result
