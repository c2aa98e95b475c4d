"""What a run rests on: its labels, audited, and the tree of files that each checkpoint was made of."""

from __future__ import annotations

from rlaif_cli.config import AuditConfig, LineageConfig
from rlaif_cli.errors import RlaifError
from rlaif_cli.stages.audit import Finding, audit
from rlaif_cli.stages.lineage import Node, lineage
from rlaif_cli.stages.report.run import Run


def audits(run: Run) -> list[tuple[str, list[Finding]]]:
    """`rlaif audit` of the labels of every label stage whose file is still there: (stage, its checks)."""
    found = []
    for stage in run.of("label"):
        path = run.locate(stage.settings.get("output"))
        if path is None:
            continue
        try:
            found.append((stage.name, audit(AuditConfig(preferences=str(path), skip_invalid=True))))
        except RlaifError:
            continue  # changed or cut since; its own stage will say so
    return found


def sources(run: Run) -> list[Node]:
    """`rlaif lineage` of every trained checkpoint that is still there."""
    found = []
    for stage in run.stages:
        path = run.locate(stage.settings.get("output")) if stage.kind in ("train-rm", "sft", "ppo") else None
        if path is None:
            continue
        try:
            found.append(lineage(LineageConfig(path=str(path))))
        except RlaifError:
            continue  # no manifest: it was not finished
    return found
