"""rlaif report"""

from __future__ import annotations

from pathlib import Path

import typer

from rlaif_cli.commands.options import command
from rlaif_cli.config.report import ReportConfig
from rlaif_cli.ui import console


def write(config: ReportConfig) -> list[Path]:
    """The report, and with `--card` the model cards; what was written, the report first."""
    from rlaif_cli.stages.report import damaged, read_run, write_model_cards, write_report

    folder = Path(config.run_folder)
    for warning in damaged(read_run(folder)):
        console.warn_once(warning)
    report = write_report(folder, Path(config.output), [Path(other) for other in config.beside])
    return [report, *(write_model_cards(folder) if config.card else [])]


def run(config: ReportConfig) -> int:
    report, *cards = write(config)
    console.say(f"report: {report}")
    for card in cards:
        console.say(f"model card: {card}")
    return 0


def register(app: typer.Typer) -> None:
    command(app, "report", ReportConfig, run)
