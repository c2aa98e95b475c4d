"""JSONL inputs: checked whole before compute is spent, then read as a stream; memory does not grow with them."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from rlaif_cli.data.atomic import open_for_writing, read_json
from rlaif_cli.data.compression import MAX_LINE, content_sha256
from rlaif_cli.data.filetypes import by_first_bytes, not_utf8, without_rows
from rlaif_cli.data.hash_set import HashSet, hash64
from rlaif_cli.data.inputs import InputFile, files
from rlaif_cli.data.json_lines import TOO_DEEP, describe, parse_json
from rlaif_cli.data.paths import sidecar
from rlaif_cli.data.records import Record
from rlaif_cli.errors import ConversationError, InputError
from rlaif_cli.ui import console

R = TypeVar("R", bound=Record)
T = TypeVar("T")
CHANGED = "this is not what its manifest says; it was changed after it was made"
_ENOUGH_FAULTS = 1000  # after so many the rest of an input is not looked at, unless they are to be skipped
Each = Callable[..., Iterator[Any]]  # called as the built-in `map` is


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
    """Checked records of one or several files (see `inputs`) that can be streamed more than once.

    Every input is checked whole before an engine starts.

    Args:
        check: what else may be wrong with a record; None: nothing.
        each: applies a function to every file, in order: `map`, or that of a pool of processes (without `check`).
        repeats: an id may stand there more than once.

    Attributes:
        count: how many good records there are.
        rejected: how many lines were put aside (with `skip_invalid`).

    Raises:
        InputError: a file is missing, there are no records, or faults (all of the first 20 are reported).
    """

    def __init__(
        self,
        address: str,
        kind: type[R],
        *,
        skip_invalid: bool = False,
        rejected_path: Path | None = None,
        check: Callable[[R], str | None] | None = None,
        each: Each = map,
        repeats: bool = False,
    ) -> None:
        self.name = "stdin" if address == "-" else address
        self.kind = kind
        self.files = files(address)
        self._each, self._repeats = each, repeats
        self._bad_lines: list[dict[int, str]] = []  # of every file: line -> reason
        self._check_whole(skip_invalid, rejected_path, check)

    def __iter__(self) -> Iterator[R]:
        made: Counter[str] = Counter()
        for file, bad in zip(self.files, self._bad_lines, strict=True):
            for record, has_id in _good_records(file, bad, self.kind):
                if not has_id and hash64(record.id) in self._made_again:
                    made[record.id] += 1  # made from the content: equal rows are told apart by a count
                    if made[record.id] > 1:
                        record = record.model_copy(update={"id": f"{record.id}-{made[record.id]}"})
                yield record

    def __len__(self) -> int:
        return self.count

    def by_file(self, function: Callable[[Iterable[R]], T]) -> Iterator[T]:
        """What a function makes of the records of each file, in order; ids that were made may stand there twice."""
        return self._each(partial(_of_records, kind=self.kind, function=function), self.files, self._bad_lines)

    @cached_property
    def sha256(self) -> str:
        """Of all lines; however they are spread over files."""
        return content_sha256(*(file.path for file in self.files))

    def _check_whole(
        self, skip_invalid: bool, rejected_path: Path | None, check: Callable[[R], str | None] | None
    ) -> None:
        for file in self.files:
            if other := by_first_bytes(file):
                raise other.error(file)
        given, made, total = HashSet(), HashSet(), 0
        for ids in () if self._repeats else self._each(_given_ids, self.files):
            given.update(ids)
        look = _Look(self.kind, check, given.repeated(), math.inf if skip_invalid else _ENOUGH_FAULTS)
        first: dict[str, tuple[InputFile, int]] = {}  # where a repeated id stands first
        for file, found in zip(self.files, self._each(look, self.files), strict=True):
            for number, name in found.repeated:
                before, line = first.setdefault(name, (file, number))
                if (before, line) != (file, number):
                    place = f"line {line}" if before == file else f"{before.name} line {line}"
                    found.faults[number] = sys.intern(f"the id '{name}' was used before, in {place}")
            self._bad_lines.append(dict(sorted(found.faults.items())))
            made.update(found.made)
            total += found.lines
            if sum(map(len, self._bad_lines)) >= look.enough:
                break
        self.rejected = sum(map(len, self._bad_lines))
        self.count = total - self.rejected
        self._made_again = made.repeated()
        self._warn_of_its_run()
        if total == 0:
            what = "the file holds" if len(self.files) == 1 else "the files hold"
            raise InputError(f"{what} no records", where=self.name, hint="one JSON object a line")
        faults = self.faults
        if faults and (self.count == 0 or not skip_invalid):
            self._name_other_files()
        if faults and not skip_invalid:
            raise InputError(
                f"{len(faults)} of {total} lines cannot be used",
                where=self.name,
                faults=faults,
                hint="fix the lines, or skip them with --skip-invalid",
            )
        if self.count == 0:
            raise InputError("no line can be used", where=self.name, faults=faults)
        if faults and rejected_path:
            self._write_rejected(rejected_path)

    def _name_other_files(self) -> None:
        """Raises: InputError: none of a file's lines can be used, because it is no JSONL."""
        for file, bad in zip(self.files, self._bad_lines, strict=False):
            no_row = bad and all(number in bad for number, _ in islice(file.lines(), _ENOUGH_FAULTS))
            if no_row and (other := without_rows(file)):
                raise other.error(file)

    def _warn_of_its_run(self) -> None:
        """An input that a run of ours has not finished, or that was changed since, is used, but never in silence."""
        for file in self.files:
            if sidecar(file.path, "run.json").exists():
                console.warn_once(
                    f"{file.name}: the run that makes this file is not finished; there may be rows to come"
                )
            else:
                self._warn_if_changed(file.name, sidecar(file.path, "manifest.json"), [file])
        self._warn_if_changed(self.name, Path(self.name) / "manifest.json", self.files)  # a folder of shards

    def _warn_if_changed(self, name: str, manifest: Path, files: list[InputFile]) -> None:
        if not manifest.exists():
            return
        now = self.sha256 if files == self.files else content_sha256(*(file.path for file in files))
        if is_changed(manifest, now):
            console.warn_once(f"{name}: {CHANGED}")

    @property
    def faults(self) -> list[str]:
        """Every line that cannot be used, and why."""
        return [
            f"{file.name} line {number}: {reason}"
            for file, bad in zip(self.files, self._bad_lines, strict=False)
            for number, reason in bad.items()
        ]

    def _write_rejected(self, path: Path) -> None:
        with open_for_writing(path, "w") as out:
            for file, bad in zip(self.files, self._bad_lines, strict=True):
                for number, line in file.lines() if bad else ():
                    if reason := bad.get(number):
                        out.write(rejected_row(file, number, reason, line))


def rejected_row(file: InputFile, number: int, reason: str, line: bytes) -> str:
    """A row of a file of rejected lines."""
    row = {"file": file.name, "line": number, "reason": reason, "text": line.decode("utf-8", "replace")}
    return json.dumps(row, ensure_ascii=False) + "\n"


# What is done with a file: functions of modules, for they may run in other processes.


@dataclass
class _Found:
    """What a look at a file's lines brought.

    Attributes:
        lines: how many there are.
        faults: line -> reason.
        repeated: (line, id) of good records whose id, not a made one, stands in the input more than once.
        made: the ids that were made from the content.
    """

    lines: int = 0
    faults: dict[int, str] = field(default_factory=dict)
    repeated: list[tuple[int, str]] = field(default_factory=list)
    made: HashSet = field(default_factory=HashSet)


def _given_ids(file: InputFile) -> HashSet:
    ids = HashSet()
    for _, line in file.lines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("id"), str | int):
            ids.add(str(row["id"]))
    return ids


@dataclass(frozen=True)
class _Look(Generic[R]):
    """Looks at every line of a file.

    Attributes:
        check: not asked of a record whose id was seen before, which is fault enough.
        repeated: the hashes of given ids that stand in the input more than once.
        enough: faults after which the rest of the file is not looked at.
        seen: repeated ids that were met; where it all happens in one process, in earlier files too.
    """

    kind: type[R]
    check: Callable[[R], str | None] | None
    repeated: frozenset[int]
    enough: float
    seen: set[str] = field(default_factory=set)

    def __call__(self, file: InputFile) -> _Found:
        found = _Found()
        for number, line in file.lines():
            found.lines += 1
            if reason := self._fault(number, line, found):
                found.faults[number] = sys.intern(reason)
            if len(found.faults) >= self.enough:
                break
        return found

    def _fault(self, number: int, line: bytes, found: _Found) -> str | None:
        if len(line) > MAX_LINE:
            return f"longer than {MAX_LINE >> 20} MiB"
        try:
            row = parse_json(line.decode("utf-8"))
            record = self.kind.model_validate(row)
        except UnicodeDecodeError as error:
            return not_utf8(line, error.start)
        except ValueError as error:
            return describe(error)
        except RecursionError:
            return TOO_DEEP
        if row.get("id") is None:
            found.made.add(record.id)
        elif hash64(record.id) in self.repeated:
            found.repeated.append((number, record.id))
            if record.id in self.seen:
                return None  # told when all files were looked at: only then is it known where it stands first
            self.seen.add(record.id)
        try:
            return self.check(record) if self.check else None
        except ConversationError as refused:
            return refused.what


def is_changed(manifest: Path, sha256: str) -> bool:
    """Whether what has this content now is another than its manifest says."""
    recorded = None
    if manifest.exists():
        with contextlib.suppress(InputError):  # a file of that name which is none of ours
            recorded = read_json(manifest).get("sha256")
    return isinstance(recorded, str) and recorded != sha256


def _good_records(file: InputFile, bad_lines: Container[int], kind: type[R]) -> Iterator[tuple[R, bool]]:
    """Each with whether its id stands in the file, and was not made."""
    for number, line in file.lines():
        if number not in bad_lines:
            row = parse_json(line.decode("utf-8"))
            yield kind.model_validate(row), row.get("id") is not None


def _of_records(file: InputFile, bad_lines: Container[int], kind: type[R], function: Callable[[Iterable[R]], T]) -> T:
    return function(record for record, _ in _good_records(file, bad_lines, kind))
