"""The answers that servers have given and been paid for, kept beside an output until it is finished.

`<output>.answers.jsonl`: one answer per line, under a key made from its request. Rows whose last answer is missing
after a kill, a spent budget or an unfinished batch do not pay for their other answers again; and the tokens in this
file are what the output has cost so far, however the run ended.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif_cli.data.append_log import AppendLog
from rlaif_cli.data.paths import sidecar
from rlaif_cli.engines import server_answers as answers
from rlaif_cli.engines.base import Usage

OK = 200


def answers_path(output: Path) -> Path:
    return sidecar(output, "answers.jsonl")


class KeptAnswers:
    """Answers by key; the file holds them, memory only their places.

    Attributes:
        usage: the tokens of all answers in the file, also of those that were discarded.
    """

    def __init__(self, path: Path) -> None:
        self._log = AppendLog(path)
        self._places: dict[str, int] = {}
        self._refused: set[str] = set()
        self._lock = threading.Lock()
        self._current = threading.local()
        self.usage = Usage()
        for row, place in self._log.rows():
            self._note(row, place)

    def _note(self, row: dict[str, Any], place: int) -> None:
        if row.get("discarded"):
            self._places.pop(row["key"], None)
            return
        self._places.setdefault(row["key"], place)
        if row["status"] == OK:
            self.usage.add(*answers.usage(row["body"]))
        else:  # not charged
            self._refused.add(row["key"])

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> tuple[int, dict[str, Any]] | None:
        """The HTTP status and the JSON of an answer; None if there is none."""
        with self._lock:
            place = self._places.get(key)
            row = None if place is None else self._log.at(place)
        return None if row is None else (row["status"], row["body"])

    def add(self, key: str, status: int, body: dict[str, Any]) -> None:
        row = {"key": key, "status": status, "body": body}
        with self._lock:
            self._note(row, self._log.append(row))

    def begin(self) -> None:
        """The calling thread begins to ask for one result, which may take several requests."""
        self._current.repeats, self._current.keys = Counter[str](), []

    def key(self, model: str, body: dict[str, Any], seed: int | None) -> str:
        """The key of the calling thread's next request.

        A request that is repeated for one result wants another sample, so it has another key.
        """
        content = json.dumps([model, seed, body], sort_keys=True)
        repeat = self._current.repeats[content]
        self._current.repeats[content] += 1
        key = hashlib.sha256(f"{repeat}{content}".encode()).hexdigest()[:40]
        self._current.keys.append(key)
        return key

    def asked(self) -> list[str]:
        """The keys of the calling thread's requests since `begin`."""
        return list(self._current.keys)

    def discard(self, keys: Sequence[str]) -> None:
        """Forget unusable answers, so that their requests are sent again; they still count as paid for."""
        with self._lock:
            for key in keys:
                if self._places.pop(key, None) is not None:
                    self._log.append({"key": key, "discarded": True})

    def discard_refusals(self) -> None:
        """When a refusal ends the run: the next one asks again, since the server may have been changed."""
        self.discard(sorted(self._refused))

    def close(self) -> None:
        self._log.close()


def kept_usage(output: Path) -> Usage | None:
    """The tokens of the answers that are kept for an output; None if none are."""
    if not answers_path(output).exists():
        return None
    kept = KeptAnswers(answers_path(output))
    kept.close()
    return kept.usage
