"""stdout is data, stderr is talk.

Engines and their child processes print to file descriptor 1 as they like, so `guard_stdout` points that descriptor
at stderr and keeps the real stdout for records alone.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from rlaif_cli.errors import RlaifWarning
from rlaif_cli.ui.progress import ProgressCallback, no_progress, rate_meter

debug = False
quiet = False  # another process of the same run talks
as_library = False  # a Python program called us: nothing is printed, and warnings are Python's own
_data: IO[str] | None = None
_PLAIN_EVERY_SECONDS = 10.0


def stderr() -> Console:
    """A console on stderr; Rich itself respects NO_COLOR and non-terminals."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def guard_stdout() -> None:
    """From here on nothing but records reaches stdout, whoever prints. Called once, before an engine may start."""
    global _data
    if _data is not None:
        return
    sys.stdout.flush()
    keep = os.dup(1)
    os.dup2(2, 1)
    _data = os.fdopen(keep, "w", encoding="utf-8", errors="backslashreplace", newline="\n")


def data_stream() -> IO[str]:
    """The real stdout, for records."""
    return _data if _data is not None else sys.stdout


def close_data_stream() -> None:
    """Flush the records; a reader that went away (`| head`) is no error.

    Raises:
        OSError: they cannot be written.
    """
    stream = data_stream()
    try:
        stream.flush()
    except OSError as error:
        # What is still buffered cannot be delivered; without this, Python would complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


# Data, file names and what servers answer stand in messages: none of it may steer a terminal (an escape sequence can
# clear a screen, rename a window or paste a command) or turn the direction of a line.
_STEERING = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_VISIBLE = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _STEERING if chr(code) not in "\t\n"
}


def counted(number: int, thing: str) -> str:
    """A number and what it counts, whose plural ends in -s: "1 row", "2 rows"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def visible(text: str) -> str:
    """`text` with control characters written out, as Python would: `\\x1b`."""
    return text.translate(_VISIBLE)


@dataclass
class _Visible:
    """What Rich makes of a table, a tree or a line, with the control characters of its texts written out."""

    shown: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.shown, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def show(found: Table | Tree) -> None:
    """A table or tree on stdout, for a command whose product is what people read."""
    terminal = Console(file=data_stream(), highlight=False)
    with terminal.capture() as shown:
        terminal.print(_Visible(found))
    data_stream().write(shown.get())  # Rich would end the program with 1 where the reader went away


def show_line(text: str) -> None:
    """A line on stdout, for a command whose product is what people read."""
    data_stream().write(visible(text) + "\n")


def say(message: str, style: str | None = None) -> None:
    """A line for the person at the terminal. `message` is plain text, never markup."""
    if not quiet and not as_library:
        stderr().print(Text(visible(message)), style=style)


# Whether this process tells how the run failed; where there are several, `launch` puts what they agree on in its place.
first_to_fail: Callable[[], bool] = lambda: not quiet  # noqa: E731


def warn(message: str) -> None:
    if as_library:
        warnings.warn(message, RlaifWarning, stacklevel=_caller())
    say(f"warning: {message}", style="yellow")


def _caller() -> int:
    """How far up from `warn` the line is that called this package, as `warnings` counts."""
    frame, depth, found = sys._getframe(1), 1, 1
    while frame.f_back is not None:
        ours = frame.f_globals.get("__name__", "").startswith("rlaif_cli")
        frame, depth = frame.f_back, depth + 1
        found = depth if ours else found
    return found


_WARNED: set[str] = set()


def warn_once(message: str) -> None:
    """A file may be read several times by one command."""
    if as_library:  # Python's own filters say what is shown, and how often
        warn(message)
    elif message not in _WARNED:
        _WARNED.add(message)
        warn(message)


@contextmanager
def progress(title: str) -> Iterator[ProgressCallback]:
    """A bar with rate and ETA on a terminal; a plain line every ten seconds elsewhere."""
    if quiet:
        yield no_progress
        return
    with _bar(title) if stderr().is_terminal else _lines(title) as callback:
        yield callback


@contextmanager
def _bar(title: str) -> Iterator[ProgressCallback]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ("[bold]{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[rate]}")
    with Progress(*columns, "eta", TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=stderr()) as bar:
        task = bar.add_task(escape(title), total=None, rate="", note="")
        rate = rate_meter()

        def callback(done: int, total: int | None = None, note: str = "", value: float | None = None) -> None:
            bar.update(task, completed=done, total=total, rate=rate(done), note=escape(note))

        yield callback


@contextmanager
def _lines(title: str) -> Iterator[ProgressCallback]:
    rate, last_shown = rate_meter(), time.monotonic()

    def callback(done: int, total: int | None = None, note: str = "", value: float | None = None) -> None:
        nonlocal last_shown
        now = time.monotonic()
        if now - last_shown >= _PLAIN_EVERY_SECONDS:
            last_shown = now
            of = f"/{total}" if total else ""
            say("  ".join(part for part in (f"{title}: {done}{of}", rate(done, total), note) if part))

    yield callback
