"""One server, and the errors that concern more than one request to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlaif_cli.engines.server_dialect import Dialect
from rlaif_cli.errors import EngineError, MissingDependency


@dataclass
class Server:
    """One server.

    Attributes:
        max_length: its context, tokens; 0: not reported.
        failures: consecutive ones.
        failure: why it was dropped; None: it is in use.
    """

    client: Any
    where: str
    dialect: Dialect = field(default_factory=Dialect)
    max_length: int = 0
    in_flight: int = 0
    failures: int = 0
    failure: EngineError | None = None


class AmbiguousFailure(Exception):
    """A failure of either this request or all requests; the results of others decide which.

    Args:
        reason: why the request failed, if only this one does.
        error: what ends the run, if all requests fail.
        own: whether only this request is known to fail; its argument: whether all others are done.

    Attributes:
        keys: of the kept answers that led to it.
    """

    keys: Sequence[str] = ()

    def __init__(self, reason: str, error: EngineError, own: Callable[[bool], bool]) -> None:
        super().__init__(reason)
        self.reason, self.error, self.own = reason, error, own


class Stop(Exception):
    """A server refuses something that every request needs."""

    def __init__(self, error: EngineError) -> None:
        super().__init__(str(error))
        self.error = error


def import_openai() -> Any:
    """The official client's package. Raises: MissingDependency: it is not installed."""
    try:
        import openai
    except ImportError as error:
        raise MissingDependency(
            f"the package openai is not installed ({error})", hint="pip install 'rlaif[openai]'"
        ) from error
    return openai
