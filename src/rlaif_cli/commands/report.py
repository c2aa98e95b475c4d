"""rlaif report"""

from __future__ import annotations

from pathlib import Path

import typer

from rlaif_cli import console
from rlaif_cli.commands.options import command
from rlaif_cli.config import ReportConfig


def run(config: ReportConfig) -> int:
    from rlaif_cli.stages.report import write_model_cards, write_report

    path = write_report(Path(config.run_folder), Path(config.output))
    console.say(f"report: {path}")
    if config.card:
        for path in write_model_cards(Path(config.run_folder)):
            console.say(f"model card: {path}")
    return 0


def register(app: typer.Typer) -> None:
    command(app, "report", ReportConfig, run)
