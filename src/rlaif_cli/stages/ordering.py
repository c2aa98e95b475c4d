"""What data stages share: unanswered rows, output order and rejected prompts."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable

from rlaif_cli.data.atomic import open_for_writing
from rlaif_cli.data.paths import rejected_path
from rlaif_cli.data.records import PromptRecord
from rlaif_cli.errors import RowsUnanswered


class Unanswered:
    """Counts rows that a server did not answer but may answer later. They are in no file, so a rerun retries them."""

    def __init__(self) -> None:
        self.count = 0
        self._last = ""

    def add(self, reason: str) -> None:
        self.count += 1
        self._last = reason

    def check(self) -> None:
        """Raises: RowsUnanswered: some rows were not answered."""
        if self.count:
            raise RowsUnanswered(
                f"{self.count} rows got no answer; the last reason: {self._last}",
                hint="finished rows are saved; rerun the same command to resume",
            )


class InOrder:
    """Writes rows in input order with `--ordered`, else as they are finished.

    A finished row waits for the rows before it; if the run is killed, waiting rows are lost and recomputed.
    """

    def __init__(self, ordered: bool) -> None:
        self._ordered = ordered
        self._expected: deque[str] = deque()
        self._ready: dict[str, Callable[[], None]] = {}

    def expect(self, key: str) -> None:
        """Announce the next row of the input; every announced row must be settled."""
        if self._ordered:
            self._expected.append(key)

    def settle(self, key: str, action: Callable[[], None]) -> None:
        """Run `action` (write the row, or reject it) when it is the row's turn."""
        if not self._ordered:
            action()
            return
        self._ready[key] = action
        while self._expected and (ready := self._ready.pop(self._expected[0], None)):
            self._expected.popleft()
            ready()


def reject(output: str, stage: str, record: PromptRecord, reason: str) -> None:
    """Save a prompt that the server will never answer among the rejected lines."""
    with open_for_writing(rejected_path(output, stage), "a") as file:
        file.write(json.dumps({"id": record.id, "reason": reason, "text": record.model_dump_json()}) + "\n")
