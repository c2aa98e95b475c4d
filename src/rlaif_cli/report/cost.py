"""The cost of a run: time, tokens and money of its stages, compared with the cost of human labels."""

from __future__ import annotations

from dataclasses import dataclass

from rlaif_cli.errors import RlaifError
from rlaif_cli.pipeline.lineage import manifest_of
from rlaif_cli.report.run_folder import Run, Stage

HUMAN_LABEL = 0.67  # dollars per human label, as estimated by Lee et al. 2023 (arXiv 2309.00267)


@dataclass(frozen=True)
class Cost:
    """The cost of one stage or of all; money only if prices were given (`--price-in`, `--price-out`)."""

    name: str
    minutes: float
    tokens_in: int
    tokens_out: int
    cost: float | None


def costs(run: Run) -> list[Cost]:
    """The cost of every stage that took a second or counted tokens, and last the total."""
    every = [_of(stage, run) for stage in run.stages]
    money = [each.cost for each in every if each.cost is not None]
    total = Cost(
        "all",
        sum(each.minutes for each in every),
        sum(each.tokens_in for each in every),
        sum(each.tokens_out for each in every),
        sum(money) if money else None,
    )
    return [each for each in every if each.minutes >= 1 / 60 or each.tokens_in] + [total]


def _of(stage: Stage, run: Run) -> Cost:
    usage = _usage(stage, run)
    tokens_in, tokens_out = int(usage.get("tokens_in", 0)), int(usage.get("tokens_out", 0))
    return Cost(stage.name, stage.seconds / 60, tokens_in, tokens_out, usage.get("cost"))


def _usage(stage: Stage, run: Run) -> dict[str, float]:
    """The usage counted by a server over all resumed runs; other engines count none."""
    path = run.locate(stage.settings.get("output"))
    try:
        usage = (manifest_of(path) or {}).get("usage") if path else None
    except RlaifError:
        return {}
    return usage if isinstance(usage, dict) else {}


def compared_with_people(run: Run) -> str:
    """The cost of the labels compared with as many human labels; "" if nothing was labelled."""
    labels = run.making("preferences")
    pairs = sum(stage.results.get("pairs") or 0 for stage in labels)
    if not pairs:
        return ""
    money = [cost for stage in labels if (cost := _usage(stage, run).get("cost")) is not None]
    minutes = sum(stage.seconds for stage in labels) / 60
    ours = f"${sum(money):,.2f}" if money else f"{minutes:,.1f} minutes of this machine"
    return (
        f"{pairs:,} labels took {ours}. As many human labels would cost about ${pairs * HUMAN_LABEL:,.0f}, at the "
        f"${HUMAN_LABEL:.2f} per label that Lee et al. (2023) assume."
    )
