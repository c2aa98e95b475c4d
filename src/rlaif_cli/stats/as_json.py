"""Estimates as JSON for result files."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

from rlaif_cli.stats.intervals import Estimate, mean_estimate, rate_estimate


def estimate(values: Any, prompts: Sequence[Hashable]) -> dict[str, Any]:
    """A mean of unbounded values with its interval, as JSON; `prompts`: [n] the prompt of each value."""
    return as_json(mean_estimate(values, prompts))


def rate(values: Any, prompts: Sequence[Hashable]) -> dict[str, Any]:
    """A rate, or a mean of values in [0, 1], with its interval, as JSON; `prompts`: [n] the prompt of each value."""
    return as_json(rate_estimate(values, prompts))


def rounded(value: float, digits: int) -> float | None:
    """A number for a file; None if it is not finite, which JSON cannot represent."""
    return round(float(value), digits) if math.isfinite(value) else None


def as_json(found: Estimate) -> dict[str, Any]:
    """An estimate as JSON; low and high are null if there is only one prompt."""
    low, high = (rounded(bound, 9) for bound in (found.low, found.high))
    return {"value": round(found.value, 9), "low": low, "high": high, "n": found.n, "prompts": found.prompts}
