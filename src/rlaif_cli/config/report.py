"""Settings of `rlaif report` and `rlaif lineage`."""

from __future__ import annotations

from typing import ClassVar

from rlaif_cli.config.base import OUTPUT, Names, StageConfig, setting


class LineageConfig(StageConfig):
    """Trace an output back to its inputs. Recorded hashes are compared with the files as they are now."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif lineage policy",
        "rlaif lineage preferences.jsonl --verify --json",
    )
    path: str = setting(help="An output: a file, or the folder of a trained model.", argument=True)
    verify: bool = setting(
        False, "Hash checkpoints too, instead of trusting the hash in their manifests.", output=False
    )
    as_json: bool = setting(False, "Print the tree as one JSON object.", flag="--json", section=OUTPUT, output=False)


class ReportConfig(StageConfig):
    """Write a report of a run: numbers, curves and samples."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif report runs/demo -o report.html",
        "rlaif report runs/soft --beside runs/hard -o compared.html",
    )
    run_folder: str = setting(help="Folder of the run.", argument=True)
    output: str = setting(
        help="Output file: .html for the page; .md or .json for the numbers alone.",
        short="-o",
        section=OUTPUT,
        output=False,
    )
    beside: Names = setting((), "Folder of another run to compare with. Repeatable.")
    card: bool = setting(
        False,
        "Also write a model card (README.md) into every checkpoint that the run trained.",
        section=OUTPUT,
        output=False,
    )
