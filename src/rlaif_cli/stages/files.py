"""What data stages share about their files, models and limits."""

from __future__ import annotations

import contextlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rlaif_cli.config.engine import EngineConfig
from rlaif_cli.data.atomic import open_for_writing
from rlaif_cli.data.paths import rejected_path
from rlaif_cli.data.records import PromptRecord
from rlaif_cli.data.resumable_output import Output
from rlaif_cli.engines import LOCAL, Engine, computing_engine, engine_name
from rlaif_cli.errors import EngineError
from rlaif_cli.models.metadata import checkpoint_hash
from rlaif_cli.models.resolve import resolve_model
from rlaif_cli.ui.console import warn_once


def model_hash(config: EngineConfig, model: str) -> str | None:
    return checkpoint_hash(resolve_model(model)) if computing_engine(config, model) in LOCAL else None


class Unanswered:
    """Rows that a server did not answer and may answer later: they are in no file, so that a second run asks again."""

    def __init__(self) -> None:
        self.count = 0
        self._last = ""

    def add(self, reason: str) -> None:
        self.count += 1
        self._last = reason

    def check(self) -> None:
        """Raises: EngineError: there were some; what was done is kept."""
        if self.count:
            raise EngineError(
                f"{self.count} rows got no answer; the last: {self._last}",
                hint="what was done is kept; run the same command again to ask for the rest",
            )


class InOrder:
    """Settles rows in the order of the input where that is wanted (`--ordered`), else as they come.

    A row that is ready waits for those before it; a kill loses what waits.
    """

    def __init__(self, ordered: bool) -> None:
        self._ordered = ordered
        self._expected: deque[str] = deque()
        self._ready: dict[str, Callable[[], None]] = {}

    def expect(self, key: str) -> None:
        """The next row of the input; every expected one must be settled."""
        if self._ordered:
            self._expected.append(key)

    def settle(self, key: str, action: Callable[[], None]) -> None:
        """Do `action` (write the row, or put it aside) in its turn."""
        if not self._ordered:
            action()
            return
        self._ready[key] = action
        while self._expected and (ready := self._ready.pop(self._expected[0], None)):
            self._expected.popleft()
            ready()


@contextlib.contextmanager
def accounted(output: Output, engines: Sequence[Engine], config: EngineConfig) -> Iterator[None]:
    """What servers count meanwhile goes to the output's account, also where it ends in an error or by Ctrl-C.

    With `--price-in` and `--price-out` its cost too, if every answer was counted. Other engines count nothing.
    """
    counted = [usage for engine in engines if (usage := getattr(engine, "usage", None)) is not None]

    def totals() -> Counter[str]:
        return sum((Counter(vars(usage)) for usage in counted), Counter())

    before = totals()
    try:
        yield
    finally:
        spent: dict[str, float] = dict(totals() - before)
        if spent:
            tokens_in, tokens_out = spent.setdefault("tokens_in", 0), spent.setdefault("tokens_out", 0)
            if config.price_in is not None and config.price_out is not None:
                spent["cost"] = round((tokens_in * config.price_in + tokens_out * config.price_out) / 1e6, 6)
                if uncounted := spent.get("uncounted"):
                    warn_once(f"the server does not report the tokens of {uncounted} answers, so the cost is not known")
            output.spend(spent)


def finish(
    output: Output, stage: str, config: EngineConfig, model: str | tuple[str, ...], counts: dict[str, Any]
) -> None:
    """Complete an output; its manifest says what made it (for several models: of each, by name)."""

    def each(of: Callable[[EngineConfig, str], str | None]) -> Any:
        return of(config, model) if isinstance(model, str) else {name: of(config, name) for name in model}

    output.finish({"stage": stage, "model_sha256": each(model_hash), "engine": each(engine_name), "counts": counts})


def reject(output: str, stage: str, record: PromptRecord, reason: str) -> None:
    """A prompt that the server will never answer goes where lines go that cannot be used."""
    with open_for_writing(rejected_path(output, stage), "a") as file:
        file.write(json.dumps({"id": record.id, "reason": reason, "text": record.model_dump_json()}) + "\n")
