"""What a run rests on: files that are still whole, its labels, audited, and what each checkpoint was made of."""

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
from rlaif_cli.report.run_folder import Run
from rlaif_cli.stages.audit import audit
from rlaif_cli.stages.audit_checks import Finding

Seen = TypeVar("Seen")


def damaged(run: Run) -> list[str]:
    """Of every stage's file that is no longer what the stage wrote: which, and what is wrong with it."""
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
    """`rlaif audit` of the labels of every label stage whose file is still there: (stage, its checks)."""
    return _looked_at(run, ("label",), lambda path: audit(AuditConfig(preferences=path, skip_invalid=True)))


def sources(run: Run) -> list[Node]:
    """`rlaif lineage` of every trained checkpoint that is still there."""
    trained = _looked_at(run, ("train-rm", "sft", "ppo"), lambda path: lineage(LineageConfig(path=path)))
    return [node for _, node in trained]


def _looked_at(run: Run, kinds: tuple[str, ...], look: Callable[[str], Seen]) -> list[tuple[str, Seen]]:
    """(stage, what is seen) of each whose output is there and whole; of others their own stage says what is wrong."""
    found = []
    for stage in run.stages:
        path = run.locate(stage.settings.get("output")) if stage.kind in kinds else None
        if path is not None:
            with contextlib.suppress(RlaifError):
                found.append((stage.name, look(str(path))))
    return found
