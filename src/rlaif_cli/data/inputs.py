"""Resolve an argument for records to an ordered list of local files.

    prefs.jsonl             'prefs-*.jsonl.zst'           prefs/ (a folder)           - (stdin)
    hf:org/name:split       s3://bucket/prefs-*.jsonl     https://host/prefs.jsonl    (any fsspec address)

Inputs are read more than once, so stdin and remote files are first copied to a temporary folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import IO, Any

from rlaif_cli.data.compression import lines
from rlaif_cli.errors import InputError, MissingDependency
from rlaif_cli.ui import messages

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
# Files that a stage writes beside its output.
_SIDECARS = (
    ".manifest.json",
    ".run.json",
    ".lock",
    ".rejected.jsonl",
    ".unscored.jsonl",
    ".items.jsonl",
    ".answers.jsonl",
    ".batches.jsonl",
)
_NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>[0-9]{5,})-of-(?P<count>[0-9]{5,})(?P<ending>[^/]*)")
_WEB = ("http://", "https://")
_FOLDER, _LOCK = "rlaif-", ".lock"  # of temporary copies


@dataclass(frozen=True)
class InputFile:
    """One file of an input.

    Attributes:
        name: what messages call it.
        path: the file, or for stdin and remote files their local copy.
    """

    name: str
    path: Path

    def lines(self) -> Iterator[tuple[int, bytes]]:
        return lines(self.path, self.name)


def files(address: str) -> list[InputFile]:
    """The files of an input, shard 2 before shard 10.

    Raises:
        InputError: there is no file, one cannot be read, or a shard is missing (`…-00003-of-00012…`).
        MissingDependency: the address needs a package that is not installed.
    """
    if not is_remote(address):
        return _local_files(address)
    if address not in _copies:
        _copies[address] = list(_copied_files(address))
    return _copies[address]


def raw_lines(address: str) -> Iterator[tuple[InputFile, int, bytes]]:
    """(file, number, line) of every line of an input that is not blank, valid or not."""
    for file in files(address):
        for number, line in file.lines():
            yield file, number, line


def is_remote(address: str) -> bool:
    return address == "-" or address.startswith("hf:") or "://" in address


def names_records(name: str) -> bool:
    """Whether a name that could also be a model's names records."""
    if os.path.isdir(name):
        inside = _in_folder(name)
        return any(map(_is_data, inside)) and not {"config.json", "adapter_config.json"} & set(inside)
    return name.endswith(ENDINGS) or "://" in name or _is_pattern(name) or os.path.isfile(name)


def includes(address: str, path: Path) -> bool:
    """Whether a file at `path` is, or would be, part of an input."""
    path, place = path.resolve(), Path(address.removeprefix("file://")).resolve()
    if place.is_dir():
        return path.parent == place and _is_data(path.name)
    if not _is_pattern(str(place)) or place.exists():
        return path == place
    alike = len(path.parts) == len(place.parts) and all(map(fnmatchcase, path.parts, place.parts))
    return alike and not _is_sidecar(path.name, place.name)


# ------------------------------------------------------------------------------------------------ names


def _is_pattern(name: str) -> bool:
    return glob.escape(name) != name


def _is_data(name: str) -> bool:
    """Whether a file in a folder is read."""
    return name.endswith(ENDINGS) and not name.startswith(".") and not _is_sidecar(name)


def _is_sidecar(name: str, pattern: str = "") -> bool:
    """Whether a pattern skips the file though it matches; `*.unscored.jsonl` asks for sidecars explicitly."""
    return any(name.endswith(ending) and not pattern.endswith(ending) for ending in _SIDECARS)


def _natural_key(name: str) -> tuple[list[str | int], str]:
    parts = re.split(r"([0-9]+)", name)  # every second one is a number
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def _select(names: Iterable[str], address: str, pattern: str | None) -> list[str]:
    """Filter out sidecars and sort naturally; in a folder (`pattern` is None) keep only the endings of records.

    Raises:
        InputError: nothing is left, or a shard of a series is missing.
    """

    def wanted(name: str) -> bool:
        base = os.path.basename(name)
        return _is_data(base) if pattern is None else not _is_sidecar(base, pattern)

    found = sorted(filter(wanted, names), key=_natural_key)
    if not found and pattern is None:
        hint = f"the folder must hold {', '.join(ENDINGS)} files; subfolders are not read"
        raise InputError("the folder holds no records", where=address, hint=hint)
    if not found:
        raise InputError(
            "no file matches", where=address, hint="quote the pattern, so that the shell does not expand it"
        )
    if missing := _missing(found, os.path.basename(pattern) if pattern else "*"):
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise InputError(
            f"a shard is missing: {missing[0]}{more}",
            where=address,
            hint="add the missing shards, or use a glob that matches only the shards you want",
        )
    return found


def _missing(names: list[str], pattern: str) -> list[str]:
    """Missing shards of series such as `x-00000-of-00012.jsonl`, numbered from 0 or 1, that the pattern would match."""
    series: dict[tuple[str, str], dict[int, re.Match[str]]] = {}
    for name in names:
        if found := _NUMBERED.fullmatch(name):
            series.setdefault((found["before"], found["count"]), {})[int(found["number"])] = found
    missing = []
    for (before, count), there in series.items():
        one = next(iter(there.values()))
        for number in range(first := int(int(count) in there), first + min(int(count), 1_000_000)):
            name = f"{before}{number:0{len(one['number'])}d}-of-{count}{one['ending']}"
            if number not in there and fnmatchcase(os.path.basename(name), pattern):
                missing.append(name)
    return missing


# ------------------------------------------------------------------------------------------------ local files


def _local_files(address: str) -> list[InputFile]:
    if os.path.isdir(address):
        inside = (os.path.join(address, name) for name in _in_folder(address))
        names = _select(filter(os.path.isfile, inside), address, None)
    elif _is_pattern(address) and not os.path.exists(address):
        names = _select(filter(os.path.isfile, glob.glob(address)), address, address)
    elif not os.path.exists(address):
        hint = "give a path, glob or folder of JSONL, - for stdin, or an address such as s3://…"
        raise InputError("there is no such file", where=address, hint=hint)
    else:
        names = [address]
    for name in names:
        if not os.access(name, os.R_OK):
            raise InputError("the file cannot be read", where=name, hint="check its permissions")
    return [InputFile(name, Path(name)) for name in names]


def _in_folder(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise InputError(f"the folder cannot be read: {error.strerror}", where=folder) from error


# --------------------------------------------------------------------------------------- stdin and remote files

_copies: dict[str, list[InputFile]] = {}  # by address, so that each is copied once
_folders: list[tuple[Path, IO[str]]] = []  # with the lock held on each


def remove_temporary_files() -> None:
    """Called once, when the program ends."""
    _copies.clear()
    while _folders:
        folder, lock = _folders.pop()
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _new_folder() -> Path:
    """A temporary folder of this process. Folders left by killed processes, whose locks are free, are removed first."""
    for left in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*/{_LOCK}"):
        with contextlib.suppress(OSError), open(left) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
    lock = open(folder / "new", "x", encoding="utf-8")  # noqa: SIM115  held as long as the folder exists
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / "new").rename(folder / _LOCK)  # it gets its name only once it is locked
    _folders.append((folder, lock))
    return folder


def _copied_files(address: str) -> Iterator[InputFile]:
    if address == "-":
        yield _spooled("stdin", sys.stdin.buffer)
    elif address.startswith("hf:") and not address.startswith("hf://"):
        yield _spooled(address, _hub_rows(address))
    else:
        yield from _remote(address)


def _spooled(name: str, blocks: Iterable[bytes]) -> InputFile:
    path = _new_folder() / "rows.jsonl"
    with open(path, "wb") as copy:
        copy.writelines(blocks)
    return InputFile(name, path)


def _hub_rows(address: str) -> Iterator[bytes]:
    name, _, split = address.removeprefix("hf:").partition(":")
    try:
        from datasets import load_dataset

        rows = load_dataset(name, split=split or "train")
    except Exception as error:  # datasets raises a dozen kinds, most of them about the network
        raise InputError(
            f"the dataset cannot be loaded: {type(error).__name__}: {error}",
            where=address,
            hint="the form is hf:org/name:split; can the hub be reached, and is the name right?",
        ) from error
    return (json.dumps(row, default=str).encode() + b"\n" for row in rows)


def _remote(address: str) -> Iterator[InputFile]:
    from fsspec.implementations.local import LocalFileSystem

    system, path = _call(address, partial(_file_system, address))
    if isinstance(system, LocalFileSystem):  # file://
        yield from _local_files(path)
        return
    names = _call(address, partial(_remote_names, system, path, address))
    folder = _new_folder()
    messages.say(f"{address}: copying {len(names)} files to {folder}" if len(names) > 1 else f"{address}: copying")
    for index, name in enumerate(names):
        shown = address if name == path else system.unstrip_protocol(name)
        copy = folder / f"{index:05d}.jsonl"
        _call(shown, partial(system.get_file, name, str(copy)))
        yield InputFile(shown, copy)


def _file_system(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(address)
    except ImportError as error:  # it says which package to install
        raise MissingDependency(
            "a package for this kind of address is missing", where=address, hint=str(error)
        ) from error
    except ValueError as error:
        hint = "supported are s3://, gs://, hf://datasets/, https:// or file://"
        raise InputError(f"unsupported kind of address: {error}", where=address, hint=hint) from error


def _remote_names(system: Any, path: str, address: str) -> list[str]:
    """One file, the matches of a pattern, or the files of a folder. A web address of a folder ends in a slash."""
    web = address.startswith(_WEB)
    if "*" in path or (_is_pattern(path) and not web):  # in a web address, ? begins the query
        return _select(_file_names(system.glob(path, detail=True).values()), address, path)
    if address.endswith("/") or not (web or path.endswith(ENDINGS) or not system.isdir(path)):
        return _select(_file_names(system.ls(path, detail=True)), address, None)
    return [path]


def _file_names(found: Iterable[dict[str, Any]]) -> Iterator[str]:
    return (each["name"] for each in found if each["type"] != "directory")


def _call(where: str, function: Callable[[], Any]) -> Any:
    """Call a file system and turn whatever it raises into an InputError."""
    try:
        return function()
    except (InputError, MissingDependency):
        raise
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=where, hint="is the address right?") from error
    except Exception as error:  # each file system raises its own types, most of them about the network or permissions
        raise InputError(
            f"cannot be copied: {type(error).__name__}: {error}",
            where=where,
            hint="can it be reached, may you read it, and is there space in the temporary folder (TMPDIR)?",
        ) from error
