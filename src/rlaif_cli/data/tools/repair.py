"""`rlaif data validate --fix`: what can be fixed without a judgement; the rest is set aside, with the reason."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rlaif_cli.config.data import ValidateConfig
from rlaif_cli.data.atomic import new_file, open_for_writing
from rlaif_cli.data.filetypes import UTF16, by_first_bytes, read_by_value, values, without_rows
from rlaif_cli.data.inputs import InputFile, files
from rlaif_cli.data.json_lines import describe, parse_json
from rlaif_cli.data.paths import rejected_path
from rlaif_cli.data.reader import rejected_row
from rlaif_cli.data.records import FLAGS, Record
from rlaif_cli.data.turns import plain_row, without_prompt
from rlaif_cli.ui.progress import ProgressCallback, no_progress

_HALF = re.compile("[\ud800-\udfff]")
_NUMBERS = ("p_chosen", "human_fraction_a")


def mend(config: ValidateConfig, kind: type[Record], *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """Write the fixed copy.

    Returns:
        rows, rejected, and how often each thing was fixed in the rows of the copy.

    Raises:
        InputError: a file is of a type that cannot be fixed.
        UsageError: the copy exists already.
    """
    assert config.fix is not None
    repair, rows, rejected = Repair(), 0, 0
    manifest = {"stage": "data", "settings": config.deciding()}
    aside = _set_aside(rejected_path(config.fix, "validate"))
    with new_file(config.fix, manifest, overwrite=config.overwrite) as put, aside as bad:
        for file, number, line in repair.lines(config.records):
            try:
                row = repair.row(line)
                kind.model_validate(row)
                row = repair.kept(row)
            except (ValueError, RecursionError) as error:
                bad.write(rejected_row(file, number, describe(error), line))
                rejected += 1
            else:
                put(json.dumps(row, ensure_ascii=False))
                rows += 1
            progress(rows + rejected)
        if not rows:
            _name_other_files(config.records)
    return {"rows": rows, "rejected": rejected, "fixed": dict(repair.fixed)}


@contextlib.contextmanager
def _set_aside(path: Path) -> Iterator[IO[str]]:
    """A file of rejected rows, which stays if there are any and the copy is written."""
    try:
        with open_for_writing(path, "w") as file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    if not path.stat().st_size:
        path.unlink()


def _name_other_files(address: str) -> None:
    """Raises: InputError: a file without a row is of a type that another tool reads."""
    for file in files(address):
        if (other := without_rows(file)) and other.how is not None:
            raise other.error(file)


class Repair:
    """Fixes rows one by one: `row`, then `kept` for those that can be used.

    Attributes:
        fixed: how often what was fixed, in files and in rows that were kept.
    """

    def __init__(self) -> None:
        self.fixed: Counter[str] = Counter()
        self._of_row: Counter[str] = Counter()  # what was fixed in the row at hand
        self._ids: Counter[str] = Counter()

    def lines(self, address: str) -> Iterator[tuple[InputFile, int, bytes]]:
        """The rows of an input as UTF-8, each with the line in which it begins.

        Raises:
            InputError: what a file holds is not JSON.
        """
        for file in files(address):
            found = by_first_bytes(file)
            self.fixed["UTF-16"] += found is UTF16
            if read_by_value(file):
                self.fixed["rows not on a line of their own"] += 1
                for number, text in values(file):
                    self._of_row.clear()
                    yield file, number, text.encode("utf-8", "surrogatepass")
            else:
                for number, line in _decoded(file.path) if found is UTF16 else file.lines():
                    if line.strip() in (b"[", b"]"):
                        self.fixed["a JSON array's brackets"] += 1
                        continue
                    self._of_row.clear()
                    if line.rstrip().endswith(b"},"):
                        self._of_row["a comma after a row"] += 1
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
        row = self._without_prompt(row)
        for name in _NUMBERS:
            if isinstance(row.get(name), str) and (number := _number(row[name])) is not None:
                row[name] = number
                self._of_row[f"'{name}' was a text"] += 1
        for name in FLAGS:
            for holder in (row, row.get("meta")):
                if isinstance(holder, dict) and (text := str(holder.get(name)).lower()) in ("true", "false"):
                    self._of_row[f"'{name}' was a text"] += isinstance(holder[name], str)
                    holder[name] = text == "true"
        if row.get("id") in ("", []):
            del row["id"]
            self._of_row["an empty id"] += 1
        return row

    def kept(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row that can be used, with an id that no row before it has; what was fixed in it is counted."""
        if row.get("id") is not None:
            row["id"] = self._one_id(str(row["id"]))
        self.fixed.update(self._of_row)
        return row

    def _without_prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        """A prompt that its replies begin with once more is taken off them."""
        sides = [name for name in ("chosen", "rejected", "completion") if name in row]
        plain = plain_row(row)
        shorter = without_prompt(plain, *sides) if sides else plain
        if shorter is plain:
            return row
        self._of_row["a prompt repeated in its replies"] += 1
        return shorter

    def _fields(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A field that stands twice with one value says no more than one that stands once."""
        row: dict[str, Any] = {}
        for name, value in pairs:
            if name in row and row[name] != value:
                raise ValueError(f"the field '{name}' stands twice, with two values")
            self._of_row["a field twice"] += name in row
            row[name] = value
        return row

    def _whole(self, value: Any) -> Any:
        """Half characters (lone surrogates), which no file can hold, as the mark for what cannot be read."""
        if isinstance(value, str):
            whole, count = _HALF.subn("\N{REPLACEMENT CHARACTER}", value)
            self._of_row["half a character"] += count
            return whole
        if isinstance(value, list):
            return [self._whole(item) for item in value]
        return {self._whole(k): self._whole(v) for k, v in value.items()} if isinstance(value, dict) else value

    def _one_id(self, name: str) -> str:
        """The second row of an id gets `-2` behind it."""
        self._ids[name] += 1
        if self._ids[name] == 1:
            return name
        self.fixed["a repeated id"] += 1
        return self._one_id(f"{name}-{self._ids[name]}")


def _number(text: str) -> float | None:
    with contextlib.suppress(ValueError):
        return number if math.isfinite(number := float(text)) else None
    return None  # what is no number is the record's to refuse


def _decoded(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a UTF-16 file as UTF-8."""
    with open(path, encoding="utf-16", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.encode("utf-8")
