"""`rlaif data validate --fix`: fix what needs no judgement; set the other invalid lines aside, with the reason."""

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
from rlaif_cli.data.filetypes import UTF16, detect_by_content, detect_by_magic, has_multiline_rows, values
from rlaif_cli.data.inputs import InputFile, files
from rlaif_cli.data.json_lines import describe, parse_json
from rlaif_cli.data.paths import rejected_path
from rlaif_cli.data.reader import rejected_row
from rlaif_cli.data.records import FLAGS, Record
from rlaif_cli.data.turns import normalize_row, without_repeated_prompt
from rlaif_cli.ui.progress import ProgressCallback, no_progress

_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBERS = ("p_chosen", "human_fraction_a")


def repair(config: ValidateConfig, kind: type[Record], *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """Write a repaired copy.

    Returns:
        rows, rejected, and how often each kind of fix was applied to the rows of the copy.

    Raises:
        InputError: a file is of a type that cannot be fixed.
        UsageError: the copy already exists.
    """
    assert config.fix is not None
    fixer, rows, rejected = RowFixer(), 0, 0
    manifest = {"stage": "data", "settings": config.deciding()}
    rejected_file = _rejected_file(rejected_path(config.fix, "validate"))
    with new_file(config.fix, manifest, overwrite=config.overwrite) as write_line, rejected_file as invalid:
        for file, number, line in fixer.lines(config.records):
            try:
                row = fixer.row(line)
                kind.model_validate(row)
                row = fixer.kept(row)
            except (ValueError, RecursionError) as error:
                invalid.write(rejected_row(file, number, describe(error), line))
                rejected += 1
            else:
                write_line(json.dumps(row, ensure_ascii=False))
                rows += 1
            progress(rows + rejected)
        if not rows:
            _raise_if_other_type(config.records)
    return {"rows": rows, "rejected": rejected, "fixed": dict(fixer.fixed)}


@contextlib.contextmanager
def _rejected_file(path: Path) -> Iterator[IO[str]]:
    """The file of rejected rows; it is removed if it is empty or the copy fails."""
    try:
        with open_for_writing(path, "w") as file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    if not path.stat().st_size:
        path.unlink()


def _raise_if_other_type(address: str) -> None:
    """Raises: InputError: a file without valid rows is of a type that needs another tool."""
    for file in files(address):
        if (other := detect_by_content(file)) and other.conversion is not None:
            raise other.error(file)


class RowFixer:
    """Fixes rows one by one: call `row`, then `kept` if the result is valid.

    Attributes:
        fixed: kind of fix -> how often, in files and in kept rows.
    """

    def __init__(self) -> None:
        self.fixed: Counter[str] = Counter()
        self._of_row: Counter[str] = Counter()  # fixes in the current row
        self._ids: Counter[str] = Counter()

    def lines(self, address: str) -> Iterator[tuple[InputFile, int, bytes]]:
        """(file, line number, text) of the rows of an input, as UTF-8.

        Raises:
            InputError: a file is not JSON.
        """
        for file in files(address):
            found = detect_by_magic(file)
            self.fixed["UTF-16"] += found is UTF16
            if has_multiline_rows(file):
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
        """Parse and fix a line.

        Raises:
            ValueError: it is not an object, and cannot be fixed mechanically.
        """
        row = self._without_surrogates(parse_json(line.decode("utf-8"), self._fields))
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
        """Give a valid row a unique id, and count its fixes."""
        if row.get("id") is not None:
            row["id"] = self._unique_id(str(row["id"]))
        self.fixed.update(self._of_row)
        return row

    def _without_prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        """Remove a prompt that the replies repeat."""
        sides = [name for name in ("chosen", "rejected", "completion") if name in row]
        normalized = normalize_row(row)
        shorter = without_repeated_prompt(normalized, *sides) if sides else normalized
        if shorter is normalized:
            return row
        self._of_row["a prompt repeated in its replies"] += 1
        return shorter

    def _fields(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Merge duplicate fields that have the same value."""
        row: dict[str, Any] = {}
        for name, value in pairs:
            if name in row and row[name] != value:
                raise ValueError(f"the field '{name}' appears twice, with different values")
            self._of_row["a field twice"] += name in row
            row[name] = value
        return row

    def _without_surrogates(self, value: Any) -> Any:
        """Replace lone surrogates (half characters), which cannot be written to a file, by U+FFFD."""
        if isinstance(value, str):
            whole, count = _SURROGATE.subn("\N{REPLACEMENT CHARACTER}", value)
            self._of_row["half a character"] += count
            return whole
        if isinstance(value, list):
            return [self._without_surrogates(item) for item in value]
        return (
            {self._without_surrogates(k): self._without_surrogates(v) for k, v in value.items()}
            if isinstance(value, dict)
            else value
        )

    def _unique_id(self, name: str) -> str:
        """Append `-2` to the id of the second row with that id."""
        self._ids[name] += 1
        if self._ids[name] == 1:
            return name
        self.fixed["a repeated id"] += 1
        return self._unique_id(f"{name}-{self._ids[name]}")


def _number(text: str) -> float | None:
    with contextlib.suppress(ValueError):
        return number if math.isfinite(number := float(text)) else None
    return None  # the record's validation refuses it


def _decoded(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a UTF-16 file as UTF-8."""
    with open(path, encoding="utf-16", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.encode("utf-8")
