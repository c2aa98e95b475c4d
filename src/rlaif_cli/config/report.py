"""Settings of `rlaif report` and `rlaif lineage`."""

from __future__ import annotations

from typing import ClassVar

from rlaif_cli.config.base import OUTPUT, Names, StageConfig, setting


class LineageConfig(StageConfig):
    """From an output back to what it was made of. Every recorded hash is held against what stands there now."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif lineage policy",
        "rlaif lineage preferences.jsonl --verify --json",
    )
    path: str = setting(help="An output: a file, or the folder of a trained model.", argument=True)
    verify: bool = setting(False, "Hash the checkpoints too; without it, their manifests are asked.", output=False)
    as_json: bool = setting(False, "The tree as one JSON object.", flag="--json", section=OUTPUT, output=False)


class ReportConfig(StageConfig):
    """Write a run's numbers, curves and samples as one page."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif report runs/demo -o report.html",
        "rlaif report runs/soft --beside runs/hard -o compared.html",
    )
    run_folder: str = setting(help="The folder of a run.", argument=True)
    output: str = setting(
        help="One HTML page; a name in .md or .json: the same numbers.", short="-o", section=OUTPUT, output=False
    )
    beside: Names = setting((), "Another run, told beside this one; may be given several times.")
    card: bool = setting(
        False,
        "Also write a model card (README.md) into every checkpoint that the run trained.",
        section=OUTPUT,
        output=False,
    )
