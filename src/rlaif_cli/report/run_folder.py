"""The folder of a run: its stages, their results and their files, even if it was moved."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif_cli.errors import InputError
from rlaif_cli.pipeline.file import SUMMARY
from rlaif_cli.registry import STAGES, Makes


@dataclass(frozen=True)
class Stage:
    """One stage of a run, from `summary.json`."""

    name: str
    kind: str
    settings: dict[str, Any]
    seconds: float
    results: dict[str, Any]

    @property
    def makes(self) -> Makes | None:
        """What its output is; None for a stage that this version of rlaif does not have."""
        return STAGES[self.kind].makes if self.kind in STAGES else None

    @property
    def title(self) -> str:
        """What the report calls such a stage."""
        finding = STAGES[self.kind].finding if self.kind in STAGES else None
        return finding.title if finding else self.kind


@dataclass(frozen=True)
class Run:
    name: str
    description: str
    folder: Path
    stages: tuple[Stage, ...]

    @classmethod
    def of_summary(cls, summary: dict[str, Any], folder: Path) -> Run:
        stages = tuple(
            Stage(name, row["run"], row["settings"], row.get("seconds") or 0.0, row.get("results") or {})
            for name, row in summary["stages"].items()
        )
        return cls(summary.get("name") or folder.name, summary.get("description") or "", folder, stages)

    def of(self, kind: str) -> list[Stage]:
        return [stage for stage in self.stages if stage.kind == kind]

    def making(self, *kinds: Makes) -> list[Stage]:
        """The stages whose output is of one of these kinds."""
        return [stage for stage in self.stages if stage.makes in kinds]

    def locate(self, path: str | None) -> Path | None:
        """The present location of a path of the summary, or None.

        The run folder is tried first: it may have been moved or copied, and the old place may now belong to a different
        run. Then the path as recorded, absolute or relative to the current directory.
        """
        if not path:
            return None
        parts = Path(path).parts
        first = 1 if Path(path).is_absolute() else 0
        places = [self.folder.joinpath(*parts[i:]) for i in range(first, len(parts))]
        return next((place for place in [*places, Path(path)] if place.exists()), None)


def read_run(folder: Path) -> Run:
    """Raises: InputError: the folder is not that of a run that finished its first stage."""
    path = folder / SUMMARY
    hint = "give the folder of a `rlaif run`, such as runs/demo; the file is written after the first stage"
    try:
        return Run.of_summary(json.loads(path.read_text("utf-8")), folder)
    except OSError as error:
        raise InputError(f"there is no run here: {error.strerror or error}", where=str(path), hint=hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("this is not a run's summary", where=str(path), hint=hint) from error


def tolerant_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file up to the first incomplete line of a killed run; [] if there is no file."""
    rows: list[dict[str, Any]] = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                row = json.loads(line)
                if not isinstance(row, dict):
                    break
                rows.append(row)
    except (OSError, ValueError):
        pass
    return rows
