"""stdout is for data, stderr for messages.

Engines and their child processes print to file descriptor 1, so `guard_stdout` redirects that descriptor to stderr and
reserves the real stdout for records.
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
quiet = False  # another process of the same run prints the messages
as_library = False  # a Python program called us: nothing is printed, and warnings are Python's own
_data: IO[str] | None = None
_PLAIN_EVERY_SECONDS = 10.0


def stderr() -> Console:
    """A console on stderr; Rich itself respects NO_COLOR and non-terminals."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def guard_stdout() -> None:
    """Let only records reach stdout from now on. Must be called before an engine starts; later calls do nothing."""
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
    """Flush the records; a closed pipe (`| head`) is not an error.

    Raises:
        OSError: writing failed.
    """
    stream = data_stream()
    try:
        stream.flush()
    except OSError as error:
        # The rest of the buffer cannot be written; without this, Python would report that at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


# Messages contain data, file names and server replies, which must not control the terminal (an escape sequence can
# clear the screen, rename the window or paste a command) or change the text direction.
_CONTROL = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_VISIBLE = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROL if chr(code) not in "\t\n"
}


def counted(number: int, thing: str) -> str:
    """A number with its noun, whose plural ends in -s: "1 row", "2 rows"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def visible(text: str) -> str:
    """`text` with control characters escaped as in Python: `\\x1b`."""
    return text.translate(_VISIBLE)


@dataclass
class _Visible:
    """Renders a table or tree with control characters in its text escaped."""

    shown: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.shown, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def show(found: Table | Tree) -> None:
    """Print a table or tree to stdout, for a command whose result is meant for people."""
    terminal = Console(file=data_stream(), highlight=False)
    with terminal.capture() as shown:
        terminal.print(_Visible(found))
    data_stream().write(shown.get())  # Rich would exit with code 1 on a closed pipe


def show_line(text: str) -> None:
    """Print a line to stdout, for a command whose result is meant for people."""
    data_stream().write(visible(text) + "\n")


def say(message: str, style: str | None = None) -> None:
    """Print a message to stderr. It is plain text, never markup."""
    if not quiet and not as_library:
        stderr().print(Text(visible(message)), style=style)


# Whether this process reports the error; with several processes, `launch` replaces this so that only one does.
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
    """Warn once per process, as a command may read the same file several times."""
    if as_library:  # Python's own filters say what is shown, and how often
        warn(message)
    elif message not in _WARNED:
        _WARNED.add(message)
        warn(message)


@contextmanager
def progress(title: str) -> Iterator[ProgressCallback]:
    """A progress bar with rate and ETA on a terminal; elsewhere a plain line every ten seconds."""
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
