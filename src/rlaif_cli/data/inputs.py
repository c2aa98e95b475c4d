"""What an argument for records may name, as an ordered list of files of this machine.

    prefs.jsonl             'prefs-*.jsonl.zst'           prefs/ (a folder)           - (stdin)
    hf:org/name:split       s3://bucket/prefs-*.jsonl     https://host/prefs.jsonl    (any address of fsspec)

Inputs are read more than once, so what comes from elsewhere is copied first, in blocks, to a temporary folder.
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
from rlaif_cli.ui import console

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
# What `output` puts beside a file of records.
_SIDECARS = (".manifest.json", ".run.json", ".lock", ".rejected.jsonl", ".unscored.jsonl", ".items.jsonl")
_NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>[0-9]{5,})-of-(?P<count>[0-9]{5,})(?P<ending>[^/]*)")
_WEB = ("http://", "https://")
_FOLDER, _LOCK = "rlaif-", ".lock"  # of temporary copies


@dataclass(frozen=True)
class InputFile:
    """One file of an input.

    Attributes:
        name: what messages call it.
        path: where it lies; if it came from elsewhere, its copy.
    """

    name: str
    path: Path

    def lines(self) -> Iterator[tuple[int, bytes]]:
        return lines(self.path, self.name)


def files(address: str) -> list[InputFile]:
    """The files of an input, shard 2 before shard 10.

    Raises:
        InputError: there is none, one cannot be read, or a shard is missing (`…-00003-of-00012…`).
        MissingDependency: the address needs a package of its own.
    """
    if not is_elsewhere(address):
        return _here(address)
    if address not in _copies:
        _copies[address] = list(_from_elsewhere(address))
    return _copies[address]


def raw_lines(address: str) -> Iterator[tuple[InputFile, int, bytes]]:
    """The lines of an input that are not blank, by file and number, whatever stands in them."""
    for file in files(address):
        for number, line in file.lines():
            yield file, number, line


def is_elsewhere(address: str) -> bool:
    return address == "-" or address.startswith("hf:") or "://" in address


def names_records(name: str) -> bool:
    """Whether a name that could also be a model's is one of records."""
    if os.path.isdir(name):
        inside = _in_folder(name)
        return any(map(_is_data, inside)) and not {"config.json", "adapter_config.json"} & set(inside)
    return name.endswith(ENDINGS) or "://" in name or _is_pattern(name) or os.path.isfile(name)


def reads(address: str, path: Path) -> bool:
    """Whether a file at `path` is, or would be, one of an input's."""
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
    """What is read of a folder."""
    return name.endswith(ENDINGS) and not name.startswith(".") and not _is_sidecar(name)


def _is_sidecar(name: str, pattern: str = "") -> bool:
    """What a pattern leaves out, though it matches; `*.unscored.jsonl` asks for just these."""
    return any(name.endswith(ending) and not pattern.endswith(ending) for ending in _SIDECARS)


def _natural(name: str) -> tuple[list[str | int], str]:
    parts = re.split(r"([0-9]+)", name)  # every second one is a number
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def _chosen(names: Iterable[str], address: str, pattern: str | None) -> list[str]:
    """In natural order, without sidecars; of a folder, where `pattern` is None, what ends as records do.

    Raises:
        InputError: nothing is left, or one of a series of shards is missing.
    """

    def wanted(name: str) -> bool:
        base = os.path.basename(name)
        return _is_data(base) if pattern is None else not _is_sidecar(base, pattern)

    found = sorted(filter(wanted, names), key=_natural)
    if not found and pattern is None:
        hint = f"a folder of {', '.join(ENDINGS)}; folders within it are not read"
        raise InputError("the folder holds no records", where=address, hint=hint)
    if not found:
        raise InputError("no file matches", where=address, hint="quote a pattern, so that the shell leaves it as it is")
    if missing := _missing(found, os.path.basename(pattern) if pattern else "*"):
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise InputError(
            f"a shard is missing: {missing[0]}{more}",
            where=address,
            hint="put them there; to use a part of the shards on purpose, say so by a pattern that leaves out the rest",
        )
    return found


def _missing(names: list[str], pattern: str) -> list[str]:
    """Of series `x-00000-of-00012.jsonl`, numbered from 0 or 1, those that the pattern would take."""
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


# ------------------------------------------------------------------------------------------------ here


def _here(address: str) -> list[InputFile]:
    if os.path.isdir(address):
        inside = (os.path.join(address, name) for name in _in_folder(address))
        names = _chosen(filter(os.path.isfile, inside), address, None)
    elif _is_pattern(address) and not os.path.exists(address):
        names = _chosen(filter(os.path.isfile, glob.glob(address)), address, address)
    elif not os.path.exists(address):
        hint = "a path, pattern or folder of JSONL, - for stdin, or an address such as s3://…"
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


# ------------------------------------------------------------------------------------------------ elsewhere

_copies: dict[str, list[InputFile]] = {}  # of the addresses that were read, so that each is copied once
_folders: list[tuple[Path, IO[str]]] = []  # and the lock that is held on each


def remove_temporary_files() -> None:
    """Called once, when the program ends."""
    _copies.clear()
    while _folders:
        folder, lock = _folders.pop()
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _new_folder() -> Path:
    """A folder of this process. Those of processes that were killed go first: nobody holds their locks."""
    for left in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*/{_LOCK}"):
        with contextlib.suppress(OSError), open(left) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
    lock = open(folder / "new", "x", encoding="utf-8")  # noqa: SIM115  held as long as the folder is there
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / "new").rename(folder / _LOCK)  # never seen before it is held
    _folders.append((folder, lock))
    return folder


def _from_elsewhere(address: str) -> Iterator[InputFile]:
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
            hint="hf:org/name:split; is the hub within reach, and the name right?",
        ) from error
    return (json.dumps(row, default=str).encode() + b"\n" for row in rows)


def _remote(address: str) -> Iterator[InputFile]:
    from fsspec.implementations.local import LocalFileSystem

    system, path = _asked(address, partial(_file_system, address))
    if isinstance(system, LocalFileSystem):  # file://
        yield from _here(path)
        return
    names = _asked(address, partial(_remote_names, system, path, address))
    folder = _new_folder()
    console.say(f"{address}: copying {len(names)} files to {folder}" if len(names) > 1 else f"{address}: copying")
    for index, name in enumerate(names):
        shown = address if name == path else system.unstrip_protocol(name)
        copy = folder / f"{index:05d}.jsonl"
        _asked(shown, partial(system.get_file, name, str(copy)))
        yield InputFile(shown, copy)


def _file_system(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(address)
    except ImportError as error:  # it says which package to install
        raise MissingDependency("a package for such addresses is missing", where=address, hint=str(error)) from error
    except ValueError as error:
        hint = "such as s3://, gs://, hf://datasets/, https:// or file://"
        raise InputError(f"no such kind of address: {error}", where=address, hint=hint) from error


def _remote_names(system: Any, path: str, address: str) -> list[str]:
    """One file, those that a pattern matches, or those of a folder. On the web a folder's address ends in a slash."""
    web = address.startswith(_WEB)
    if "*" in path or (_is_pattern(path) and not web):  # a ? there begins a query
        return _chosen(_of_files(system.glob(path, detail=True).values()), address, path)
    if address.endswith("/") or not (web or path.endswith(ENDINGS) or not system.isdir(path)):
        return _chosen(_of_files(system.ls(path, detail=True)), address, None)
    return [path]


def _of_files(found: Iterable[dict[str, Any]]) -> Iterator[str]:
    return (each["name"] for each in found if each["type"] != "directory")


def _asked(where: str, question: Callable[[], Any]) -> Any:
    """An answer of a file system; all that may go wrong there as one kind of error."""
    try:
        return question()
    except (InputError, MissingDependency):
        raise
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=where, hint="is the address right?") from error
    except Exception as error:  # each system raises kinds of its own, most of them about the network or rights
        raise InputError(
            f"cannot be copied: {type(error).__name__}: {error}",
            where=where,
            hint="is it within reach, are you allowed to read it, and is there room in the temporary folder (TMPDIR)?",
        ) from error
