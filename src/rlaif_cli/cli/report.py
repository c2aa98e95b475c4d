"""rlaif report"""

from __future__ import annotations

from rlaif_cli.config.report import ReportConfig
from rlaif_cli.ui.console import Console


def run(config: ReportConfig, console: Console) -> int:
    from rlaif_cli.report.write import write

    report, *cards = write(config)
    console.say(f"report: {report}")
    for card in cards:
        console.say(f"model card: {card}")
    return 0
