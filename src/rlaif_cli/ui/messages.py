"""Messages from code that does not know who called it.

During a command they go to its `Console`. In a Python program nothing is printed, and warnings are Python's own.

The reporter is a context variable, so that it ends with the call that set it. New threads do not inherit it:
`ThreadPoolExecutor(initializer=messages.report_to, initargs=(messages.current(),))` hands it on.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import IO, Protocol

from rlaif_cli.errors import RlaifWarning


class Reporter(Protocol):
    """Who shows messages."""

    @property
    def debug(self) -> bool:
        """Whether errors are shown with their traceback."""

    @property
    def records(self) -> IO[str]:
        """Where an output named `-` goes."""

    def say(self, message: str) -> None:
        """Show what is done."""

    def warn(self, message: str) -> None:
        """Show a warning."""

    def warn_once(self, message: str) -> None:
        """Show a warning unless it was shown before, as a command may read the same file several times."""


class Library:
    """In a Python program: nothing is printed, and warnings are Python's own."""

    debug = False

    @property
    def records(self) -> IO[str]:
        return sys.stdout

    def say(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        warnings.warn(message, RlaifWarning, stacklevel=_caller())

    def warn_once(self, message: str) -> None:
        self.warn(message)  # Python's own filters decide what is shown, and how often


def _caller() -> int:
    """How far up from `warn` the line is that called this package, as `warnings` counts."""
    frame, depth, found = sys._getframe(1), 1, 1
    while frame.f_back is not None:
        ours = frame.f_globals.get("__name__", "").startswith("rlaif_cli")
        frame, depth = frame.f_back, depth + 1
        found = depth if ours else found
    return found


_reporter: ContextVar[Reporter] = ContextVar("reporter", default=Library())  # noqa: B039 - it has no state


def current() -> Reporter:
    return _reporter.get()


def report_to(reporter: Reporter) -> None:
    """Set the reporter of this thread, for as long as it lives."""
    _reporter.set(reporter)


@contextmanager
def reported_to(reporter: Reporter) -> Iterator[None]:
    """A context whose messages go to `reporter`."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


def say(message: str) -> None:
    current().say(message)


def warn(message: str) -> None:
    current().warn(message)


def warn_once(message: str) -> None:
    current().warn_once(message)
