"""An output is resumed only with the settings it was started with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlaif_cli.config.base import DATA_FIELDS
from rlaif_cli.config.naming import option
from rlaif_cli.errors import UsageError

START_OVER = f"choose another {option('output')}, or {option('overwrite')} to start over"


def refuse_changed_settings(record: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Refuse to resume with different settings, which would mix two runs in one file.

    Inputs are compared by content: neither the name of an input nor how it is split over files matters.

    Args:
        record: what the run that started the output recorded: its `settings` and its `output`.
        now: the current settings.
        where: the current output. Paths are compared relative to the output's folder, which may have been moved.

    Raises:
        UsageError: settings differ; all of them are listed.
    """
    before, now = record["settings"], json.loads(json.dumps(now, default=str))
    if isinstance(record.get("output"), str):
        before, after = (
            _relative_to_output(folder, each) for folder, each in ((record["output"], before), (where, now))
        )
    else:
        after = now
    hashed = [name for name, sha256 in input_hashes(now).items() if sha256 is not None]
    names = sorted((before.keys() | now.keys()) - set(hashed))
    differing = [
        _difference(name, record["settings"].get(name), now.get(name))
        for name in names
        if before.get(name) != after.get(name)
    ]
    if differing:
        raise UsageError(
            "this output was started with other settings:\n    " + "\n    ".join(differing),
            where=str(where),
            hint=f"use the same settings to resume, or {START_OVER}",
        )


def _relative_to_output(output: str | Path, value: Any) -> Any:
    """Settings with the paths of files in the output's folder made relative to it."""
    if isinstance(value, dict):
        return {_relative_to_output(output, name): _relative_to_output(output, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_relative_to_output(output, inner) for inner in value]
    folder = Path(output).parent
    if isinstance(value, str) and folder.parts and Path(value).is_relative_to(folder):
        return f"{{folder}}/{Path(value).relative_to(folder)}"
    return value


def input_hashes(settings: dict[str, Any]) -> dict[str, str | None]:
    """The sha256 of every input of records in recorded settings; None if none was recorded."""
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
    # Several, by name: list those that changed, not all hashes.
    changed = [key for key in now if key in before and before[key] != now[key]]
    return "\n    ".join(_changed(f"the {what} {key}", before[key], now[key]) for key in changed) or (
        f"{what}: {', '.join(before)} before, {', '.join(now)} now"
    )


def _changed(what: str, before: Any, now: Any) -> str:
    return f"{what} has changed: its sha256 was {str(before)[:12]}… and is now {str(now)[:12]}…"
