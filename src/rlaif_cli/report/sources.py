"""What a run is based on: the state of its files, the audit of its labels, and the lineage of its checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from rlaif_cli.config.judge import AuditConfig
from rlaif_cli.config.report import LineageConfig
from rlaif_cli.data.atomic import read_json
from rlaif_cli.data.compression import content_sha256
from rlaif_cli.data.paths import sidecar
from rlaif_cli.data.reader import CHANGED, is_changed
from rlaif_cli.errors import RlaifError
from rlaif_cli.pipeline.lineage import Node, lineage
from rlaif_cli.registry import MODELS, Makes
from rlaif_cli.report.run_folder import Run
from rlaif_cli.stages.audit import audit
from rlaif_cli.stages.audit_checks import Finding

Result = TypeVar("Result")


def damaged(run: Run) -> list[str]:
    """A message for every output file that is damaged or has changed since its stage wrote it."""
    found = []
    for stage in run.stages:
        path = run.locate(stage.settings.get("output"))
        if path is None or not path.is_file():
            continue
        try:
            if path.suffix == ".json":
                read_json(path)
            if is_changed(sidecar(path, "manifest.json"), content_sha256(path)):
                found.append(f"{path}: {CHANGED}")
        except RlaifError as error:
            found.append(f"{error}; the numbers here are those of the run's summary")
    return found


def audits(run: Run) -> list[tuple[str, list[Finding]]]:
    """`rlaif audit` of every label stage whose file still exists: (stage, findings)."""
    return _inspected(run, ("preferences",), lambda path: audit(AuditConfig(preferences=path, skip_invalid=True)))


def sources(run: Run) -> list[Node]:
    """`rlaif lineage` of every trained checkpoint that still exists."""
    trained = _inspected(run, MODELS, lambda path: lineage(LineageConfig(path=path)))
    return [node for _, node in trained]


def _inspected(run: Run, made: tuple[Makes, ...], inspect: Callable[[str], Result]) -> list[tuple[str, Result]]:
    """(stage, result) of each stage whose output exists and is valid; others are skipped."""
    found = []
    for stage in run.making(*made):
        path = run.locate(stage.settings.get("output"))
        if path is not None:
            with contextlib.suppress(RlaifError):
                found.append((stage.name, inspect(str(path))))
    return found
