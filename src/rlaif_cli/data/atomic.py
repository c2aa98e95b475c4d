"""Atomic writes: a file is complete or absent."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from glob import escape
from pathlib import Path
from typing import IO, Any

from rlaif_cli import __version__
from rlaif_cli.config.naming import option
from rlaif_cli.data.compression import content_sha256, open_to_append
from rlaif_cli.data.paths import file_of, sidecar
from rlaif_cli.errors import InputError, RlaifError, UsageError

FLUSH_SECONDS = 1.0


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
        28: "free some space and rerun the same command: it resumes",
        30: f"the file system is read-only: choose another location with {option('output')}",
        17: f"choose another location with {option('output')}: a part of the path is a file, not a folder",
        20: f"choose another location with {option('output')}: a part of the path is a file, not a folder",
        2: f"choose another location with {option('output')}: a folder of the path cannot be created",
        13: f"choose another location with {option('output')}, or change the folder's permissions",
        36: f"choose a shorter name with {option('output')}",
    }
    return RlaifError(
        f"cannot be written: {error.strerror or error}", where=str(path), hint=hints.get(error.errno or 0)
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: a reader sees the old file or the new one, never a part of it."""
    # A file name may hold bytes that are not UTF-8; Python's surrogates for them are written as `\\udcff`.
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically, also if the power fails: the old content or the new, never a part of it."""
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
    """Read a JSON object that has at least `fields`, each of the given type.

    Raises:
        error: the file cannot be read, is not a JSON object, or lacks a field.
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
            raise error(f"'{name}' is missing or has the wrong type", where=str(path), hint=hint)
    return found


def fsync_folder(folder: Path) -> None:
    """Make a rename in the folder, or a new file in it, survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Make all files in a folder survive a power failure; call it before declaring the folder complete."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    fsync_folder(folder)


def lock(file: Any, where: Path) -> None:
    """Lock an open file (or folder) until it is closed or this process ends, however it ends.

    Raises:
        UsageError: another process holds the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            "another process is writing this",
            where=str(where),
            hint=f"wait for it, or choose another {option('output')}",
        ) from None


@contextlib.contextmanager
def new_file(output: str, manifest: dict[str, Any], *, overwrite: bool = False) -> Iterator[Callable[[str], None]]:
    """Write lines to a new file, atomically and with its manifest; or to stdout.

    Raises:
        UsageError: the file exists and `overwrite` is not set.
    """
    path = file_of(output)
    if path is None:
        stream = stdout_for_records()
        yield lambda line: _write_line(stream, line, "stdout")
        return
    refuse_special(path)
    if path.exists() and not overwrite:
        raise UsageError(
            "the file exists",
            where=output,
            hint=f"choose another {option('output')}, or {option('overwrite')} to replace it",
        )
    _remove_left_over(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # the suffix says whether it is compressed
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
    """Create a folder atomically: yields the path to write its files to; `manifest` is written after them.

    Raises:
        UsageError: the folder exists and `overwrite` is not set, or it was made by another command.
    """
    path = Path(output)
    stage = manifest["stage"]
    if path.exists() and not overwrite:
        raise UsageError(
            "the folder exists",
            where=output,
            hint=f"choose another {option('output')}, or {option('overwrite')} to replace it",
        )
    if path.exists() and read_json(path / "manifest.json", error=UsageError).get("stage") != stage:
        raise UsageError(
            "the folder was not made by this command, so it is not replaced",
            where=output,
            hint=f"choose another {option('output')}",
        )
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
    """Remove temporary files that `new_file` or `new_folder` left for this path in killed processes."""
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


def refuse_special(path: Path) -> None:
    """Raises: UsageError: the path is a folder, device or pipe, which cannot be resumed."""
    if path.is_dir():
        raise UsageError("this is a folder; a file is needed", where=str(path))
    if path.exists() and not path.is_file():
        raise UsageError(
            "this is not a regular file",
            where=str(path),
            hint=f"{option('output')} - writes to stdout, which can be piped",
        )


def stdout_for_records() -> IO[str]:
    from rlaif_cli.ui import console

    return console.data_stream()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a small JSONL file that rlaif wrote (metrics, samples)."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in io.StringIO(file.read()) if line.strip()]
