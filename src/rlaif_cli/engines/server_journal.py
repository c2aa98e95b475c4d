"""The journal of an output's batches: what was submitted, as far as is known, and what came of it.

`<output>.batches.jsonl`. Every step is on the disk before the next one is taken, and a batch carries its name from the
journal as metadata. So the run after one that was killed while it created a batch finds it at the server, and does not
create and pay for a second one.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif_cli.data.append_log import AppendLog
from rlaif_cli.data.paths import sidecar

_ENOUGH = 20  # answers that show how many tokens a byte has
_MARGIN = 1.2


def journal_path(output: Path) -> Path:
    return sidecar(output, "batches.jsonl")


@dataclass
class Batch:
    """One batch.

    Attributes:
        name: made up by us.
        server: its address, without credentials.
        keys: of its requests, see `KeptAnswers`.
        most_in, most_out: the most tokens that its requests and answers can have together.
        started: when it was about to be submitted, seconds since 1970.
        file, id: its input file's and its own id at the server; None: not known yet.
        ended: it is not at the server any more, or all of it was collected.
        reserved: USD of the budget that this process reserves for it.
    """

    name: str
    model: str
    server: str
    keys: list[str]
    most_in: int
    most_out: int
    started: float
    file: str | None = None
    id: str | None = None
    ended: bool = False
    reserved: float = 0.0


class Journal:
    """All batches of an output, by name."""

    def __init__(self, path: Path) -> None:
        self._log = AppendLog(path)
        self.batches: dict[str, Batch] = {}
        self._rate = 0.0
        for row, _ in self._log.rows():
            self._note(row)

    def _note(self, row: dict[str, Any]) -> None:
        fields = {name: value for name, value in row.items() if name != "event"}
        if row["event"] == "submitting":
            self.batches[row["name"]] = Batch(**fields)
            return
        batch = self.batches[row["name"]]
        batch.file, batch.id = row.get("file", batch.file), row.get("id", batch.id)
        batch.ended = row["event"] in ("collected", "dropped")
        if row["event"] == "collected" and row["counted"] >= _ENOUGH:
            share = row["counted"] / len(batch.keys)
            self._rate = max(self._rate, row["tokens_in"] / (batch.most_in * share))

    @property
    def rate(self) -> float:
        """The expected share of `Batch.most_in` that turns out to be tokens; 1 until enough answers have shown it."""
        return min(1.0, _MARGIN * self._rate) or 1.0

    def open(self, model: str | None = None) -> list[Batch]:
        """The batches, of one model or all, whose answers are still to be collected."""
        return [each for each in self.batches.values() if not each.ended and model in (None, each.model)]

    def submitting(self, model: str, server: str, keys: list[str], most_in: int, most_out: int) -> Batch:
        """Record a batch that is about to be submitted."""
        found = Batch(uuid.uuid4().hex, model, server, keys, most_in, most_out, time.time())
        self._record({"event": "submitting"} | vars(found))
        return self.batches[found.name]

    def uploaded(self, batch: Batch, file: str) -> None:
        self._record({"event": "uploaded", "name": batch.name, "file": file})

    def submitted(self, batch: Batch, id: str) -> None:
        self._record({"event": "submitted", "name": batch.name, "id": id})

    def collected(self, batch: Batch, counted: int, tokens_in: int, failed: int) -> None:
        """All answers of a batch are kept; `counted` of them have a token count."""
        numbers = {"counted": counted, "tokens_in": tokens_in, "failed": failed}
        self._record({"event": "collected", "name": batch.name, **numbers})

    def dropped(self, batch: Batch, reason: str) -> None:
        """A batch was never created, or did nothing."""
        self._record({"event": "dropped", "name": batch.name, "reason": reason})

    def _record(self, row: dict[str, Any]) -> None:
        self._log.append(row, durable=True)
        self._note(row)

    def close(self) -> None:
        self._log.close()


def open_batches(output: Path) -> list[Batch]:
    """The batches of an output that are still at their servers, as far as its journal knows."""
    if not journal_path(output).exists():
        return []
    journal = Journal(journal_path(output))
    journal.close()
    return journal.open()
