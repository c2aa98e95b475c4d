"""Responses side by side: the comparisons of each win rate, from the clearest win to the clearest loss."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlaif_cli.data.messages import content_id, prompt_text, shared_prompt
from rlaif_cli.data.paths import beside
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import Candidates
from rlaif_cli.errors import InputError
from rlaif_cli.report.findings import side_of
from rlaif_cli.report.run_folder import Run, Stage, tolerant_rows
from rlaif_cli.stats.diversity import opening, openings

AT_ONCE = 20  # samples shown at first
BROWSED = 10_000  # samples in the page


@dataclass(frozen=True)
class Sample:
    prompt: str
    before: str
    after: str
    p_after: float
    verdict: str
    rationale: str = ""
    alike_before: str = ""  # "same opening as 6 of 120", if it has the most common opening of its side
    alike_after: str = ""


@dataclass(frozen=True)
class Comparison:
    """The samples of one win-rate stage, the clearest win of *after* first."""

    title: str
    before: str
    after: str
    total: int
    samples: list[Sample]
    missing: str

    @property
    def rows_id(self) -> str:
        return f"rows-{content_id(self.title)}"

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [asdict(sample) for sample in self.samples]

    @property
    def some(self) -> list[Sample]:
        """`AT_ONCE` samples at even ranks, for browsers without scripts."""
        return spread(self.samples, AT_ONCE)


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
    ranked = sorted(items, key=lambda item: (-item["p_a"], str(item.get("id")), item.get("sample", 0)))
    samples = [_sample(item, sides["a"], sides["b"]) for item in spread(ranked, BROWSED)]
    shown = _with_openings([sample for sample in samples if sample])
    return Comparison(stage.name, names["b"], names["a"], len(items), shown, ", ".join(missing))


def spread(ranked: list[Any], count: int) -> list[Any]:
    """`count` items at even ranks including the first and the last, so that they are not cherry-picked."""
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
    prompt = shared_prompt(a[name].prompt, b[name].prompt)
    lengths = {"length_a": len(after), "length_b": len(before)}
    if prompt is None or any(item.get(name, length) != length for name, length in lengths.items()):
        return None  # a file has changed: these are not the texts that were compared
    rationale = "\n\n".join(map(str, item.get("rationales") or []))
    return Sample(prompt_text(prompt), before, after, round(p, 4), _verdict(before, after, p), rationale)


def _with_openings(samples: list[Sample]) -> list[Sample]:
    """Mark samples that begin with the most common first three words of their side, if at least two do."""
    before, after = (_marks([getattr(sample, side) for sample in samples]) for side in ("before", "after"))
    return [
        replace(sample, alike_before=one, alike_after=other)
        for sample, one, other in zip(samples, before, after, strict=True)
    ]


def _marks(texts: list[str]) -> list[str]:
    if not texts:
        return []
    found = openings(texts)
    alike = [opening(text).lower() == found["commonest"].lower() for text in texts]
    mark = f"same opening as {sum(alike):,} of {len(texts):,}" if sum(alike) > 1 else ""
    return [mark if each else "" for each in alike]


def _verdict(before: str, after: str, p_after: float) -> str:
    if before == after:
        return "same text"
    return "tie" if p_after == 0.5 else "after wins" if p_after > 0.5 else "before wins"
