"""Files that are there whole or not at all."""

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
        stream = stdout_for_records()
        yield lambda line: _write_line(stream, line, "stdout")
        return
    refuse_special(path)
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


def refuse_special(path: Path) -> None:
    """Raises: UsageError: a folder, device or pipe stands there, which cannot be gone on with."""
    if path.is_dir():
        raise UsageError("this is a folder; a file is needed", where=str(path))
    if path.exists() and not path.is_file():
        raise UsageError("this is no file", where=str(path), hint="-o - writes to stdout, from where it can be piped")


def stdout_for_records() -> IO[str]:
    from rlaif_cli.ui import console

    return console.data_stream()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a small JSONL file that rlaif wrote itself (metrics, samples)."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in io.StringIO(file.read()) if line.strip()]
