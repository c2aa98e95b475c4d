"""A run on one page: what was found, how sure, what it took, curves and samples.

`findings` are the same sentences that the terminal shows.
"""

from rlaif_cli.stages.report.findings import findings
from rlaif_cli.stages.report.page import write_model_cards, write_report
from rlaif_cli.stages.report.run import read_run
from rlaif_cli.stages.report.sources import damaged

__all__ = ["damaged", "findings", "read_run", "write_model_cards", "write_report"]
