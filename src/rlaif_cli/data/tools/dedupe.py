"""`rlaif data dedupe`: remove duplicate rows."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from rlaif_cli.config.data import DedupeConfig
from rlaif_cli.data.hash_set import HashSet, hash64
from rlaif_cli.data.messages import content_id, prompt_text
from rlaif_cli.data.tools.kinds import response_texts
from rlaif_cli.data.tools.parallel import each_file
from rlaif_cli.data.tools.rows import rewritten, rows_of_kind
from rlaif_cli.errors import InputError
from rlaif_cli.ui.progress import ProgressCallback, no_progress
from rlaif_cli.ui.text import counted


def dedupe(config: DedupeConfig, kind: str, *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """Keep the first of the rows with the same content (or the same prompt).

    Raises:
        InputError: two of the remaining rows share an id.
    """
    keys, ids = array("Q"), HashSet()
    with each_file(config) as each:
        source = rows_of_kind(config, kind, config.output, "dedupe", each=each, repeats=True)
        for found in source.by_file(partial(_keys, by=config.by)):
            keys.extend(found)
    is_first = np.zeros(len(keys), dtype=bool)
    is_first[np.unique(np.frombuffer(keys, dtype=np.uint64), return_index=True)[1]] = True
    with rewritten(config, source) as write_line:
        for count, (row, keep) in enumerate(zip(source, is_first, strict=True), start=1):
            if keep:
                ids.add(row.id)
                write_line(row.model_dump_json(exclude_none=True))
            progress(count, len(source))
        if twice := ids.repeated():
            what = f"{counted(len(twice), 'id')} shared by rows of different content"
            raise InputError(what, where=config.records, hint="`rlaif data validate` lists them")
    kept = int(is_first.sum())
    return {"rows": kept, "repeats": len(source) - kept, "rejected": source.rejected}


def _keys(rows: Iterable[Any], by: str) -> array[int]:
    """One key per row; duplicates have the same key."""
    key = _prompt if by == "prompt" else _content
    return array("Q", (hash64(key(row)) for row in rows))


def _prompt(row: Any) -> str:
    return prompt_text(row.prompt)


def _content(row: Any) -> str:
    return content_id(prompt_text(row.prompt), response_texts(row))
