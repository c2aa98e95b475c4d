"""Text files, plain, `.gz` or `.zst`: the first bytes decide when reading, the file name when writing.

A compressed output is a sequence of whole members (gzip) or frames (Zstandard), one for each flush, as both formats
allow: after a kill all but the last one can be read, and a resumed run appends after them.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlaif_cli.errors import InputError

_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_MEMBER_BYTES = 4 << 20  # of text; flush when more is buffered
_BLOCK = 1 << 20
MAX_LINE = 32 << 20  # bytes; a longer line is invalid, so that one line cannot exhaust the machine's memory
_PIECE = 1 << 10  # compressed bytes per read: at worst 32 MB of text, with Zstandard
# Guards against decompression bombs: real JSONL never compresses 1000-fold, except in small samples.
_LARGEST_RATIO, _RATIO_FROM = 1000, 1 << 26


def kind_of(path: Path) -> str:
    """Detect the compression from a file's first bytes: ".gz", ".zst", or "" for none."""
    with open(path, "rb") as file:
        start = file.read(4)
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")


def is_compressed_name(path: Path) -> bool:
    return path.suffix in _MAGIC.values()


def blocks(path: Path, name: str | None = None) -> Iterator[bytes]:
    """A file's bytes in blocks, decompressed if needed.

    Args:
        name: what errors call the file; None: its path.

    Raises:
        InputError: the file is corrupt, truncated, or a decompression bomb.
    """
    kind, size, total = kind_of(path), path.stat().st_size, 0
    if not kind:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                yield block
        return
    try:
        for text, _ in _decompressed(path, kind):
            total += len(text)
            if total > max(_RATIO_FROM, _LARGEST_RATIO * size):
                raise InputError(
                    f"{size} bytes decompress to more than {total}: this looks like a decompression bomb",
                    where=name or str(path),
                )
            yield text
    except _errors() as error:
        raise InputError(
            f"cannot be decompressed: {error}", where=name or str(path), hint="was it copied or downloaded completely?"
        ) from error


def lines(path: Path, name: str | None = None) -> Iterator[tuple[int, bytes]]:
    """(number, line) of every line that is not blank, with its line ending; a byte order mark is removed."""
    for number, line in enumerate(_split(blocks(path, name)), start=1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if line.strip():
            yield number, line


def _split(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Split into lines; a line longer than `MAX_LINE` is cut."""
    rest = b""
    for block in blocks:
        *whole, tail = block.split(b"\n")
        for line in whole:
            yield rest + line + b"\n" if rest else line + b"\n"
            rest = b""
        if len(rest) <= MAX_LINE:
            rest += tail
    if rest:
        yield rest


class ContentDigest:
    """The sha256 of lines; it depends neither on compression nor on how the lines are split over files."""

    def __init__(self) -> None:
        self._sha256, self._ended = hashlib.sha256(), True

    def add(self, line: bytes) -> None:
        self._sha256.update(line if self._ended else b"\n" + line)  # the last line of a file may lack its newline
        self._ended = line.endswith(b"\n")

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def content_sha256(*paths: Path) -> str:
    """The `ContentDigest` of the lines of all files."""
    digest = ContentDigest()
    for path in paths:
        for _, line in lines(path):
            digest.add(line)
    return digest.hexdigest()


def members(path: Path) -> Iterator[tuple[bytes, int]]:
    """(text, end) of every complete member of a file that `CompressedFile` wrote; `end`: offset of the next one."""
    text = bytearray()
    with contextlib.suppress(*_errors()):
        for piece, end in _decompressed(path, path.suffix):
            text += piece
            if end is not None:
                yield bytes(text), end
                text.clear()


def _decompressed(path: Path, kind: str) -> Iterator[tuple[bytes, int | None]]:
    """Yield (text, end) in bounded memory; `end` is a member's end offset with its last piece, else None.

    Raises:
        EOFError: the file ends inside a member.
    """
    member, rest, end, begun = _decompressor(kind), b"", 0, False
    with open(path, "rb") as file:
        while data := rest or file.read(_PIECE):
            text, rest = member.decompress(data), member.unused_data
            end += len(data) - len(rest)
            yield text, end if member.eof else None
            if member.eof:
                member, begun = _decompressor(kind), False
            else:
                begun = True
    if begun:
        raise EOFError("unexpected end of file")


def _decompressor(kind: str) -> Any:
    if kind == ".gz":
        return zlib.decompressobj(wbits=31)
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj()


def _errors() -> tuple[type[Exception], ...]:
    import zstandard

    return EOFError, zlib.error, zstandard.ZstdError


class CompressedFile:
    """Appends text to a `.gz` or `.zst` file; each flush writes one member."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed in `close`
        self._compress = _compressor(path.suffix)
        self._buffer: list[str] = []
        self._size = 0

    def write(self, text: str) -> None:
        self._buffer.append(text)
        self._size += len(text)
        if self._size >= _MEMBER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the buffer as one member; if that fails, the file is truncated back and the buffer is kept."""
        if not self._size:
            return
        end = os.fstat(self._file.fileno()).st_size
        try:
            self._file.write(self._compress("".join(self._buffer).encode("utf-8")))
        except OSError:
            os.ftruncate(self._file.fileno(), end)
            raise
        self._buffer, self._size = [], 0

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._file.close()


def open_to_append(path: Path) -> Any:
    """Open a text file to append to, compressed if its name says so; the caller closes it."""
    if is_compressed_name(path):
        return CompressedFile(path)
    return open(path, "a", encoding="utf-8", newline="\n")


def _compressor(suffix: str) -> Callable[[bytes], bytes]:
    if suffix == ".gz":
        return lambda data: gzip.compress(data, mtime=0)
    import zstandard

    return zstandard.ZstdCompressor().compress
