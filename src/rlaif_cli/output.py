"""Outputs: append-only JSONL that is resumed by id, JSON that is whole or not there, and the files beside them.

A run of a data stage leaves three files: the output itself; `<output>.run.json` while it is under way (its settings,
so that a second run can tell whether it may go on); and, once it is complete, `<output>.manifest.json`, written last.
What survives a kill or a loss of power is stated in docs/reliability.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from glob import escape
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from rlaif_cli import __version__
from rlaif_cli.compression import content_sha256, is_compressed_name, members, open_to_append
from rlaif_cli.config.base import DATA_FIELDS
from rlaif_cli.errors import InputError, RlaifError, UsageError
from rlaif_cli.hashes import HashSet

_FLUSH_SECONDS = 1.0
START_ANEW = "choose another -o, or --overwrite to start anew"


def sidecar(path: Path, suffix: str) -> Path:
    """`out.jsonl` -> `out.jsonl.<suffix>`."""
    return path.with_name(f"{path.name}.{suffix}")


def file_of(output: str) -> Path | None:
    """`-` is stdout: None."""
    return None if output == "-" else Path(output)


def rejected_path(output: str, stage: str) -> Path:
    """Where lines that could not be used go. A stage that writes to stdout puts them in the working folder."""
    return beside(output, stage, "rejected")


def set_aside(folder: str, word: str = "rejected") -> Path:
    """Where a trainer puts lines that could not be used: beside its output folder, `rm` -> `rm.rejected.jsonl`."""
    return Path(folder).with_name(f"{Path(folder).name}.{word}.jsonl")


def beside(output: str, stage: str, word: str) -> Path:
    """`prefs.jsonl` -> `prefs.unscored.jsonl`; stdout -> `label.unscored.jsonl` in the working folder."""
    path = file_of(output)
    if path is None:
        return Path(f"{stage}.{word}.jsonl")
    stem = Path(path.stem).stem if is_compressed_name(path) else path.stem
    return path.with_name(f"{stem}.{word}.jsonl")


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
    # A file name may hold bytes that are no UTF-8; what Python makes of them JSON can write as `\\udcff`.
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def write_whole(path: Path, content: bytes) -> None:
    """Either the old file or the new one, never half of it; also after a loss of power."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def read_json(
    path: Path, *, error: type[RlaifError] = InputError, hint: str | None = None, **fields: type
) -> dict[str, Any]:
    """The JSON object that a file holds, with at least `fields`, each of its type.

    Raises:
        error: it cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as failed:
        raise error(f"cannot be read: {failed.strerror or failed}", where=str(path), hint=hint) from failed
    except (ValueError, RecursionError) as failed:
        raise error(f"this is not JSON: {failed}", where=str(path), hint=hint) from failed
    if not isinstance(found, dict):
        raise error("this is not a JSON object", where=str(path), hint=hint)
    for name, kind in fields.items():
        if not isinstance(found.get(name), kind):
            raise error(f"'{name}' is missing or not what it should be", where=str(path), hint=hint)
    return found


def fsync_folder(folder: Path) -> None:
    """Make a rename within it, or a new file, survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Make all that stands in a folder survive a loss of power; before a rename or manifest says that it is whole."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    fsync_folder(folder)


def lock(file: Any, where: Path) -> None:
    """Claim a file (or folder) that is open, until it is closed or this process ends, however it ends.

    Raises:
        UsageError: another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            "another process is writing this", where=str(where), hint="wait for it, or choose another -o"
        ) from None


@contextlib.contextmanager
def new_file(output: str, manifest: dict[str, Any], *, overwrite: bool = False) -> Iterator[Callable[[str], None]]:
    """Lines to a file that is there whole or not at all, with its manifest; or to stdout.

    Raises:
        UsageError: it is there already, and is not to be overwritten.
    """
    path = file_of(output)
    if path is None:
        stream = _stdout()
        yield lambda line: _write_line(stream, line, "stdout")
        return
    _refuse_special(path)
    if path.exists() and not overwrite:
        raise UsageError("the file exists", where=output, hint="choose another -o, or --overwrite to replace it")
    _remove_left_over(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # its ending says whether it is compressed
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open_to_append(temporary)
        try:
            yield lambda line: _write_line(file, line, output)
            file.flush()
            os.fsync(file.fileno())
        finally:
            file.close()
        os.replace(temporary, path)
        fsync_folder(path.parent)
        facts = {"bytes": path.stat().st_size, "sha256": content_sha256(path)}
        write_json(sidecar(path, "manifest.json"), {"rlaif": __version__, **facts, **manifest})
    except OSError as error:
        raise cannot_write(output, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(output: str, manifest: dict[str, Any], *, overwrite: bool = False) -> Iterator[Path]:
    """Where to put the files of a folder that is there whole or not at all; `manifest` is written when they are there.

    Raises:
        UsageError: it is there already, and is not to be overwritten or is none that was made so.
    """
    path = Path(output)
    stage = manifest["stage"]
    if path.exists() and not overwrite:
        raise UsageError("this exists", where=output, hint="choose another -o, or --overwrite to replace it")
    if path.exists() and read_json(path / "manifest.json", error=UsageError).get("stage") != stage:
        raise UsageError("only what the same command made is replaced", where=output, hint="choose another -o")
    _remove_left_over(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        write_json(temporary / "manifest.json", {"rlaif": __version__, **manifest})
        fsync_tree(temporary)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise cannot_write(output, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_left_over(path: Path) -> None:
    """What `new_file` and `new_folder` began for this path in processes that were killed."""
    for old in path.parent.glob(f".*.{escape(path.name)}"):
        owner = old.name.split(".")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc/self").exists():
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)


def _write_line(file: Any, line: str, where: str) -> None:
    try:
        file.write(line + "\n")
    except BrokenPipeError:
        raise
    except OSError as error:
        raise cannot_write(where, error) from error


def refuse_other_settings(record: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Going on with other settings would mix two runs in one file.

    An input is what stands in it: its name, or over how many files it is spread, is no setting of the output.

    Args:
        record: what was written of the run that began it: its `settings`, and its `output` then.
        now: the settings.
        where: its output now. What lay in the same folder then and lies there now is the same, moved.

    Raises:
        UsageError: with every setting that differs.
    """
    before, now = record["settings"], json.loads(json.dumps(now, default=str))
    if isinstance(record.get("output"), str):
        before, told = (_seen_from(folder, each) for folder, each in ((record["output"], before), (where, now)))
    else:
        told = now
    hashed = [name for name, sha256 in input_hashes(now).items() if sha256 is not None]
    names = sorted((before.keys() | now.keys()) - set(hashed))
    differing = [
        _difference(name, record["settings"].get(name), now.get(name))
        for name in names
        if before.get(name) != told.get(name)
    ]
    if differing:
        raise UsageError(
            "this output was begun with other settings:\n    " + "\n    ".join(differing),
            where=str(where),
            hint=f"use the same settings to go on, or {START_ANEW}",
        )


def _seen_from(output: str | Path, value: Any) -> Any:
    """Settings in which the files beside an output are named from its folder."""
    if isinstance(value, dict):
        return {_seen_from(output, name): _seen_from(output, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_seen_from(output, inner) for inner in value]
    folder = Path(output).parent
    if isinstance(value, str) and folder.parts and Path(value).is_relative_to(folder):
        return f"{{folder}}/{Path(value).relative_to(folder)}"
    return value


def input_hashes(settings: dict[str, Any]) -> dict[str, str | None]:
    """The sha256 of every file of records that recorded settings name; None where none was recorded."""
    named = [name for name in DATA_FIELDS if isinstance(settings.get(name), str)]
    found = {name: settings.get(f"{name}_sha256") for name in named}
    if named:
        found[named[0]] = found[named[0]] or settings.get("input_sha256")
    return found


def _difference(name: str, before: Any, now: Any) -> str:
    if not name.endswith("_sha256"):
        return f"{name}: {before!r} before, {now!r} now"
    what = name.removesuffix("_sha256").replace("_", " ")
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return _changed(f"the {what}", before, now)
    # Of several by name: those that changed, not two long lists of hashes.
    changed = [key for key in now if key in before and before[key] != now[key]]
    return "\n    ".join(_changed(f"the {what} {key}", before[key], now[key]) for key in changed) or (
        f"{what}: {', '.join(before)} before, {', '.join(now)} now"
    )


def _changed(what: str, before: Any, now: Any) -> str:
    return f"{what} has changed: its sha256 was {str(before)[:12]}…, and is {str(now)[:12]}…"


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
        self.done = HashSet()
        self.complete = False
        self.usage: Counter[str] = Counter()
        self._key = key
        self._on_row = on_row
        self._started = self._flushed = time.monotonic()
        if path is None:
            self._file: Any = _stdout()
            return
        try:
            _refuse_special(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _claimed(path)
            if overwrite:
                self._start_anew(path)
            self._resume(path)
        except OSError as error:
            raise cannot_write(path, error) from error
        if not self.complete:
            self._write_run()
            self.manifest_path.unlink(missing_ok=True)

    def _start_anew(self, path: Path) -> None:
        """A new file, not the old one emptied: who reads the old one, or has another link to it, keeps it."""
        before = self._file
        for old in (path, self._run_path, self.manifest_path):
            old.unlink(missing_ok=True)
        self._file = _claimed(path)
        before.close()

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
        if self.usage["uncounted"]:  # then what is known of the cost is a part of it
            self.usage.pop("cost", None)
        if self.path is not None:
            self._write_run()

    def _write_run(self) -> None:
        record = {"rlaif": __version__, "output": str(self.path), "settings": self.settings, "usage": self.usage}
        write_json(self._run_path, record)

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
                "output": str(self.path),
                "settings": self.settings,
                "bytes": os.fstat(self._file.fileno()).st_size,
                "sha256": content_sha256(self.path),
                "seconds": round(time.monotonic() - self._started, 1),
                **({"usage": self.usage} if self.usage else {}),
                **manifest,
            },
        )
        self._run_path.unlink(missing_ok=True)

    def close(self) -> None:
        """What still waits is written; where it cannot be, an error was raised before, and it is done again."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _resume(self, path: Path) -> None:
        state = next((p for p in (self.manifest_path, self._run_path) if p.exists()), None)
        if path.stat().st_size == 0:
            self.manifest_path.unlink(missing_ok=True)
            return
        if state is None:
            raise UsageError(
                "the file exists and there is no record of the run that made it",
                where=str(path),
                hint="choose another -o, or --overwrite to replace it",
            )
        manifest = read_json(state, settings=dict, hint=START_ANEW)
        refuse_other_settings(manifest, self.settings, path)
        self.usage.update(_numbers(manifest.get("usage", {}), state))
        # A finished file that is no longer as long as it was has lost rows: they are made again.
        self.complete = state == self.manifest_path and manifest.get("bytes") == path.stat().st_size
        self.done = drop_torn_line(path, self._key, self._on_row)


def _numbers(found: Any, where: Path) -> dict[str, float]:
    counted = isinstance(found, dict) and found.keys() <= {"tokens_in", "tokens_out", "uncounted", "cost"}
    if not counted or not all(isinstance(value, int | float) for value in found.values()):
        raise InputError("'usage' is not what it should be", where=str(where), hint=START_ANEW)
    return found


def _refuse_special(path: Path) -> None:
    """Raises: UsageError: a folder, device or pipe stands there, which cannot be gone on with."""
    if path.is_dir():
        raise UsageError("this is a folder; a file is needed", where=str(path))
    if path.exists() and not path.is_file():
        raise UsageError("this is no file", where=str(path), hint="-o - writes to stdout, from where it can be piped")


def drop_torn_line(path: Path, key: str = "id", on_row: Callable[[dict[str, Any]], None] | None = None) -> HashSet:
    """Cut what a killed run left half written at the end; the keys of the whole rows before it."""
    done, end = HashSet(), 0
    for lines, after in _written_together(path):
        rows = [_whole_row(line) for line in lines]
        if any(row is None for row in rows):
            break
        for row in rows:
            assert row is not None
            done.add(str(row.get(key)))
            if on_row is not None:
                on_row(row)
        end = after
    if end < path.stat().st_size:
        os.truncate(path, end)
    return done


def _written_together(path: Path) -> Iterator[tuple[list[bytes], int]]:
    """(lines, end) of what stands or falls together: a line; a member, where the file is compressed."""
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


def _claimed(path: Path) -> Any:
    """The file, open to append, and no other process's.

    Raises:
        UsageError: it is another's.
    """
    file = open_to_append(path)
    try:
        lock(file, path)
    except UsageError:
        file.close()
        raise
    return file


def _stdout() -> IO[str]:
    from rlaif_cli.ui import console

    return console.data_stream()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a small JSONL file that rlaif wrote itself (metrics, samples)."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in io.StringIO(file.read()) if line.strip()]
