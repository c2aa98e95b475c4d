"""A stage that `rlaif` does not have, as somebody would add it: this file, and the row at its end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from rlaif_cli.config.base import InputConfig, setting
from rlaif_cli.data.atomic import write_whole
from rlaif_cli.data.paths import rejected_path
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import PromptRecord
from rlaif_cli.errors import InputError
from rlaif_cli.pipeline.plan.counts import measure
from rlaif_cli.pipeline.plan.work import File, Plan
from rlaif_cli.registry import STAGES, Finding, Stage
from rlaif_cli.ui.progress import ProgressCallback


class WordsConfig(InputConfig):
    """Count the words of prompts."""

    examples: ClassVar[tuple[str, ...]] = ("rlaif words prompts.jsonl -o words.jsonl",)
    texts: str = setting(help="The prompts.", argument=True, records=True)
    output: str = setting(help="Output file (JSONL).", short="-o", output=False)
    dictionary: str | None = setting(None, "Count only the words of this file.")


def words(config: WordsConfig, engines: Any, *, progress: ProgressCallback) -> dict[str, Any]:
    source = Source(config.texts, PromptRecord, rejected_path=rejected_path(config.output, "words"))
    rows = [{"id": record.id, "words": len(str(record.prompt).split())} for record in source]
    write_whole(Path(config.output), "".join(json.dumps(row) + "\n" for row in rows).encode())
    progress(len(rows), len(rows))
    return {"rows": len(rows), "words": sum(row["words"] for row in rows)}


def counter(config: WordsConfig, files: dict[str, File]) -> tuple[Plan, File]:
    prompts = files.get(config.texts) or measure(config.texts)
    return Plan(rows=prompts.rows, calls=2 * prompts.rows), prompts


def needs(config: WordsConfig) -> Iterator[tuple[str, Callable[[str], object]]]:
    if config.dictionary is not None:
        yield config.dictionary, _dictionary


def _dictionary(name: str) -> None:
    if not Path(name).exists():
        raise InputError("no such dictionary", where=name)


def describe(stage: Any, run: Any) -> list[str]:
    return [f"{stage.results['words']} words in {stage.results['rows']} prompts"]


NAME = "words"
ROW = Stage(
    config="toy_stage:WordsConfig",
    function="toy_stage:words",
    makes="records",
    counter="toy_stage:counter",
    needs="toy_stage:needs",
    finding=Finding("Words", "toy_stage:describe", place=15),
)

if __name__ == "__main__":  # the command line with this row
    STAGES[NAME] = ROW
    from rlaif_cli.cli.app import build, main

    sys.exit(main(program=build()))
