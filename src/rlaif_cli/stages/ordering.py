"""What data stages share about their files, models and limits."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable

from rlaif_cli.data.atomic import open_for_writing
from rlaif_cli.data.paths import rejected_path
from rlaif_cli.data.records import PromptRecord
from rlaif_cli.errors import EngineError


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


def reject(output: str, stage: str, record: PromptRecord, reason: str) -> None:
    """A prompt that the server will never answer goes where lines go that cannot be used."""
    with open_for_writing(rejected_path(output, stage), "a") as file:
        file.write(json.dumps({"id": record.id, "reason": reason, "text": record.model_dump_json()}) + "\n")
