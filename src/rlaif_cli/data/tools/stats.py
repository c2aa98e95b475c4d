"""`rlaif data stats`: summarise a file of records."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from rlaif_cli.config.data import StatsConfig
from rlaif_cli.data.hash_set import HashSet
from rlaif_cli.data.messages import prompt_text
from rlaif_cli.data.tools.kinds import response_texts
from rlaif_cli.data.tools.parallel import each_file
from rlaif_cli.data.tools.rows import rows_of_kind
from rlaif_cli.ui.progress import ProgressCallback, no_progress


class Lengths:
    """Lengths of texts in characters, eight bytes each."""

    def __init__(self) -> None:
        self._found = array("Q")

    def add(self, text: str) -> None:
        self._found.append(len(text))

    def update(self, other: Lengths) -> None:
        self._found.extend(other._found)

    def as_numbers(self) -> dict[str, Any] | None:
        if not self._found:
            return None
        found = np.frombuffer(self._found, dtype=np.uint64)
        quantiles = dict(zip(("p05", "median", "p95"), np.quantile(found, [0.05, 0.5, 0.95]).tolist(), strict=True))
        numbers = {"mean": found.mean(), "min": found.min(), **quantiles, "max": found.max()}
        return {name: round(float(value), 1) for name, value in numbers.items()} | {"n": len(found)}


class Counts:
    """The counts of one or several files."""

    def __init__(self) -> None:
        self.rows = 0
        self.prompts, self.contents = HashSet(), HashSet()
        self.responses, self.sources = Counter[int](), Counter[str]()
        self.prompt_lengths, self.response_lengths = Lengths(), Lengths()
        self.empty = 0
        self.labels = array("d")

    @classmethod
    def of(cls, rows: Iterable[Any], report: Callable[[int], None] | None = None) -> Counts:
        counts = cls()
        for row in rows:
            counts.add(row)
            if report is not None and counts.rows % 256 == 0:
                report(counts.rows)
        return counts

    def add(self, row: Any) -> None:
        prompt, texts = prompt_text(row.prompt), response_texts(row)
        self.rows += 1
        self.prompts.add(prompt)
        self.contents.add(prompt, *texts)
        self.responses[len(texts)] += 1
        self.prompt_lengths.add(prompt)
        for text in texts:
            self.response_lengths.add(text)
            self.empty += not text.strip()
        label = getattr(row, "p_chosen", getattr(row, "human_fraction_a", None))
        if label is not None:
            self.labels.append(label)
        name = getattr(row, "source", None) or getattr(row, "model", None) or row.meta.get("source")
        self.sources[str(name or "")] += 1

    def update(self, other: Counts) -> None:
        self.rows += other.rows
        self.prompts.update(other.prompts)
        self.contents.update(other.contents)
        self.responses.update(other.responses)
        self.sources.update(other.sources)
        self.prompt_lengths.update(other.prompt_lengths)
        self.response_lengths.update(other.response_lengths)
        self.empty += other.empty
        self.labels.extend(other.labels)


def stats(config: StatsConfig, kind: str, *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """Summary of a file: rows, prompts, duplicates, lengths in characters, labels, sources."""
    counts = Counts()
    with each_file(config) as each:
        source = rows_of_kind(config, kind, "-", "stats", each=each)

        def report(done: int) -> None:
            progress(counts.rows + done, len(source))

        for found in source.by_file(partial(Counts.of, report=report) if each is map else Counts.of):
            counts.update(found)
            report(0)
    return {
        "kind": kind,
        "rows": counts.rows,
        "rejected": source.rejected,
        "prompts": len(counts.prompts),
        "repeated_rows": counts.rows - len(counts.contents),
        "responses_a_row": dict(sorted(counts.responses.items())),
        "empty_responses": counts.empty,
        "prompt_characters": counts.prompt_lengths.as_numbers(),
        "response_characters": counts.response_lengths.as_numbers(),
        "labels": _label_numbers(counts.labels),
        "sources": dict(counts.sources.most_common(20)) if set(counts.sources) != {""} else None,
    }


def _label_numbers(labels: array[float]) -> dict[str, Any] | None:
    if not labels:
        return None
    p = np.frombuffer(labels)
    counts, _ = np.histogram(p, bins=10, range=(0, 1))
    near = float((np.abs(p - 0.5) < 0.05).mean())
    return {"mean": round(float(p.mean()), 4), "near_ties": round(near, 4), "tenths": counts.tolist()}
