"""`rlaif data split`: hold out a share of the prompts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rlaif_cli.config.data import SplitConfig
from rlaif_cli.data.atomic import read_json
from rlaif_cli.data.compression import content_sha256
from rlaif_cli.data.hash_set import hash64
from rlaif_cli.data.messages import prompt_text
from rlaif_cli.data.paths import sidecar
from rlaif_cli.data.reader import Source, is_changed
from rlaif_cli.data.tools.rows import recorded_settings, rewritten, rows_of_kind
from rlaif_cli.ui.progress import ProgressCallback, no_progress

KEPT, HELD_OUT = "kept", "held out"  # the parts of a split, in their manifests


def split(config: SplitConfig, kind: str, *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """Two files with no prompt in common. The side of a prompt depends only on the seed and the prompt.

    If an interrupted run with the same settings left one of the two files, both are rewritten.
    """
    source = rows_of_kind(config, kind, config.output, "split")
    if _half_done(config, source):
        config = config.model_copy(update={"overwrite": True})
    counts: Counter[bool] = Counter()
    held_out = config.model_copy(update={"output": config.held_out})
    with rewritten(config, source, part=KEPT) as keep, rewritten(held_out, source, part=HELD_OUT) as hold:
        for count, row in enumerate(source, start=1):
            is_held_out = hash64(str(config.seed), prompt_text(row.prompt)) < config.fraction * 2**64
            (hold if is_held_out else keep)(row.model_dump_json(exclude_none=True))
            counts[is_held_out] += 1
            progress(count, len(source))
    return {"rows": counts[False], "held_out": counts[True], "rejected": source.rejected}


def _half_done(config: SplitConfig, source: Source[Any]) -> bool:
    sides = ((Path(config.output), KEPT), (Path(config.held_out), HELD_OUT))
    there = [(path, part) for path, part in sides if path.exists()]
    if len(there) != 1 or config.output == "-":
        return False
    path, part = there[0]
    manifest = sidecar(path, "manifest.json")
    found = read_json(manifest) if manifest.exists() else {}
    same = (found.get("part"), found.get("settings")) == (part, recorded_settings(config, source))
    return same and not is_changed(manifest, content_sha256(path))
