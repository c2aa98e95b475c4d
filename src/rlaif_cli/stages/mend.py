"""`rlaif data validate --fix`: what can be mended without a judgement; the rest is put aside, with the reason."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlaif_cli.config import ValidateConfig
from rlaif_cli.console import ProgressCallback, no_progress
from rlaif_cli.inputs import InputFile, files
from rlaif_cli.jsonl import describe, parse_json, rejected_row
from rlaif_cli.output import new_file, open_for_writing, rejected_path
from rlaif_cli.records import Record

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HALF = re.compile("[\ud800-\udfff]")
_NUMBERS = ("p_chosen", "human_fraction_a")


def mend(config: ValidateConfig, kind: type[Record], *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """Write the mended copy.

    Returns:
        rows, rejected, and how often each thing was mended.

    Raises:
        UsageError: the copy exists already.
    """
    assert config.fix is not None
    mender, rows, rejected = Mender(), 0, 0
    manifest = {"stage": "data", "settings": config.deciding()}
    aside = rejected_path(config.fix, "validate")
    with new_file(config.fix, manifest, overwrite=config.overwrite) as put, open_for_writing(aside, "w") as bad:
        for file, number, line in mender.lines(config.records):
            try:
                row = mender.row(line)
                kind.model_validate(row)
            except (ValueError, RecursionError) as error:
                bad.write(rejected_row(file, number, describe(error), line))
                rejected += 1
            else:
                put(json.dumps(row, ensure_ascii=False))
                rows += 1
            progress(rows + rejected)
    if not rejected:
        aside.unlink()
    return {"rows": rows, "rejected": rejected, "mended": dict(mender.mended)}


class Mender:
    """Mends lines one by one.

    Attributes:
        mended: how often what was mended.
    """

    def __init__(self) -> None:
        self.mended: Counter[str] = Counter()
        self._ids: Counter[str] = Counter()

    def lines(self, address: str) -> Iterator[tuple[InputFile, int, bytes]]:
        """The lines of an input as UTF-8, without what a JSON array has around them."""
        for file in files(address):
            for number, line in _decoded(file.path) if self._is_utf16(file.path) else file.lines():
                if line.strip() in (b"[", b"]"):
                    self.mended["a JSON array's brackets"] += 1
                    continue
                if line.rstrip().endswith(b"},"):
                    self.mended["a comma after a row"] += 1
                    line = line.rstrip()[:-1] + b"\n"
                yield file, number, line

    def row(self, line: bytes) -> dict[str, Any]:
        """A line as an object.

        Raises:
            ValueError: it is none, and not mechanically so.
        """
        row = self._whole(parse_json(line.decode("utf-8"), self._fields))
        if not isinstance(row, dict):
            raise ValueError(f"expected an object with fields, found {type(row).__name__}")
        for name in _NUMBERS:
            if isinstance(row.get(name), str):
                row[name] = float(row[name])
                self.mended[f"'{name}' was a text"] += 1
        if row.get("id") in ("", []):
            del row["id"]
            self.mended["an empty id"] += 1
        if row.get("id") is not None:
            row["id"] = self._one_id(str(row["id"]))
        return row

    def _is_utf16(self, path: Path) -> bool:
        with open(path, "rb") as file:
            found = file.read(2) in _UTF16
        self.mended.update({"UTF-16": 1} if found else {})
        return found

    def _fields(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A field that stands twice with one value says no more than one that stands once."""
        row: dict[str, Any] = {}
        for name, value in pairs:
            if name in row and row[name] != value:
                raise ValueError(f"the field '{name}' stands twice, with two values")
            self.mended["a field twice"] += name in row
            row[name] = value
        return row

    def _whole(self, value: Any) -> Any:
        """Half characters (lone surrogates), which no file can hold, as the mark for what cannot be read."""
        if isinstance(value, str):
            whole, count = _HALF.subn("\N{REPLACEMENT CHARACTER}", value)
            self.mended["half a character"] += count
            return whole
        if isinstance(value, list):
            return [self._whole(item) for item in value]
        return {self._whole(k): self._whole(v) for k, v in value.items()} if isinstance(value, dict) else value

    def _one_id(self, name: str) -> str:
        """The second row of an id gets `-2` behind it."""
        self._ids[name] += 1
        if self._ids[name] == 1:
            return name
        self.mended["a repeated id"] += 1
        return self._one_id(f"{name}-{self._ids[name]}")


def _decoded(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, encoding="utf-16", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.encode("utf-8")
