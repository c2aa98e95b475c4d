"""What the models wrote, side by side: samples of each win rate, from the clearest win to the clearest loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif_cli.errors import InputError
from rlaif_cli.jsonl import Source
from rlaif_cli.output import beside
from rlaif_cli.records import Candidates, prompt_text
from rlaif_cli.stages.report.findings import side_of
from rlaif_cli.stages.report.run import Run, Stage, tolerant_rows

SAMPLES = 20
_CUT = 900  # characters of a text that are shown at once; the rest unfolds


@dataclass(frozen=True)
class Text:
    """A model's or user's text; a long one is shown in part and unfolds."""

    start: str
    rest: str

    @classmethod
    def of(cls, text: str) -> Text:
        cut = len(text) if len(text) <= 1.3 * _CUT else text.rfind(" ", 0, _CUT) + 1 or _CUT
        return cls(text[:cut], text[cut:])


@dataclass(frozen=True)
class Sample:
    prompt: Text
    before: Text
    after: Text
    p_after: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """The samples of one win-rate stage."""

    title: str
    before: str
    after: str
    total: int
    samples: list[Sample]
    missing: str


def comparisons(run: Run) -> list[Comparison]:
    return [_comparison(stage, run) for stage in run.of("eval win-rate")]


def _comparison(stage: Stage, run: Run) -> Comparison:
    output = str(stage.settings.get("output", ""))
    items_path = run.locate(str(beside(output, "win-rate", "items")))
    items = [i for i in (tolerant_rows(items_path) if items_path else []) if i.get("p_a") is not None]
    names = {side: str(stage.settings.get(side, "")) for side in ("a", "b")}
    sides = {side: _responses(side_of(stage, run, side)) for side in names}
    missing = [names[side] for side, rows in sides.items() if not rows]
    if not items:
        missing.append(f"the results of {stage.name} by item ({beside(output, 'win-rate', 'items').name})")
    samples = [_sample(item, sides["a"], sides["b"]) for item in spread(items)]
    shown = [sample for sample in samples if sample]
    return Comparison(stage.name, names["b"], names["a"], len(items), shown, ", ".join(missing))


def spread(items: list[dict[str, Any]], count: int = SAMPLES) -> list[dict[str, Any]]:
    """`count` items at even ranks of p_a, from the clearest win to the clearest loss: nobody picked them."""
    ranked = sorted(items, key=lambda item: (-item["p_a"], str(item.get("id")), item.get("sample", 0)))
    if len(ranked) <= count:
        return ranked
    return [ranked[round(i * (len(ranked) - 1) / (count - 1))] for i in range(count)]


def _responses(path: Path | None) -> dict[str, Candidates]:
    try:
        return {row.id: row for row in Source(str(path), Candidates, skip_invalid=True)} if path else {}
    except InputError:
        return {}


def _sample(item: dict[str, Any], a: dict[str, Candidates], b: dict[str, Candidates]) -> Sample | None:
    name, index = str(item.get("id")), item.get("sample", 0)
    if name not in a or name not in b or index >= min(len(a[name].responses), len(b[name].responses)):
        return None
    after, before, p = a[name].responses[index].text, b[name].responses[index].text, float(item["p_a"])
    prompt = Text.of(prompt_text(a[name].prompt))
    return Sample(prompt, Text.of(before), Text.of(after), p, _verdict(before, after, p))


def _verdict(before: str, after: str, p_after: float) -> str:
    if before == after:
        return "same text"
    return "tie" if p_after == 0.5 else "after wins" if p_after > 0.5 else "before wins"
