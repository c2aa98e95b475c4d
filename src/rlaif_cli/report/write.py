"""Read a run and write its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif_cli.config.report import ReportConfig
from rlaif_cli.ui import messages
from rlaif_cli.ui.progress import ProgressCallback


def write(config: ReportConfig) -> list[Path]:
    """Write the report, and with `--card` the model cards; returns the written files, the report first."""
    from rlaif_cli.report import damaged, read_run, write_model_cards, write_report

    folder = Path(config.run_folder)
    for warning in damaged(read_run(folder)):
        messages.warn_once(warning)
    report = write_report(folder, Path(config.output), [Path(other) for other in config.beside])
    return [report, *(write_model_cards(folder) if config.card else [])]


def run(config: ReportConfig, engines: Any, *, progress: ProgressCallback) -> dict[str, Any]:
    """The stage as `registry.py` has it; it needs no engine and shows no progress."""
    return {"report": str(write(config)[0])}
