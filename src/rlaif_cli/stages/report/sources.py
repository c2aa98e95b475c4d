"""What a run rests on: its labels, audited, and the tree of files that each checkpoint was made of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from rlaif_cli.config import AuditConfig, LineageConfig
from rlaif_cli.errors import RlaifError
from rlaif_cli.stages.audit import Finding, audit
from rlaif_cli.stages.lineage import Node, lineage
from rlaif_cli.stages.report.run import Run

Seen = TypeVar("Seen")


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
