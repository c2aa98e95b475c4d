"""A live screen of a run: its stages with progress, speed, remaining time and training curve."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rlaif_cli.ui.progress import ProgressCallback, rate_meter
from rlaif_cli.ui.text import visible

_BARS = "▁▂▃▄▅▆▇█"
_WIDE = 100  # columns needed to show commands and bars
_BAR, _COUNT = 10, 11  # columns
_MARKS = {"waiting": ("·", "dim"), "done": ("✓", "green"), "failed": ("✗", "red"), "left out": ("–", "dim")}


def sparkline(values: Sequence[float], width: int = 20) -> str:
    """A curve in at most `width` characters: means of equal parts, from ▁ (lowest) to █ (highest)."""
    known = [value for value in values if math.isfinite(value)]
    count = min(width, len(known))
    edges = [round(i * len(known) / count) for i in range(count + 1)] if count else []
    means = [sum(known[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    return "".join(_BARS[round((mean - low) / (high - low) * 7) if high > low else 0] for mean in means)


@dataclass
class _Line:
    """A stage on the screen."""

    name: str
    command: str
    state: Literal["waiting", "running", "done", "failed", "left out"] = "waiting"
    started: float = 0.0
    seconds: float = 0.0
    done: int = 0
    total: int | None = None
    rate: str = ""
    note: str = ""
    values: list[float] = field(default_factory=list)

    def took(self) -> float:
        return time.monotonic() - self.started if self.state == "running" else self.seconds

    def counted(self) -> str:
        """Its progress, or how long it took, in at most `_COUNT` characters."""
        if self.state not in ("running", "done", "failed"):
            return ""
        if self.state == "running" and self.total:
            counted = f"{self.done:,}/{self.total:,}"
            return counted if len(counted) <= _COUNT else f"{100 * self.done / self.total:.1f} %"
        return f"{self.took():.0f} s" if self.took() < 100 else f"{self.took() / 60:.1f} min"


class Screen:
    """A context that shows the screen while it is open; the last state stays visible.

    Args:
        terminal: where it is shown.
        title: the name of the run.
        stages: (name, command) of each stage, in order.
        wanted: the names of the stages that will run.
    """

    def __init__(self, terminal: Console, title: str, stages: Sequence[tuple[str, str]], wanted: Sequence[str]) -> None:
        self._title = title
        self._lines = {
            name: _Line(visible(name), command, "waiting" if name in wanted else "left out") for name, command in stages
        }
        self._spinner = Spinner("dots")
        self._started = time.monotonic()
        self._terminal = terminal
        self._live = Live(console=terminal, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> Screen:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.refresh()
        self._live.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[ProgressCallback]:
        """A context in which the stage runs."""
        line, rate = self._lines[name], rate_meter()
        line.state, line.started = "running", time.monotonic()

        def callback(done: int, total: int | None = None, note: str = "", value: float | None = None) -> None:
            line.done, line.total, line.note = done, total, visible(note)
            line.rate = rate(done, total)
            line.values += [] if value is None else [value]

        ended: Literal["done", "failed"] = "failed"
        try:
            yield callback
            ended = "done"
        finally:
            line.seconds, line.state = line.took(), ended

    def _render(self) -> Table:
        """The stages; if not all fit, those around the running one."""
        lines = list(self._lines.values())
        height = max(3, self._terminal.height - 4)
        now = next((place for place, line in enumerate(lines) if line.state in ("running", "failed")), 0)
        first = max(0, min(now - height // 2, len(lines) - height))
        table = self._table(self._terminal.width)
        for line in lines[first : first + height]:
            table.add_row(*self._cells(line, wide=self._terminal.width >= _WIDE))
        minutes = (time.monotonic() - self._started) / 60
        done = sum(line.state == "done" for line in lines)
        head = Text(f"{visible(self._title)}: {done} of {len(lines)} stages, {minutes:.1f} minutes", style="bold")
        whole = Table.grid()
        whole.add_column(no_wrap=True, overflow="ellipsis")
        whole.add_row(head)
        whole.add_row(table)
        return whole

    def _table(self, width: int) -> Table:
        """A grid with fixed column widths, so that nothing jumps and no mark or time is cut off."""
        names = min(max(len(line.name) for line in self._lines.values()), 24 if width >= _WIDE else 20)
        widths = [1, names, _COUNT]
        if width >= _WIDE:
            widths[2:2] = [max(len(line.command) for line in self._lines.values()), _BAR]
        widths.append(max(1, width - sum(widths) - len(widths)))  # a space between columns, and one at the end
        table = Table.grid(padding=(0, 1))
        for each in widths:
            table.add_column(width=each, no_wrap=True, overflow="ellipsis")
        return table

    def _cells(self, line: _Line, *, wide: bool) -> list[Text | Spinner | ProgressBar]:
        running = line.state == "running"
        mark = self._spinner if running else Text(*_MARKS[line.state])
        style = "bold" if running else "dim" if line.state in ("waiting", "left out") else ""
        bar = ProgressBar(line.total or 1, line.done, width=_BAR) if running and line.total else Text("")
        curve = Text(sparkline(line.values, 20 if wide else 10), style="cyan")
        details = "  ".join(part for part in (line.rate if running else "", line.note) if part)
        return [
            mark,
            Text(line.name, style=style),
            *([Text(line.command, style="dim"), bar] if wide else []),
            Text(line.counted()),
            curve.append(f"{' ' if curve and details else ''}{details}", style="default"),
        ]
