"""JSONL files: checked whole before compute is spent, read as a stream, written append-only, resumed by id.

A run of a data stage leaves three files: the output itself; `<output>.run.json` while it is under way (its settings,
so that a second run can tell whether it may go on); and, once it is complete, `<output>.manifest.json`, written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from rlaif_cli import __version__
from rlaif_cli.errors import InputError, RlaifError, UsageError
from rlaif_cli.records import Record

_FLUSH_SECONDS = 1.0
R = TypeVar("R", bound=Record)


# ---------------------------------------------------------------------------------------------------- reading


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field '{twice}' stands twice")
    return row


def parse_json(line: str) -> Any:
    """Strict JSON: no NaN, no duplicate keys.

    Raises:
        ValueError: with a one-line reason.
    """
    try:
        return json.loads(line, parse_constant=_no_constants, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply") from None


def describe(error: ValidationError) -> str:
    """Pydantic's findings as one line in the words of a user."""
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
        self._path = _local_copy(path)
        self._bad_lines: set[int] = set()
        self._given_ids: dict[str, int] = {}
        self._check_whole(skip_invalid, rejected_path, check)

    def __iter__(self) -> Iterator[R]:
        made: dict[str, int] = {}
        for number, line in self._lines():
            if number in self._bad_lines:
                continue
            record = parse_record(self.kind, line.decode("utf-8"))
            if record.id not in self._given_ids:  # made from the content: equal rows are told apart by a count
                made[record.id] = made.get(record.id, 0) + 1
                if made[record.id] > 1:
                    record = record.model_copy(update={"id": f"{record.id}-{made[record.id]}"})
            yield record

    def __len__(self) -> int:
        return self.count

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        with open(self._path, "rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line

    def _check_whole(
        self, skip_invalid: bool, rejected_path: Path | None, check: Callable[[R], str | None] | None
    ) -> None:
        digest, faults, rejected, total = hashlib.sha256(), [], [], 0
        for number, line in self._lines():
            total += 1
            digest.update(line)
            reason = self._fault(number, line, check)
            if reason:
                self._bad_lines.add(number)
                faults.append(f"{self.name} line {number}: {reason}")
                rejected.append({"line": number, "reason": reason, "text": line.decode("utf-8", "replace")})
        self.sha256 = digest.hexdigest()
        self.count = total - len(faults)
        self.rejected = len(faults)
        if total == 0:
            raise InputError("the file holds no records", where=self.name, hint="one JSON object a line")
        if faults and not skip_invalid:
            raise InputError(
                f"{len(faults)} of {total} lines cannot be used",
                where=self.name,
                faults=faults,
                hint="mend the lines, or go on without them with --skip-invalid",
            )
        if self.count == 0:
            raise InputError("no line can be used", where=self.name, faults=faults)
        if rejected and rejected_path:
            with open_for_writing(rejected_path, "w") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected)

    def _fault(self, number: int, line: bytes, check: Callable[[R], str | None] | None) -> str | None:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            return f"not UTF-8 at byte {error.start}"
        try:
            row = parse_json(text)
            record = self.kind.model_validate(row)
        except ValidationError as error:
            return describe(error)
        except ValueError as error:
            return str(error)
        if row.get("id") is not None:
            if record.id in self._given_ids:
                return f"the id '{record.id}' was used before, in line {self._given_ids[record.id]}"
            self._given_ids[record.id] = number
        return check(record) if check else None


def _local_copy(path: str) -> Path:
    if path == "-":
        return _spool(sys.stdin.buffer)
    if path.startswith("hf:"):
        return _spool_hub(path)
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
    _TEMPORARY.append(Path(copy.name))
    return Path(copy.name)


_TEMPORARY: list[Path] = []


def remove_temporary_files() -> None:
    """Called once, when the program ends."""
    while _TEMPORARY:
        _TEMPORARY.pop().unlink(missing_ok=True)


def _spool_hub(address: str) -> Path:
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
    return _spool(json.dumps(row, default=str).encode() + b"\n" for row in rows)


# ---------------------------------------------------------------------------------------------------- writing


def sidecar(path: Path, suffix: str) -> Path:
    """`out.jsonl` -> `out.jsonl.<suffix>`."""
    return path.with_name(f"{path.name}.{suffix}")


def file_of(output: str) -> Path | None:
    """`-` is stdout: None."""
    return None if output == "-" else Path(output)


def rejected_path(output: str, stage: str) -> Path:
    """Where lines that could not be used go. A stage that writes to stdout puts them in the working folder."""
    return beside(output, stage, "rejected")


def beside(output: str, stage: str, word: str) -> Path:
    """`prefs.jsonl` -> `prefs.unscored.jsonl`; stdout -> `label.unscored.jsonl` in the working folder."""
    path = file_of(output)
    return Path(f"{stage}.{word}.jsonl") if path is None else path.with_name(f"{path.stem}.{word}.jsonl")


@contextlib.contextmanager
def open_for_writing(path: Path, mode: str) -> Iterator[IO[str]]:
    """Open a text file for output; a path that cannot be written becomes a clear error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, mode, encoding="utf-8", newline="\n")  # noqa: SIM115 - entered below, outside the `try`
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        yield file


def cannot_write(path: Path | str, error: OSError) -> RlaifError:
    """One message for every reason that an output cannot be written."""
    hints = {
        28: "free some space and run the same command again: it goes on where it was",
        30: "the file system is read-only: choose another place with -o",
        17: "choose another place with -o: a part of the path is a file, not a folder",
        20: "choose another place with -o: a part of the path is a file, not a folder",
        2: "choose another place with -o: a folder of the path cannot be made there",
        13: "choose another place with -o, or change the folder's permissions",
        36: "choose a shorter name with -o",
    }
    return RlaifError(
        f"cannot be written: {error.strerror or error}", where=str(path), hint=hints.get(error.errno or 0)
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is either the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def refuse_other_settings(before: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Going on with other settings would mix two runs in one file.

    Raises:
        UsageError: with every setting that differs.
    """
    now = json.loads(json.dumps(now, default=str))
    differing = [
        f"{name}: {before.get(name)!r} before, {now.get(name)!r} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if differing:
        raise UsageError(
            "this output was begun with other settings:\n    " + "\n    ".join(differing),
            where=str(where),
            hint="use the same settings to go on, another -o, or --overwrite to start anew",
        )


class Output:
    """An append-only JSONL output that knows which rows it already holds.

    Args:
        path: a file, or None for standard output (then nothing can be resumed).
        settings: all that decides what the rows are; compared with those of the run that began the file.
        key: the field whose values name finished work.
        on_row: told every row that the file already holds (so that a resumed run can count them too).

    Attributes:
        done: the keys of the rows that the file already held.
        complete: the file held all rows of this very run: there is nothing to do.
        usage: what the rows cost so far, over all sittings of the run; see `spend`.
    """

    def __init__(
        self,
        path: Path | None,
        settings: dict[str, Any],
        *,
        overwrite: bool = False,
        key: str = "id",
        on_row: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.path = path
        self.settings = settings
        self.done: set[str] = set()
        self.complete = False
        self.usage: Counter[str] = Counter()
        self._key = key
        self._on_row = on_row
        self._started = self._flushed = time.monotonic()
        if path is None:
            self._file: IO[str] = _stdout()
            return
        try:
            _refuse_special(path)
            if overwrite:
                for old in (path, self._run_path, self.manifest_path):
                    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                        old.unlink()
            self._resume(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115 - closed in `close`
        except OSError as error:
            raise cannot_write(path, error) from error
        if not self.complete:
            self._write_run()
            self.manifest_path.unlink(missing_ok=True)

    @property
    def manifest_path(self) -> Path:
        assert self.path is not None
        return sidecar(self.path, "manifest.json")

    @property
    def _run_path(self) -> Path:
        assert self.path is not None
        return sidecar(self.path, "run.json")

    def write(self, record: BaseModel) -> None:
        """Append a row; within a second it is out of this process, so that a kill loses no more than that."""
        due = time.monotonic() - self._flushed > _FLUSH_SECONDS
        self._write(record.model_dump_json(exclude_none=True) + "\n", flush=due)

    def flush(self) -> None:
        self._write("", flush=True)

    def _write(self, text: str, flush: bool = False) -> None:
        try:
            self._file.write(text)
            if flush:
                self._file.flush()
                self._flushed = time.monotonic()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise cannot_write(self.path or "stdout", error) from error

    def spend(self, usage: dict[str, float]) -> None:
        """Add to what the rows cost; kept in `<output>.run.json`, so that a run that goes on later knows of it."""
        self.usage.update(usage)
        if self.path is not None:
            self._write_run()

    def _write_run(self) -> None:
        write_json(self._run_path, {"rlaif": __version__, "settings": self.settings, "usage": self.usage})

    def finish(self, manifest: dict[str, Any]) -> None:
        """Make the rows durable, then say that they are complete: the manifest is written last."""
        self.flush()
        if self.path is None or self.complete:
            return
        os.fsync(self._file.fileno())
        write_json(
            self.manifest_path,
            {
                "rlaif": __version__,
                "settings": self.settings,
                "bytes": os.fstat(self._file.fileno()).st_size,
                "seconds": round(time.monotonic() - self._started, 1),
                **({"usage": self.usage} if self.usage else {}),
                **manifest,
            },
        )
        self._run_path.unlink(missing_ok=True)

    def close(self) -> None:
        if self.path is not None:
            self._file.close()

    def _resume(self, path: Path) -> None:
        state = next((p for p in (self.manifest_path, self._run_path) if p.exists()), None)
        if not path.exists() or path.stat().st_size == 0:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self.manifest_path.unlink()
            return
        if state is None:
            raise UsageError(
                "the file exists and there is no record of the run that made it",
                where=str(path),
                hint="choose another -o, or --overwrite to replace it",
            )
        manifest = json.loads(state.read_text("utf-8"))
        refuse_other_settings(manifest["settings"], self.settings, path)
        self.usage.update(manifest.get("usage") or {})
        # A finished file that is no longer as long as it was has lost rows: they are made again.
        self.complete = state == self.manifest_path and manifest.get("bytes") == path.stat().st_size
        self.done = drop_torn_line(path, self._key, self._on_row)


def _refuse_special(path: Path) -> None:
    """Raises: UsageError: a folder, device or pipe stands there, which cannot be gone on with."""
    if path.is_dir():
        raise UsageError("this is a folder; a file is needed", where=str(path))
    if path.exists() and not path.is_file():
        raise UsageError("this is no file", where=str(path), hint="-o - writes to stdout, from where it can be piped")


def drop_torn_line(path: Path, key: str = "id", on_row: Callable[[dict[str, Any]], None] | None = None) -> set[str]:
    """Cut a last line that a killed run left half written; return the keys of the whole ones."""
    done, end = set(), 0
    with open(path, "rb") as file:
        for line in file:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if not isinstance(row, dict):
                break
            done.add(str(row.get(key)))
            if on_row is not None:
                on_row(row)
            end += len(line)
    if end < path.stat().st_size:
        os.truncate(path, end)
    return done


def _stdout() -> IO[str]:
    from rlaif_cli import console

    return console.data_stream()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a small JSONL file that rlaif wrote itself (metrics, samples)."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in io.StringIO(file.read()) if line.strip()]


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
