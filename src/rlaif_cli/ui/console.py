"""The streams of one command: stdout is for data, stderr for messages."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from rlaif_cli.ui.progress import ProgressCallback, no_progress, rate_meter
from rlaif_cli.ui.text import visible

_PLAIN_EVERY_SECONDS = 10.0


@dataclass
class _Visible:
    """Renders a table or tree with control characters in its text escaped."""

    shown: RenderableType

    def __rich_console__(self, console: rich.console.Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.shown, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class Console:
    """What a command prints. `cli.app.main` makes one for each call, and every command gets it.

    Attributes:
        records: where records and results go.
        debug: show errors with their traceback.
        quiet: print no messages, because another process of the same run does.
        first_to_fail: whether this process reports the error; of several processes only one does.
    """

    def __init__(self, stdout: IO[str], stderr: IO[str]) -> None:
        self.records = stdout
        self.debug = False
        self.quiet = False
        self.first_to_fail: Callable[[], bool] = lambda: not self.quiet
        self._stderr = stderr
        self._warned: set[str] = set()
        self._guard: contextlib.ExitStack | None = None

    # -------------------------------------------------------------------------------------------- stdout

    def guard_stdout(self) -> None:
        """Let only records reach stdout from now on. Must be called before an engine starts; later calls do nothing.

        Engines print to stdout. Their child processes do too, so the file descriptor itself is redirected to stderr,
        if records go there.
        """
        if self._guard is not None:
            return
        self._guard = contextlib.ExitStack()
        self.records.flush()
        if _is_descriptor(self.records, 1):
            kept = os.dup(1)
            os.dup2(2, 1)
            self.records = os.fdopen(kept, "w", encoding="utf-8", errors="backslashreplace", newline="\n")
            self._guard.callback(self._restore_descriptor)
        else:
            self._guard.enter_context(contextlib.redirect_stdout(self._stderr))

    def _restore_descriptor(self) -> None:
        with contextlib.suppress(OSError):  # what was printed is no record
            sys.stdout.flush()
        os.dup2(self.records.fileno(), 1)
        self.records.close()

    def close(self) -> None:
        """Flush the records and end the guard; a closed pipe (`| head`) is not an error.

        Raises:
            OSError: writing failed.
        """
        try:
            self.records.flush()
        except OSError as error:
            # The rest of the buffer cannot be written; without this, Python would report that at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.records.fileno())
            if not isinstance(error, BrokenPipeError):
                raise
        finally:
            if self._guard is not None:
                self._guard.close()

    def show(self, found: Table | Tree) -> None:
        """Print a table or tree to stdout, for a command whose result is meant for people."""
        terminal = rich.console.Console(file=self.records, highlight=False)
        with terminal.capture() as shown:
            terminal.print(_Visible(found))
        self.records.write(shown.get())  # Rich would exit with code 1 on a closed pipe

    def show_line(self, text: str) -> None:
        """Print a line to stdout, for a command whose result is meant for people."""
        self.records.write(visible(text) + "\n")

    # -------------------------------------------------------------------------------------------- stderr

    def terminal(self) -> rich.console.Console:
        """A Rich console on stderr; Rich itself respects NO_COLOR and non-terminals."""
        return rich.console.Console(file=self._stderr, highlight=False, soft_wrap=True)

    def say(self, message: str, style: str | None = None) -> None:
        """Print a message to stderr. It is plain text, never markup."""
        if not self.quiet:
            self.terminal().print(Text(visible(message)), style=style)

    def warn(self, message: str) -> None:
        self.say(f"warning: {message}", style="yellow")

    def warn_once(self, message: str) -> None:
        """Warn unless it was said before, as a command may read the same file several times."""
        if message not in self._warned:
            self._warned.add(message)
            self.warn(message)

    @contextmanager
    def progress(self, title: str) -> Iterator[ProgressCallback]:
        """A progress bar with rate and ETA on a terminal; elsewhere a plain line every ten seconds."""
        if self.quiet:
            yield no_progress
            return
        with self._bar(title) if self.terminal().is_terminal else self._lines(title) as callback:
            yield callback

    @contextmanager
    def _bar(self, title: str) -> Iterator[ProgressCallback]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = ("[bold]{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[rate]}", "eta")
        note = TextColumn("{task.fields[note]}")
        with Progress(*columns, TimeRemainingColumn(), note, console=self.terminal()) as bar:
            task = bar.add_task(escape(title), total=None, rate="", note="")
            rate = rate_meter()

            def callback(done: int, total: int | None = None, note: str = "", value: float | None = None) -> None:
                bar.update(task, completed=done, total=total, rate=rate(done), note=escape(note))

            yield callback

    @contextmanager
    def _lines(self, title: str) -> Iterator[ProgressCallback]:
        rate, last_shown = rate_meter(), time.monotonic()

        def callback(done: int, total: int | None = None, note: str = "", value: float | None = None) -> None:
            nonlocal last_shown
            now = time.monotonic()
            if now - last_shown >= _PLAIN_EVERY_SECONDS:
                last_shown = now
                of = f"/{total}" if total else ""
                self.say("  ".join(part for part in (f"{title}: {done}{of}", rate(done, total), note) if part))

        yield callback


def _is_descriptor(stream: IO[str], number: int) -> bool:
    try:
        return stream.fileno() == number
    except (OSError, ValueError, AttributeError):  # it is not a file
        return False
