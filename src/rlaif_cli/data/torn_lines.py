"""Repair a file of rows that a killed process left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlaif_cli.data.compression import is_compressed_name, members
from rlaif_cli.data.hash_set import HashSet


def drop_torn_line(path: Path, on_row: Callable[[dict[str, Any]], None] | None = None) -> HashSet:
    """Remove a partly written row at the end; returns the ids of the complete rows before it."""
    done, end = HashSet(), 0
    for lines, after in _written_together(path):
        rows = [_whole_row(line) for line in lines]
        if any(row is None for row in rows):
            break
        for row in rows:
            assert row is not None
            done.add(str(row.get("id")))
            if on_row is not None:
                on_row(row)
        end = after
    if end < path.stat().st_size:
        os.truncate(path, end)
    return done


def _written_together(path: Path) -> Iterator[tuple[list[bytes], int]]:
    """(lines, end offset) of each atomic unit: a line, or in a compressed file a member."""
    if is_compressed_name(path):
        yield from ((text.splitlines(keepends=True), end) for text, end in members(path))
        return
    end = 0
    with open(path, "rb") as file:
        for line in file:
            end += len(line)
            yield [line], end


def _whole_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
