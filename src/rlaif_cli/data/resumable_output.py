"""Append-only JSONL outputs that resume by id, and the files beside them.

A run of a data stage writes three files: the output itself; `<output>.run.json` while it runs (its settings, so that
a rerun can tell whether it may resume); and, once complete, `<output>.manifest.json`, written last.
docs/reliability.md says what survives a kill or a power failure.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlaif_cli import __version__
from rlaif_cli.config.naming import option
from rlaif_cli.data.atomic import (
    FLUSH_SECONDS,
    cannot_write,
    lock,
    read_json,
    refuse_special,
    write_json,
)
from rlaif_cli.data.compression import content_sha256, open_to_append
from rlaif_cli.data.hash_set import HashSet
from rlaif_cli.data.paths import sidecar
from rlaif_cli.data.run_settings import START_OVER, refuse_changed_settings
from rlaif_cli.data.torn_lines import drop_torn_line
from rlaif_cli.errors import InputError, UsageError
from rlaif_cli.ui import messages

# By model, how many answers had which value of a field: {"judge": {"model": {"judge-2026": 60}}}.
Servers = dict[str, dict[str, dict[str, int]]]


class Output:
    """An append-only JSONL output that knows which rows it already has.

    Args:
        path: a file, or None for standard output (then nothing can be resumed).
        settings: everything that determines the rows; compared with those of the run that started the file.
        on_row: called with every row already in the file (so that a resumed run can count it).

    Attributes:
        done: the keys of the rows already in the file.
        complete: the file already has all rows of this run: there is nothing to do.
        usage: what the rows have cost so far, including interrupted runs; see `spend`.
        servers: what the servers said that they are; see `spend`.
        written: how many rows this run has added.
    """

    def __init__(
        self,
        path: Path | None,
        settings: dict[str, Any],
        *,
        overwrite: bool = False,
        on_row: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.path = path
        self.settings = settings
        self.done = HashSet()
        self.complete = False
        self.usage: Counter[str] = Counter()
        self.servers: Servers = {}
        self.written = 0
        self._on_row = on_row
        self._started = self._flushed = time.monotonic()
        if path is None:
            self._file: Any = messages.current().records
            return
        try:
            self._open(path, overwrite)
        except OSError as error:
            raise cannot_write(path, error) from error

    def _open(self, path: Path, overwrite: bool) -> None:
        refuse_special(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _open_locked(path)
        try:
            if overwrite:
                self._start_over(path)
            self._resume(path)
            if not self.complete:
                self._write_run()
                self.manifest_path.unlink(missing_ok=True)
        except BaseException:  # it is not to be resumed: the lock must not last as long as this object
            self._file.close()
            raise

    def _start_over(self, path: Path) -> None:
        """Create a new file rather than truncate the old one, which readers and hard links keep."""
        before = self._file
        for old in (path, self._run_path, self.manifest_path):
            old.unlink(missing_ok=True)
        self._file = _open_locked(path)
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
        """Append a row; it is flushed within a second, so a kill loses no more than that."""
        due = time.monotonic() - self._flushed > FLUSH_SECONDS
        self._write(record.model_dump_json(exclude_none=True) + "\n", flush=due)
        self.written += 1

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

    def spend(self, usage: dict[str, float], servers: Servers | None = None, *, for_resume: bool = True) -> None:
        """Add to what the rows have cost, and who answered.

        Args:
            for_resume: save it in `<output>.run.json`, for a resumed run; not if another file does that.
        """
        self.usage.update(usage)
        for model, fields in (servers or {}).items():
            before = self.servers.setdefault(model, {})
            for name, counts in fields.items():
                before[name] = dict(Counter(before.get(name, {})) + Counter(counts))
        if self.usage["uncounted"]:  # then the known cost is only a part
            self.usage.pop("cost", None)
        if for_resume and self.path is not None:
            self._write_run()

    def _write_run(self) -> None:
        record = {"rlaif": __version__, "output": str(self.path), "settings": self.settings, "usage": self.usage}
        write_json(self._run_path, record | ({"servers": self.servers} if self.servers else {}))

    def finish(self, manifest: dict[str, Any]) -> None:
        """Make the rows durable, then write the manifest, which declares them complete."""
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
                **({"servers": self.servers} if self.servers else {}),
                **manifest,
            },
        )
        self._run_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Write what is buffered; if that fails, an error was raised before, and the rows are recomputed on resume."""
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
                hint=f"choose another {option('output')}, or {option('overwrite')} to replace it",
            )
        manifest = read_json(state, settings=dict, hint=START_OVER)
        refuse_changed_settings(manifest, self.settings, path)
        self.usage.update(_numbers(manifest.get("usage", {}), state))
        self.servers = _servers(manifest.get("servers", {}), state)
        # A finished file that has become shorter has lost rows: they are recomputed.
        self.complete = state == self.manifest_path and manifest.get("bytes") == path.stat().st_size
        self.done = drop_torn_line(path, self._on_row)


def _servers(found: Any, where: Path) -> Servers:
    try:
        return {
            model: {name: {value: int(count) for value, count in counts.items()} for name, counts in fields.items()}
            for model, fields in found.items()
        }
    except (AttributeError, TypeError, ValueError):
        raise InputError("'servers' is invalid", where=str(where), hint=START_OVER) from None


def _numbers(found: Any, where: Path) -> dict[str, float]:
    counted = isinstance(found, dict) and found.keys() <= {"tokens_in", "tokens_out", "uncounted", "cost"}
    if not counted or not all(isinstance(value, int | float) for value in found.values()):
        raise InputError("'usage' is invalid", where=str(where), hint=START_OVER)
    return found


def _open_locked(path: Path) -> Any:
    """Open the file to append, locked against other processes.

    Raises:
        UsageError: another process holds the lock.
    """
    file = open_to_append(path)
    try:
        lock(file, path)
    except UsageError:
        file.close()
        raise
    return file
