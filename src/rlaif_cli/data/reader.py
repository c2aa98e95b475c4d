"""JSONL inputs: fully validated before compute is spent, then streamed; memory use does not grow with their size."""

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

from rlaif_cli.config.naming import option, spelled
from rlaif_cli.data.atomic import open_for_writing, read_json
from rlaif_cli.data.compression import MAX_LINE, ContentDigest, content_sha256
from rlaif_cli.data.filetypes import detect_by_content, detect_by_magic, not_utf8
from rlaif_cli.data.hash_set import HashSet, hash64
from rlaif_cli.data.inputs import InputFile, files
from rlaif_cli.data.json_lines import TOO_DEEP, describe, parse_json
from rlaif_cli.data.paths import sidecar
from rlaif_cli.data.records import Record
from rlaif_cli.errors import ConversationError, InputError
from rlaif_cli.ui import messages

R = TypeVar("R", bound=Record)
T = TypeVar("T")
CHANGED = "this is not what its manifest says; it was changed after it was made"
_MAX_ERRORS = 1000  # stop checking an input after so many, unless invalid lines are skipped
Each = Callable[..., Iterator[Any]]  # with the signature of the built-in `map`


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
    """Validated records of one or several files (see `inputs`) that can be streamed more than once.

    Args:
        check: a further check of a record; returns what is wrong, or None. It is called once for every record of the
            iteration, in that order, and last for a record: one that it passes is valid.
        restart: called before the records are checked; once more if ids repeat, which checks them again.
        each: applies a function to every file, in order: `map`, or a process pool's (without `check`).
        repeats: ids may repeat.

    Attributes:
        count: how many valid records there are.
        rejected: how many invalid lines were set aside (with `skip_invalid`).

    Raises:
        InputError: a file is missing, there are no records, or lines are invalid.
    """

    def __init__(
        self,
        address: str,
        kind: type[R],
        *,
        skip_invalid: bool = False,
        rejected_path: Path | None = None,
        check: Callable[[R], str | None] | None = None,
        restart: Callable[[], None] = lambda: None,
        each: Each = map,
        repeats: bool = False,
    ) -> None:
        self.name = "stdin" if address == "-" else address
        self.kind = kind
        self.files = files(address)
        self._each, self._repeats = each, repeats
        self._bad_lines: list[dict[int, str]] = []  # per file: line -> reason
        self._check_whole(skip_invalid, rejected_path, check, restart)

    def __iter__(self) -> Iterator[R]:
        generated: Counter[str] = Counter()
        for file, bad in zip(self.files, self._bad_lines, strict=True):
            for record, has_id in _valid_records(file, bad, self.kind):
                if not has_id and hash64(record.id) in self._repeated_generated_ids:
                    generated[record.id] += 1  # from the content: equal rows are numbered
                    if generated[record.id] > 1:
                        record = record.model_copy(update={"id": f"{record.id}-{generated[record.id]}"})
                yield record

    def __len__(self) -> int:
        return self.count

    def by_file(self, function: Callable[[Iterable[R]], T]) -> Iterator[T]:
        """Apply a function to the records of each file, in order; generated ids may repeat there."""
        return self._each(partial(_of_records, kind=self.kind, function=function), self.files, self._bad_lines)

    @cached_property
    def sha256(self) -> str:
        """sha256 of all lines, however they are split over files."""
        return content_sha256(*(file.path for file in self.files))

    def _check_whole(
        self,
        skip_invalid: bool,
        rejected_path: Path | None,
        check: Callable[[R], str | None] | None,
        restart: Callable[[], None],
    ) -> None:
        for file in self.files:
            if other := detect_by_magic(file):
                raise other.error(file)
        max_errors = math.inf if skip_invalid else _MAX_ERRORS
        restart()
        found = self._checked(check, max_errors, frozenset())
        # Repeated ids are known only at the end. They are rare, so only then are the files read again for their lines.
        if not self._repeats and (repeated := _all(each.given for each in found).repeated()):
            restart()
            found = self._checked(check, max_errors, repeated)
        total = sum(each.lines for each in found)
        self._bad_lines = [dict(sorted(each.errors.items())) for each in found]
        self.rejected = sum(map(len, self._bad_lines))
        self.count = total - self.rejected
        self._repeated_generated_ids = _all(each.generated for each in found).repeated()
        self._warn_if_stale()
        if total == 0:
            what = "the file holds" if len(self.files) == 1 else "the files hold"
            raise InputError(f"{what} no records", where=self.name, hint="one JSON object per line")
        errors = self.errors
        if errors and (self.count == 0 or not skip_invalid):
            self._raise_if_other_type()
        if errors and not skip_invalid:
            raise InputError(
                f"{len(errors)} of {total} lines are invalid",
                where=self.name,
                errors=errors,
                hint=f"fix the lines, or skip them with {option('skip_invalid')}",
            )
        if self.count == 0:
            raise InputError("no line is valid", where=self.name, errors=errors)
        if errors and rejected_path:
            self._write_rejected(rejected_path)

    def _checked(
        self, check: Callable[[R], str | None] | None, max_errors: float, repeated: frozenset[int]
    ) -> list[_CheckedFile]:
        """Check the files, until there are too many errors; the content's hash is taken on the way.

        Args:
            repeated: the hashes of given ids that are known to appear more than once.
        """
        digest = ContentDigest() if self._each is map else None  # other processes each see only a part
        checker = _LineChecker(self.kind, check, repeated, max_errors, digest)
        first: dict[str, tuple[InputFile, int]] = {}  # where a repeated id appears first
        done: list[_CheckedFile] = []
        for file, found in zip(self.files, self._each(checker, self.files), strict=True):
            for number, name in found.repeated:
                earlier, line = first.setdefault(name, (file, number))
                if (earlier, line) != (file, number):
                    place = f"line {line}" if earlier == file else f"{earlier.name} line {line}"
                    found.errors[number] = sys.intern(f"the id '{name}' is already used in {place}")
            done.append(found)
            if sum(len(each.errors) for each in done) >= max_errors:
                return done
        if digest is not None:
            self.sha256 = digest.hexdigest()
        return done

    def _raise_if_other_type(self) -> None:
        """Raises: InputError: no line of a file is valid because it is not JSONL."""
        for file, bad in zip(self.files, self._bad_lines, strict=False):
            no_row = bad and all(number in bad for number, _ in islice(file.lines(), _MAX_ERRORS))
            if no_row and (other := detect_by_content(file)):
                raise other.error(file)

    def _warn_if_stale(self) -> None:
        """Warn if the run that writes an input is unfinished, or if the input was changed since."""
        for file in self.files:
            if sidecar(file.path, "run.json").exists():
                messages.warn_once(f"{file.name}: the run that writes this file is not finished; rows may be missing")
            else:
                self._warn_if_changed(file.name, sidecar(file.path, "manifest.json"), [file])
        self._warn_if_changed(self.name, Path(self.name) / "manifest.json", self.files)  # a folder of shards

    def _warn_if_changed(self, name: str, manifest: Path, files: list[InputFile]) -> None:
        if not manifest.exists():
            return
        now = self.sha256 if files == self.files else content_sha256(*(file.path for file in files))
        if is_changed(manifest, now):
            messages.warn_once(f"{name}: {CHANGED}")

    @property
    def errors(self) -> list[str]:
        """Every invalid line, with the reason."""
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
    """A row of the file of rejected lines."""
    row = {"file": file.name, "line": number, "reason": spelled(reason), "text": line.decode("utf-8", "replace")}
    return json.dumps(row, ensure_ascii=False) + "\n"


# Functions of one file are at module level, so that they can run in other processes.


@dataclass
class _CheckedFile:
    """The result of checking a file's lines.

    Attributes:
        lines: how many there are.
        errors: line -> reason.
        repeated: (line, id) of valid records whose given id appears more than once in the input.
        given: the ids of valid records that are in the file.
        generated: those that were made from the content.
    """

    lines: int = 0
    errors: dict[int, str] = field(default_factory=dict)
    repeated: list[tuple[int, str]] = field(default_factory=list)
    given: HashSet = field(default_factory=HashSet)
    generated: HashSet = field(default_factory=HashSet)


def _all(sets: Iterable[HashSet]) -> HashSet:
    union = HashSet()
    for each in sets:
        union.update(each)
    return union


@dataclass(frozen=True)
class _LineChecker(Generic[R]):
    """Checks every line of a file.

    Attributes:
        check: not called for a record whose id repeats, which is already an error.
        repeated: the hashes of given ids that appear more than once in the input.
        max_errors: stop checking the file after so many.
        digest: the lines are added to it.
        seen: repeated ids found so far; in one process, in earlier files too.
    """

    kind: type[R]
    check: Callable[[R], str | None] | None
    repeated: frozenset[int]
    max_errors: float
    digest: ContentDigest | None = None
    seen: set[str] = field(default_factory=set)

    def __call__(self, file: InputFile) -> _CheckedFile:
        found = _CheckedFile()
        for number, line in file.lines():
            found.lines += 1
            if self.digest is not None:
                self.digest.add(line)
            if reason := self._error(number, line, found):
                found.errors[number] = sys.intern(reason)
            if len(found.errors) >= self.max_errors:
                break
        return found

    def _error(self, number: int, line: bytes, found: _CheckedFile) -> str | None:
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
            found.generated.add(record.id)
            return self._check(record)
        found.given.add(record.id)
        if self.repeated and hash64(record.id) in self.repeated:
            found.repeated.append((number, record.id))
            if record.id in self.seen:
                return None  # reported after all files are checked, when its first place is known
            self.seen.add(record.id)
        return self._check(record)

    def _check(self, record: R) -> str | None:
        try:
            return self.check(record) if self.check else None
        except ConversationError as refused:
            return refused.what


def is_changed(manifest: Path, sha256: str) -> bool:
    """Whether content with this sha256 differs from what its manifest records."""
    recorded = None
    if manifest.exists():
        with contextlib.suppress(InputError):  # a file of that name that rlaif did not write
            recorded = read_json(manifest).get("sha256")
    return isinstance(recorded, str) and recorded != sha256


def _valid_records(file: InputFile, bad_lines: Container[int], kind: type[R]) -> Iterator[tuple[R, bool]]:
    """Valid records, each with whether its id is given in the file."""
    for number, line in file.lines():
        if number not in bad_lines:
            row = parse_json(line.decode("utf-8"))
            yield kind.model_validate(row), row.get("id") is not None


def _of_records(file: InputFile, bad_lines: Container[int], kind: type[R], function: Callable[[Iterable[R]], T]) -> T:
    return function(record for record, _ in _valid_records(file, bad_lines, kind))
