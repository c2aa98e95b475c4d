"""`rlaif data shard`: split an input into files of about equal size, or reshard it; rows are not validated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from rlaif_cli.config.data import ShardConfig
from rlaif_cli.data.atomic import new_folder
from rlaif_cli.data.compression import MAX_LINE, content_sha256, open_to_append
from rlaif_cli.data.filetypes import detect_by_magic, not_utf8
from rlaif_cli.data.inputs import files, raw_lines
from rlaif_cli.errors import InputError
from rlaif_cli.ui.progress import ProgressCallback, no_progress


def shard(config: ShardConfig, *, progress: ProgressCallback = no_progress) -> dict[str, int]:
    """Write the shards; the folder has the same sha256 as its input, since the lines are the same.

    Returns:
        rows and shards.

    Raises:
        InputError: a file is not JSONL, or a line is not UTF-8 or too long to be read again.
        UsageError: the folder already exists.
    """
    given = files(config.records)
    for file in given:
        if other := detect_by_magic(file):
            raise other.error(file)
    digest = content_sha256(*(file.path for file in given))
    manifest: dict[str, Any] = {"stage": "data", "settings": config.deciding() | {"input_sha256": digest}}
    with new_folder(config.output, manifest, overwrite=config.overwrite) as folder:
        parts, rows = _write(config, folder, progress)
        if not rows:
            raise InputError("there are no rows", where=config.records)
        ending = ".jsonl" if config.compress == "none" else f".jsonl.{config.compress}"
        name = Path(config.output).name
        named = [folder / f"{name}-{n:05d}-of-{len(parts):05d}{ending}" for n in range(len(parts))]
        for part, path in zip(parts, named, strict=True):
            part.rename(path)
        manifest |= {"sha256": content_sha256(*named), "counts": {"rows": rows, "shards": len(parts)}}
    return {"rows": rows, "shards": len(parts)}


def _write(config: ShardConfig, folder: Path, progress: ProgressCallback) -> tuple[list[Path], int]:
    """(files in order, rows). Files get temporary names, since their number is known only at the end."""
    parts: list[Path] = []
    rows = 0
    for number, texts in groupby(_numbered(config), key=itemgetter(0)):
        parts.append(folder / (f"{number}" if config.compress == "none" else f"{number}.{config.compress}"))
        with contextlib.closing(open_to_append(parts[-1])) as out:
            for _, text in texts:
                out.write(text)
                rows += 1
                progress(rows)
    return parts, rows


def _numbered(config: ShardConfig) -> Iterator[tuple[int, str]]:
    """Every line with the number of its shard."""
    number, rows, size = 0, 0, 0
    most = (config.megabytes or 0) * 1_000_000
    for text, length in _texts(config.records):
        if rows == config.rows or 0 < most <= size:
            number, rows, size = number + 1, 0, 0
        rows, size = rows + 1, size + length
        yield number, text


def _texts(address: str) -> Iterator[tuple[str, int]]:
    """Lines, each with its size in bytes. All but the last get a newline, also the last line of a file without one."""
    before = None
    for file, number, line in raw_lines(address):
        if before is not None:
            yield before if before[0].endswith("\n") else (before[0] + "\n", before[1] + 1)
        try:
            before = line.decode("utf-8"), len(line)
        except UnicodeDecodeError as error:
            what, _, hint = not_utf8(line, error.start).partition("; ")
            raise InputError(f"line {number} is {what}", where=file.name, hint=hint) from error
        if len(line) > MAX_LINE:
            raise InputError(f"line {number} is longer than {MAX_LINE >> 20} MiB", where=file.name)
    if before is not None:
        yield before
