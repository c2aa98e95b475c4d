"""A link of the chain: one condition for a run to have helped, with its number and verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rlaif_cli.report.findings import Effect

Verdict = Literal["holds", "fails", "not clear", "not measured", "too few to tell", "warning"]
VERDICTS: dict[Effect, Verdict] = {
    "above": "holds",
    "below": "fails",
    "none": "not clear",
    "few": "too few to tell",
}


@dataclass(frozen=True)
class Link:
    """A link of the chain.

    Attributes:
        sentence: at most 60 characters, with the number and its interval.
        more: details; how to measure it if it was not measured.
        estimate: `value`, `low`, `high` and `n`, if there is a number.
    """

    name: str
    title: str
    verdict: Verdict
    sentence: str
    more: str = ""
    estimate: dict[str, Any] | None = None


def not_measured(name: str, title: str, how: str) -> Link:
    return Link(name, title, "not measured", "not measured", how)
