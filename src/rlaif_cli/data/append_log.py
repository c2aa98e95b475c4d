"""Append-only JSON lines that survive a kill: the files in which rlaif remembers what it has paid for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlaif_cli.data.atomic import cannot_write, lock
from rlaif_cli.errors import InputError, UsageError


class AppendLog:
    """A JSONL file, locked against other processes; a line that a kill left incomplete is removed when it is opened.

    Raises:
        RlaifError: the file cannot be written. UsageError: another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b")  # noqa: SIM115 - open until `close`
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            lock(self._file, path)
        except UsageError:
            self._file.close()
            raise

    def rows(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Every row with the offset of its line; read all of them before the first `append`.

        Raises:
            InputError: a complete line is not a JSON object.
        """
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            yield self._parsed(line, f"line {number}"), self._size
            self._size += len(line)
        os.truncate(self.path, self._size)

    def append(self, row: dict[str, Any], *, durable: bool = False) -> int:
        """Add a row and return its offset; `durable`: it also survives a power failure."""
        line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
            if durable:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._size += len(line)
        return self._size - len(line)

    def at(self, offset: int) -> dict[str, Any]:
        """The row whose line begins at an offset."""
        self._file.seek(offset)  # appending still writes at the end
        return self._parsed(self._file.readline(), f"byte {offset}")

    def _parsed(self, line: bytes, place: str) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise InputError(
                "this is not a JSON object",
                where=f"{self.path} {place}",
                hint="the file is damaged; delete it, and what it held is requested again",
            )
        return row

    def close(self) -> None:
        self._file.close()
