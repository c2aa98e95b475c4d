"""The summary of a run for a terminal: a line for each link of the chain, at most 80 columns wide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rlaif_cli.report.chain import Chain, chains
from rlaif_cli.report.link import Verdict
from rlaif_cli.report.run_folder import Run
from rlaif_cli.report.wording import shortened

MARKS: dict[Verdict, str] = {
    "holds": "✓",
    "fails": "✗",
    "warning": "!",
    "not clear": "?",
    "too few to tell": "?",
    "not measured": "–",
}
_PLAIN = {"✓": "+", "✗": "x", "–": "-", "…": "."}  # for a terminal that cannot show them


def summary_lines(run: Run, encoding: str = "utf-8") -> Iterator[str]:
    """The chain of the first policy; the title says if there are more.

    Args:
        encoding: the encoding of the terminal; lines that it cannot show are written in ASCII.
    """
    found = chains(run)
    for line in (_title(run, found), *_links(found[0])):
        yield line if _can_show(line, encoding) else _plain(line)


def report_path(run: Run) -> str | None:
    """The path of the last report of the run; None if it has no report stage."""
    written = [stage.results["report"] for stage in run.making("page") if stage.results.get("report")]
    return written[-1] if written else None


def _title(run: Run, found: list[Chain]) -> str:
    chain = found[0]
    counts = Counter(link.verdict for link in chain.links)
    of = f", {shortened(chain.policy, 20)} (1 of {len(found)} policies)" if len(found) > 1 else ""
    if not chain.links:
        return f"{shortened(run.name, 40)}: nothing to compare yet"
    return f"{shortened(run.name, 24)}{of}: {counts['holds']} of {len(chain.links)} checks hold"


def _links(chain: Chain) -> list[str]:
    width = max((len(link.title) for link in chain.links), default=0)
    return [f"  {MARKS[link.verdict]} {link.title:{width}}  {link.sentence}" for link in chain.links]


def _can_show(line: str, encoding: str) -> bool:
    try:
        line.encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True


def _plain(line: str) -> str:
    return "".join(_PLAIN.get(sign, sign) for sign in line)
