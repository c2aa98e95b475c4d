"""Files of lines, as they are, `.gz` or `.zst`: read by what the first bytes say, written by the name.

A compressed output is a sequence of whole members (gzip) or frames (Zstandard), one for each flush, as both formats
allow: after a kill all but the last one can be read, and a resumed run goes on behind it.
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
_MEMBER_BYTES = 4 << 20  # of text; more is written at once
_BLOCK = 1 << 20
MAX_LINE = 32 << 20  # bytes; a longer one is a fault, so that one line cannot take the machine's memory
_PIECE = 1 << 10  # of compressed bytes: at worst 32 MB of text, with Zstandard
# A decompression bomb: JSONL that shrinks to a thousandth is no data, but a small sample may.
_LARGEST_RATIO, _RATIO_FROM = 1000, 1 << 26


def kind_of(path: Path) -> str:
    """ ".gz" or ".zst" by the first bytes of a file, "" for any other."""
    with open(path, "rb") as file:
        start = file.read(4)
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")


def is_compressed_name(path: Path) -> bool:
    return path.suffix in _MAGIC.values()


def blocks(path: Path, name: str | None = None) -> Iterator[bytes]:
    """A file's bytes, decompressed where it is compressed, in pieces.

    Args:
        name: what errors call the file, if not by its path.

    Raises:
        InputError: it is broken, cut off, or a decompression bomb.
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
                raise InputError(f"{size} bytes grow to more than {total}: no data does", where=name or str(path))
            yield text
    except _errors() as error:
        raise InputError(
            f"cannot be decompressed: {error}", where=name or str(path), hint="was it copied or downloaded whole?"
        ) from error


def lines(path: Path, name: str | None = None) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, each with its end, by their number; without a byte order mark."""
    for number, line in enumerate(_split(blocks(path, name)), start=1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if line.strip():
            yield number, line


def _split(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines; of one longer than `MAX_LINE` its beginning alone."""
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


def content_sha256(*paths: Path) -> str:
    """Of the lines that files hold, compressed or not: the same, however they are spread over files."""
    digest, ended = hashlib.sha256(), True
    for path in paths:
        for _, line in lines(path):
            digest.update(line if ended else b"\n" + line)  # the last line of a file may lack its end
            ended = line.endswith(b"\n")
    return digest.hexdigest()


def members(path: Path) -> Iterator[tuple[bytes, int]]:
    """(text, end) of every whole member of a file that `CompressedFile` wrote; `end`: where the next one begins."""
    text = bytearray()
    with contextlib.suppress(*_errors()):
        for piece, end in _decompressed(path, path.suffix):
            text += piece
            if end is not None:
                yield bytes(text), end
                text.clear()


def _decompressed(path: Path, kind: str) -> Iterator[tuple[bytes, int | None]]:
    """Pieces of text, in bounded memory; with the last one of a member its end in the file.

    Raises:
        EOFError: the file ends within a member.
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
        raise EOFError("it ends in the middle")


def _decompressor(kind: str) -> Any:
    if kind == ".gz":
        return zlib.decompressobj(wbits=31)
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj()


def _errors() -> tuple[type[Exception], ...]:
    import zstandard

    return EOFError, zlib.error, zstandard.ZstdError


class CompressedFile:
    """Text to be appended to a `.gz` or `.zst` file; what stands between two flushes is one member."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed in `close`
        self._compress = _compressor(path.suffix)
        self._waiting: list[str] = []
        self._size = 0

    def write(self, text: str) -> None:
        self._waiting.append(text)
        self._size += len(text)
        if self._size >= _MEMBER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one member; where that fails, nothing of it stays in the file, and it waits on."""
        if not self._size:
            return
        end = os.fstat(self._file.fileno()).st_size
        try:
            self._file.write(self._compress("".join(self._waiting).encode("utf-8")))
        except OSError:
            os.ftruncate(self._file.fileno(), end)
            raise
        self._waiting, self._size = [], 0

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._file.close()


def open_to_append(path: Path) -> Any:
    """A text file to append to, compressed where its name says so; the caller closes it."""
    if is_compressed_name(path):
        return CompressedFile(path)
    return open(path, "a", encoding="utf-8", newline="\n")


def _compressor(suffix: str) -> Callable[[bytes], bytes]:
    if suffix == ".gz":
        return lambda data: gzip.compress(data, mtime=0)
    import zstandard

    return zstandard.ZstdCompressor().compress
