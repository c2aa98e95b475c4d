"""The findings and numbers of a run as Markdown or JSON, for merge requests, notebooks or programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rlaif_cli import __version__
from rlaif_cli.report.advice import caution, headline
from rlaif_cli.report.chain import Chain, chains
from rlaif_cli.report.findings import flat, found_in
from rlaif_cli.report.gold_curve import gold_tables
from rlaif_cli.report.run_folder import Run
from rlaif_cli.report.side_by_side import rates, side_by_side
from rlaif_cli.report.sources import damaged
from rlaif_cli.ui.text import visible


def as_json(run: Run, others: Sequence[Run] = ()) -> str:
    """Verdict, chains, findings, rates with intervals, and the settings and results of every stage."""
    found = chains(run)
    return json.dumps(
        {
            "rlaif": __version__,
            "name": run.name,
            "description": run.description,
            "headline": headline(found),
            "caution": caution(found[0]),
            "chain": [asdict(chain) for chain in found],
            "damaged": damaged(run),
            "findings": found_in(run),
            "rates": _numbers(run),
            "beside": [{"name": o.name, "headline": headline(chains(o)), "rates": _numbers(o)} for o in others],
            "stages": {
                stage.name: {
                    "run": stage.kind,
                    "seconds": stage.seconds,
                    "settings": stage.settings,
                    "results": stage.results,
                }
                for stage in run.stages
            },
        },
        ensure_ascii=False,
        indent=2,
    )


def _numbers(run: Run) -> list[dict[str, Any]]:
    return [{key: rate[key] for key in ("name", "value", "low", "high", "n")} for rate in rates(run)]


def as_markdown(run: Run, others: Sequence[Run] = ()) -> str:
    checks = chains(run)
    lines = [
        f"# {as_text(run.name)}",
        "",
        as_text(run.description),
        "",
        f"**{as_text(headline(checks))}** {as_text(caution(checks[0]))}",
    ]
    lines += [f"\n**{as_text(warning)}**" for warning in damaged(run)]
    lines += ["", *_chains(checks)]
    lines += [*(f"- {as_text(finding)}" for finding in found_in(run)), ""]
    if found := rates(run):
        lines += ["| rate | value | n |", "|---|---|---|"]
        lines += [f"| {as_text(rate['name'])} | {rate['text']} | {rate['n']} |" for rate in found] + [""]
    lines += _gold_tables(run)
    if others:
        runs = [run, *others]
        lines += [f"| | {' | '.join(as_text(each.name) for each in runs)} |", "|---" * (1 + len(runs)) + "|"]
        lines += [f"| verdict | {' | '.join(as_text(headline(chains(each))) for each in runs)} |"]
        lines += [f"| {as_text(name)} | {' | '.join(values)} |" for name, values in side_by_side(runs)] + [""]
    for stage in run.stages:
        numbers = list(flat(stage.results))
        lines += [f"## {as_text(stage.name)}", "", f"`rlaif {stage.kind}`, {stage.seconds / 60:.1f} minutes", ""]
        if numbers:
            lines += ["| number | value |", "|---|---|", *(f"| {as_text(n)} | {as_text(v)} |" for n, v in numbers), ""]
    return "\n".join(lines)


def _chains(found: Sequence[Chain]) -> list[str]:
    lines = []
    for chain in found:
        if chain.links:
            lines += [f"| {as_text(chain.policy or 'check')} | verdict | number [interval] |", "|---|---|---|"]
            lines += [f"| {link.title} | {link.verdict} | {as_text(link.sentence)} |" for link in chain.links] + [""]
    return lines


def _gold_tables(run: Run) -> list[str]:
    lines = []
    for policy, columns, rows, said in gold_tables(run):
        lines += [f"Held-out prompts during training ({as_text(policy)}). {as_text(said)}", ""]
        lines += [f"| {' | '.join(map(as_text, columns))} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(map(as_text, cells))} |" for cells in rows] + [""]
    return lines


def as_text(text: Any) -> str:
    """Escape a name or sentence for Markdown: no links, table cells, tags or control characters."""
    plain = visible(" ".join(str(text).split()))
    return "".join(f"\\{sign}" if sign in "\\|[]<>`*_" else sign for sign in plain)
