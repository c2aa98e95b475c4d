"""How a stage reports progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class ProgressCallback(Protocol):
    """Reports progress: items done, their total, a short note, and a value to plot as a curve."""

    def __call__(self, done: int, total: int | None = None, note: str = "", value: float | None = None) -> None: ...


def no_progress(done: int, total: int | None = None, note: str = "", value: float | None = None) -> None:
    """Discards progress."""


def rate_meter() -> Callable[..., str]:
    """A function `rate(done, total)` that returns the speed since its first call and the time left, as text."""
    started, first = time.monotonic(), None

    def rate(done: int, total: int | None = None) -> str:
        nonlocal first, started
        if first is None:  # a resumed run starts in the middle, and engines take time to start
            first, started = done, time.monotonic()
            return ""
        seconds = time.monotonic() - started
        if seconds < 0.5 or done <= first:
            return ""
        per_second = (done - first) / seconds
        shown = f"{per_second:.1f}/s" if per_second >= 1 else f"{1 / per_second:.1f} s each"
        return f"{shown}, {(total - done) / per_second:.0f} s left" if total else shown

    return rate
