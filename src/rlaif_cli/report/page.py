"""The report of a run: one self-contained HTML page, or the same numbers as Markdown or JSON.

Model output is untrusted: the template escapes everything, and the Content-Security-Policy of the page allows only our
own scripts, by hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rlaif_cli import __version__
from rlaif_cli.data.atomic import write_whole
from rlaif_cli.errors import UsageError
from rlaif_cli.pipeline.file import SUMMARY
from rlaif_cli.report.advice import caution, headline, next_step, trained
from rlaif_cli.report.chain import chains
from rlaif_cli.report.cost import compared_with_people, costs
from rlaif_cli.report.curves import curves
from rlaif_cli.report.findings import flat, found_in
from rlaif_cli.report.gold_curve import gold_curves
from rlaif_cli.report.model_card import write_cards
from rlaif_cli.report.numbers import as_json, as_markdown
from rlaif_cli.report.run_folder import Run, read_run
from rlaif_cli.report.samples import AT_ONCE, Sample, comparisons
from rlaif_cli.report.side_by_side import rates, side_by_side
from rlaif_cli.report.sources import audits, damaged, sources
from rlaif_cli.report.summary import MARKS


def write_report(run_folder: Path, output: Path, beside: Sequence[Path] = ()) -> Path:
    """Write the report of a run: one self-contained HTML file, or its numbers if `output` ends in .md or .json.

    The page names what is missing.

    Args:
        beside: the folders of other runs to compare with.

    Raises:
        UsageError: `output` has an unknown extension, or is a file of the run.
        InputError: a folder is not that of a run.
        RlaifError: writing `output` failed.
    """
    run, others = read_run(run_folder), [read_run(folder) for folder in beside]
    render = {".md": as_markdown, ".json": as_json, ".html": _render, ".htm": _render}.get(output.suffix.lower())
    if render is None:
        raise UsageError(
            f"a report cannot be a '{output.suffix}' file", where=str(output), hint="name it .html, .md or .json"
        )
    read = [Path(str(stage.settings.get("output"))) for stage in run.stages if stage.makes != "page"]
    if output.resolve() in {path.resolve() for path in (run_folder / SUMMARY, *read)}:
        raise UsageError(
            "the report would overwrite a file of the run", where=str(output), hint="choose a different name"
        )
    write_whole(output, render(run, others).encode("utf-8", "replace"))
    return output


def write_model_cards(run_folder: Path) -> list[Path]:
    """See `model_card.write_cards`. Raises: InputError: `run_folder` is not the folder of a run."""
    return write_cards(read_run(run_folder))


def _render(run: Run, others: Sequence[Run]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found = chains(run)
    training = [*gold_curves(run), *curves(run)]
    charts = [chart for group in training for chart in group.charts]
    environment.filters["csp_hash"] = _csp_hash
    audited = audits(run)
    stopping = [finding.says for _, found in audited for finding in found if finding.verdict == "stop"]
    return environment.get_template("page.html.j2").render(
        run=run,
        headline=headline(found),
        caution=caution(found[0]),
        chains=found,
        marks=MARKS,
        trained=trained(run),
        next_step=next_step(run, found[0], stopping[0] if stopping else ""),
        damaged=damaged(run),
        findings=found_in(run),
        rates=rates(run),
        audits=audited,
        sources=sources(run),
        spent=costs(run),
        beside_people=compared_with_people(run),
        runs=[(each.name, headline(chains(each))) for each in (run, *others)] if others else [],
        side_by_side=side_by_side([run, *others]) if others else [],
        minutes=sum(stage.seconds for stage in run.stages) / 60,
        written=datetime.fromtimestamp((run.folder / SUMMARY).stat().st_mtime, timezone.utc),
        numbers={stage.name: list(flat(stage.results)) for stage in run.stages},
        settings={stage.name: _as_json(stage.settings) for stage in run.stages},
        curves=training,
        figures=[{"data": chart.data, "layout": chart.layout} for chart in charts],
        comparisons=comparisons(run),
        blank=Sample("", "", "", 0.5, ""),
        at_once=AT_ONCE,
        plotly_js=Markup(_plotly_js()) if charts else "",
        version=__version__,
    )


def _as_json(settings: dict[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value, ensure_ascii=False) for name, value in settings.items()}


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("\r\n", "\n")  # as HTML parsers normalize it; otherwise the hash would differ


def _csp_hash(script: str) -> Markup:
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'")
