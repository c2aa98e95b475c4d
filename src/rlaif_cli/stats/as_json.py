"""Estimates as they are written into result files."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

from rlaif_cli.stats.intervals import Estimate, mean_estimate, rate_estimate


def estimate(values: Any, prompts: Sequence[Hashable]) -> dict[str, Any]:
    """A mean of unbounded values with its interval, as JSON; `prompts`: [n] whose values they are."""
    return as_json(mean_estimate(values, prompts))


def rate(values: Any, prompts: Sequence[Hashable]) -> dict[str, Any]:
    """A rate, or a mean of values in [0, 1], with its interval, as JSON; `prompts`: [n] whose values they are."""
    return as_json(rate_estimate(values, prompts))


def rounded(value: float, digits: int) -> float | None:
    """A number for a file; None where it is not finite, which JSON cannot say."""
    return round(float(value), digits) if math.isfinite(value) else None


def as_json(found: Estimate) -> dict[str, Any]:
    """n: the items; prompts: those that they belong to. low and high are null where one prompt is all there is."""
    low, high = (rounded(bound, 9) for bound in (found.low, found.high))
    return {"value": round(found.value, 9), "low": low, "high": high, "n": found.n, "prompts": found.prompts}
