"""Formatting of numbers in the chain and the curves: whole percents, and as many decimals as an interval needs."""

from __future__ import annotations

import math
from typing import Any


def percents(estimate: dict[str, Any], null: float | None = None) -> tuple[str, str]:
    """A rate and its interval: ("77 %", "[72, 81]").

    Args:
        null: the value of no effect; if rounding would move the interval onto it, one decimal is shown.
    """
    low, high = estimate["low"], estimate["high"]
    digits = 0
    if low is not None and null is not None and not low <= null <= high:
        digits = int(round(100 * null) in (round(100 * low), round(100 * high)))
    scaled = [None if bound is None else 100 * bound for bound in (low, high)]
    return f"{100 * estimate['value']:.{digits}f} %", _interval(scaled, f".{digits}f")


def signed(estimate: dict[str, Any]) -> tuple[str, str]:
    """A change and its interval: ("+0.13", "[+0.03, +0.24]"), with at least two significant digits."""
    bounds = [estimate["low"], estimate["high"]]
    widest = max(abs(number) for number in (estimate["value"], *bounds) if number is not None)
    digits = 2 if not widest else min(6, max(0, 2 - math.trunc(math.log10(widest))))
    return f"{estimate['value']:+.{digits}f}", _interval(bounds, f"+.{digits}f")


def percent_change(change: dict[str, Any]) -> tuple[str, str]:
    """A change as a share or in points, in whole percents: ("+7 %", "[+3, +11]")."""
    scaled = {key: None if change[key] is None else 100 * change[key] for key in ("value", "low", "high")}
    value = f"{scaled['value']:+.0f} %"
    return value, "" if scaled["low"] is None else f"[{scaled['low']:+.0f}, {scaled['high']:+.0f}]"


def _interval(bounds: list[float | None], how: str) -> str:
    """ "" if there is no interval (a single prompt)."""
    low, high = bounds
    return "" if low is None or high is None else f"[{low:{how}}, {high:{how}}]"


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
