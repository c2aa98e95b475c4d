"""rlaif audit"""

from __future__ import annotations

import json
from typing import Any

import typer

from rlaif_cli.cli.options import command
from rlaif_cli.config.judge import AuditConfig
from rlaif_cli.errors import EXIT_PARTIAL
from rlaif_cli.ui.console import Console

_STYLE = {"ok": "green", "look": "yellow", "stop": "bold red"}


def run(config: AuditConfig, console: Console) -> int:
    from rlaif_cli.stages.audit import as_json, audit, worst

    with console.progress("audit") as progress:
        findings = audit(config, progress=progress)
    if config.dry_run:
        return 0
    if config.as_json:
        console.records.write(json.dumps(as_json(findings), ensure_ascii=False) + "\n")
    else:
        show(console, findings)
    verdict = worst(findings)
    console.say(f"audit: {verdict}", style=_STYLE[verdict])
    return EXIT_PARTIAL if config.strict and verdict == "stop" else 0


def show(console: Console, findings: list[Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "verdict", "finding", box=None, pad_edge=False)
    for finding in findings:
        table.add_row(finding.check, Text(finding.verdict, style=_STYLE[finding.verdict]), Text(finding.says))
    console.show(table)


def register(app: typer.Typer) -> None:
    command(app, "audit", AuditConfig, run)
