"""The report of a run: findings with intervals, cost, curves and samples on one page.

The terminal shows the same checks as the page (`summary_lines`).
"""

from rlaif_cli.report.findings import findings
from rlaif_cli.report.page import write_model_cards, write_report
from rlaif_cli.report.run_folder import read_run
from rlaif_cli.report.sources import damaged
from rlaif_cli.report.summary import report_path, summary_lines

__all__ = ["damaged", "findings", "read_run", "report_path", "summary_lines", "write_model_cards", "write_report"]
