"""How a stage reports its progress to whoever shows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class ProgressCallback(Protocol):
    """What stages report through: how much is done, of how much, a few numbers worth seeing, and one worth a curve."""

    def __call__(self, done: int, total: int | None = None, note: str = "", value: float | None = None) -> None: ...


def no_progress(done: int, total: int | None = None, note: str = "", value: float | None = None) -> None:
    """For callers that do not want to see any."""


def rate_meter() -> Callable[..., str]:
    """`rate(done, total)`: how fast it goes since the first call, and how long yet, in words."""
    started, first = time.monotonic(), None

    def rate(done: int, total: int | None = None) -> str:
        nonlocal first, started
        if first is None:  # a resumed run begins in the middle, and engines take their time to start
            first, started = done, time.monotonic()
            return ""
        seconds = time.monotonic() - started
        if seconds < 0.5 or done <= first:
            return ""
        per_second = (done - first) / seconds
        shown = f"{per_second:.1f}/s" if per_second >= 1 else f"{1 / per_second:.1f} s each"
        return f"{shown}, {(total - done) / per_second:.0f} s left" if total else shown

    return rate
