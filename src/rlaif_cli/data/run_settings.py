"""An output is resumed only with the settings it was begun with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlaif_cli.config.base import DATA_FIELDS
from rlaif_cli.errors import UsageError

START_ANEW = "choose another -o, or --overwrite to start anew"


def refuse_other_settings(record: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Going on with other settings would mix two runs in one file.

    An input is what stands in it: its name, or over how many files it is spread, is no setting of the output.

    Args:
        record: what was written of the run that began it: its `settings`, and its `output` then.
        now: the settings.
        where: its output now. What lay in the same folder then and lies there now is the same, moved.

    Raises:
        UsageError: with every setting that differs.
    """
    before, now = record["settings"], json.loads(json.dumps(now, default=str))
    if isinstance(record.get("output"), str):
        before, told = (_seen_from(folder, each) for folder, each in ((record["output"], before), (where, now)))
    else:
        told = now
    hashed = [name for name, sha256 in input_hashes(now).items() if sha256 is not None]
    names = sorted((before.keys() | now.keys()) - set(hashed))
    differing = [
        _difference(name, record["settings"].get(name), now.get(name))
        for name in names
        if before.get(name) != told.get(name)
    ]
    if differing:
        raise UsageError(
            "this output was begun with other settings:\n    " + "\n    ".join(differing),
            where=str(where),
            hint=f"use the same settings to go on, or {START_ANEW}",
        )


def _seen_from(output: str | Path, value: Any) -> Any:
    """Settings in which the files beside an output are named from its folder."""
    if isinstance(value, dict):
        return {_seen_from(output, name): _seen_from(output, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_seen_from(output, inner) for inner in value]
    folder = Path(output).parent
    if isinstance(value, str) and folder.parts and Path(value).is_relative_to(folder):
        return f"{{folder}}/{Path(value).relative_to(folder)}"
    return value


def input_hashes(settings: dict[str, Any]) -> dict[str, str | None]:
    """The sha256 of every file of records that recorded settings name; None where none was recorded."""
    named = [name for name in DATA_FIELDS if isinstance(settings.get(name), str)]
    found = {name: settings.get(f"{name}_sha256") for name in named}
    if named:
        found[named[0]] = found[named[0]] or settings.get("input_sha256")
    return found


def _difference(name: str, before: Any, now: Any) -> str:
    if not name.endswith("_sha256"):
        return f"{name}: {before!r} before, {now!r} now"
    what = name.removesuffix("_sha256").replace("_", " ")
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return _changed(f"the {what}", before, now)
    # Of several by name: those that changed, not two long lists of hashes.
    changed = [key for key in now if key in before and before[key] != now[key]]
    return "\n    ".join(_changed(f"the {what} {key}", before[key], now[key]) for key in changed) or (
        f"{what}: {', '.join(before)} before, {', '.join(now)} now"
    )


def _changed(what: str, before: Any, now: Any) -> str:
    return f"{what} has changed: its sha256 was {str(before)[:12]}…, and is {str(now)[:12]}…"
