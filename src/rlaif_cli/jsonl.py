"""JSONL inputs: checked whole before compute is spent, then read as a stream; memory does not grow with them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from pydantic import ValidationError

from rlaif_cli import console
from rlaif_cli.compression import MAX_LINE, lines
from rlaif_cli.errors import InputError
from rlaif_cli.hashes import HashSet, hash64
from rlaif_cli.output import open_for_writing, read_json, sidecar
from rlaif_cli.records import Record

R = TypeVar("R", bound=Record)
CHANGED = "this is not what its manifest says; it was changed after it was made"
_ENOUGH_FAULTS = 1000  # after so many the rest of a file is not looked at, unless they are to be skipped


MAX_DEPTH = 100  # pydantic writes no row that is nested 255 deep
TOO_DEEP = f"nested more than {MAX_DEPTH} deep"


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field '{twice}' stands twice")
    return row


def parse_json(line: str, fields: Callable[[list[tuple[str, Any]]], dict[str, Any]] = _no_duplicates) -> Any:
    """Strict JSON: no NaN, no duplicate keys (unless `fields`, which makes an object of its pairs, allows them).

    Raises:
        ValueError: with a one-line reason.
    """
    try:
        row = json.loads(line, parse_constant=_no_constants, parse_float=_finite, object_pairs_hook=fields)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if line.count("[") + line.count("{") > MAX_DEPTH and _depth(row) > MAX_DEPTH:
        raise ValueError(TOO_DEEP)
    return row


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _depth(value: Any) -> int:
    """How deep lists and objects stand within each other."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, list | dict)]:
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def describe(error: Exception) -> str:
    """Why a value was refused, in one line: pydantic's findings in the words of a user; of others what they say."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(_describe_one(found) for found in error.errors()[:3])


def _describe_one(found: Any) -> str:
    place = ".".join(str(part) for part in found["loc"] if not str(part).startswith(("list[", "constrained")))
    kind, context = found["type"], found.get("ctx", {})
    if kind == "missing":
        return f"'{place}' is missing"
    if kind == "too_short":
        return f"'{place}' needs at least {context['min_length']} items, found {context['actual_length']}"
    if kind == "string_too_short":
        return f"'{place}' is empty"
    if kind == "extra_forbidden":
        return f"'{place}' is no setting or field that is known here"
    message = found["msg"].removeprefix("Value error, ")
    return f"'{place}': {message}" if place else message


def parse_record(kind: type[R], line: str) -> R:
    """One line as a record.

    Raises:
        ValueError: with a one-line reason that names the field.
    """
    try:
        return kind.model_validate(parse_json(line))
    except ValidationError as error:
        raise ValueError(describe(error)) from None


class Source(Generic[R]):
    """A checked file of records that can be streamed more than once.

    `-` (stdin) and `hf:org/name[:split]` are copied to a temporary file first, so that every input is checked whole
    before an engine starts.

    Attributes:
        count: how many good records there are.
        sha256: of the file's bytes.
        rejected: how many lines were put aside (with `skip_invalid`).

    Raises:
        InputError: the file is missing, empty, or has faults (all of the first 20 are reported).
    """

    def __init__(
        self,
        path: str,
        kind: type[R],
        *,
        skip_invalid: bool = False,
        rejected_path: Path | None = None,
        check: Callable[[R], str | None] | None = None,
    ) -> None:
        self.name = "stdin" if path == "-" else path
        self.kind = kind
        self._path = local_copy(path)
        self._bad_lines: dict[int, str] = {}  # line -> reason
        self._repeated = self._repeated_ids()
        self._first_lines: dict[str, int] = {}  # of repeated ids
        self._check_whole(skip_invalid, rejected_path, check)

    def __iter__(self) -> Iterator[R]:
        made: Counter[str] = Counter()
        for number, line in self._lines():
            if number in self._bad_lines:
                continue
            row = parse_json(line.decode("utf-8"))
            record = self.kind.model_validate(row)
            if row.get("id") is None and hash64(record.id) in self._made_again:
                made[record.id] += 1  # made from the content: equal rows are told apart by a count
                if made[record.id] > 1:
                    record = record.model_copy(update={"id": f"{record.id}-{made[record.id]}"})
            yield record

    def __len__(self) -> int:
        return self.count

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        return lines(self._path)

    def _repeated_ids(self) -> frozenset[int]:
        """The hashes of given ids that stand in the file more than once."""
        ids = HashSet()
        for _, line in self._lines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and isinstance(row.get("id"), str | int):
                ids.add(str(row["id"]))
        return ids.repeated()

    def _check_whole(
        self, skip_invalid: bool, rejected_path: Path | None, check: Callable[[R], str | None] | None
    ) -> None:
        digest, made, total = hashlib.sha256(), HashSet(), 0
        for number, line in self._lines():
            total += 1
            digest.update(line)
            reason = self._fault(number, line, made, check)
            if reason:
                self._bad_lines[number] = sys.intern(reason)
            if len(self._bad_lines) >= _ENOUGH_FAULTS and not skip_invalid:
                break
        self.sha256 = digest.hexdigest()
        self.rejected = len(self._bad_lines)
        self.count = total - self.rejected
        self._made_again = made.repeated()
        self._warn_of_its_run()
        if total == 0:
            raise InputError("the file holds no records", where=self.name, hint="one JSON object a line")
        faults = self.faults
        if faults and not skip_invalid:
            raise InputError(
                f"{len(faults)} of {total} lines cannot be used",
                where=self.name,
                faults=faults,
                hint="mend the lines, or go on without them with --skip-invalid",
            )
        if self.count == 0:
            raise InputError("no line can be used", where=self.name, faults=faults)
        if self._bad_lines and rejected_path:
            self._write_rejected(rejected_path)

    def _warn_of_its_run(self) -> None:
        """An input that a run of ours has not finished, or that was changed since, is used, but never in silence."""
        if sidecar(self._path, "run.json").exists():
            console.warn_once(f"{self.name}: the run that makes this file is not finished; there may be rows to come")
        elif is_changed(self._path, self.sha256):
            console.warn_once(f"{self.name}: {CHANGED}")

    @property
    def faults(self) -> list[str]:
        """Every line that cannot be used, and why."""
        return [f"{self.name} line {number}: {reason}" for number, reason in self._bad_lines.items()]

    def _write_rejected(self, path: Path) -> None:
        with open_for_writing(path, "w") as file:
            for number, line in self._lines():
                if reason := self._bad_lines.get(number):
                    row = {"line": number, "reason": reason, "text": line.decode("utf-8", "replace")}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _fault(self, number: int, line: bytes, made: HashSet, check: Callable[[R], str | None] | None) -> str | None:
        if len(line) > MAX_LINE:
            return f"longer than {MAX_LINE >> 20} MiB"
        try:
            row = parse_json(line.decode("utf-8"))
            record = self.kind.model_validate(row)
        except UnicodeDecodeError as error:
            utf16 = " (UTF-16?)" if error.start < 2 or b"\0" in line else ""
            return f"not UTF-8 at byte {error.start}{utf16}; `rlaif data validate --fix NEW` mends an encoding"
        except ValueError as error:
            return describe(error)
        except RecursionError:
            return TOO_DEEP
        if row.get("id") is None:
            made.add(record.id)
        elif hash64(record.id) in self._repeated:
            first = self._first_lines.setdefault(record.id, number)
            if first != number:
                return f"the id '{record.id}' was used before, in line {first}"
        return check(record) if check else None


def is_changed(path: Path, sha256: str) -> bool:
    """Whether a file of that content is another than its manifest says."""
    manifest, recorded = sidecar(path, "manifest.json"), None
    if manifest.exists():
        with contextlib.suppress(InputError):  # a file of that name which is none of ours
            recorded = read_json(manifest).get("sha256")
    return isinstance(recorded, str) and recorded != sha256


def raw_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, by their number, whatever stands in them."""
    return lines(local_copy(path))


def local_copy(path: str) -> Path:
    """A file that can be read more than once: of stdin and of hub datasets a temporary copy, made once."""
    if path == "-" or path.startswith("hf:"):
        if path not in _TEMPORARY:
            _TEMPORARY[path] = _spool(sys.stdin.buffer if path == "-" else _hub_rows(path))
        return _TEMPORARY[path]
    if os.path.isdir(path):
        raise InputError("this is a folder, not a file", where=path)
    if not os.path.exists(path):
        raise InputError("there is no such file", where=path, hint="give a path to a JSONL file, or - for stdin")
    if not os.access(path, os.R_OK):
        raise InputError("the file cannot be read", where=path, hint="check its permissions")
    return Path(path)


def _spool(stream: IO[bytes] | Iterable[bytes]) -> Path:
    with tempfile.NamedTemporaryFile(prefix="rlaif-", suffix=".jsonl", delete=False) as copy:
        for block in stream:
            copy.write(block)
    return Path(copy.name)


_TEMPORARY: dict[str, Path] = {}


def remove_temporary_files() -> None:
    """Called once, when the program ends."""
    while _TEMPORARY:
        _TEMPORARY.popitem()[1].unlink(missing_ok=True)


def _hub_rows(address: str) -> Iterator[bytes]:
    name, _, split = address.removeprefix("hf:").partition(":")
    try:
        from datasets import load_dataset

        rows = load_dataset(name, split=split or "train")
    except Exception as error:  # datasets raises a dozen kinds, most of them about the network
        raise InputError(
            f"the dataset cannot be loaded: {type(error).__name__}: {error}",
            where=address,
            hint="hf:org/name:split; is the hub within reach, and the name right?",
        ) from error
    return (json.dumps(row, default=str).encode() + b"\n" for row in rows)
