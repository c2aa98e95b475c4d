"""A run on one page: what was found, how sure, what it took, curves and samples.

The terminal shows the same chain of checks as the page (`summary_lines`).
"""

from rlaif_cli.stages.report.findings import findings
from rlaif_cli.stages.report.page import write_model_cards, write_report
from rlaif_cli.stages.report.run import read_run
from rlaif_cli.stages.report.sources import damaged
from rlaif_cli.stages.report.summary import report_path, summary_lines

__all__ = ["damaged", "findings", "read_run", "report_path", "summary_lines", "write_model_cards", "write_report"]
