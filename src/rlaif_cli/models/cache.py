"""The cache folder, and cached hashes of large files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from pathlib import Path


def cache_dir() -> Path:
    """`$RLAIF_CACHE`, else `rlaif` in the user's cache folder."""
    if own := os.environ.get("RLAIF_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "rlaif"


# Hashing a smaller file is faster than looking up its hash.
REMEMBER_FROM_BYTES = 8 << 20


def file_sha256(path: Path) -> str:
    """sha256 of a file; for a large file it is cached as long as size and modification time stay the same."""
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}"
    note = cache_dir() / "hashes" / hashlib.sha256(key.encode()).hexdigest()[:32]
    # A file that was just written may change again within its timestamp's resolution: do not cache it yet.
    settled = time.time() - stat.st_mtime > 2
    remember = settled and stat.st_size >= REMEMBER_FROM_BYTES
    if remember:
        with contextlib.suppress(OSError):
            return note.read_text()

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)

    if remember:
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            note.parent.mkdir(parents=True, exist_ok=True)
            unfinished = note.with_name(f"{note.name}.{os.getpid()}")
            unfinished.write_text(digest.hexdigest())
            unfinished.replace(note)
    return digest.hexdigest()
