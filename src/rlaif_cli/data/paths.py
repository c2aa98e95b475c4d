"""The names of the files beside an output."""

from __future__ import annotations

from pathlib import Path

from rlaif_cli.data.compression import is_compressed_name


def sidecar(path: Path, suffix: str) -> Path:
    """`out.jsonl` -> `out.jsonl.<suffix>`."""
    return path.with_name(f"{path.name}.{suffix}")


def file_of(output: str) -> Path | None:
    """The path of an output; None for `-`, which is stdout."""
    return None if output == "-" else Path(output)


def rejected_path(output: str, stage: str) -> Path:
    """The file for invalid lines. A stage that writes to stdout puts it in the working folder."""
    return beside(output, stage, "rejected")


def trainer_rejected_path(folder: str, word: str = "rejected") -> Path:
    """A trainer's file for invalid lines, beside its output folder: `rm` -> `rm.rejected.jsonl`."""
    return Path(folder).with_name(f"{Path(folder).name}.{word}.jsonl")


def beside(output: str, stage: str, word: str) -> Path:
    """`prefs.jsonl` -> `prefs.unscored.jsonl`; stdout -> `label.unscored.jsonl` in the working folder."""
    path = file_of(output)
    if path is None:
        return Path(f"{stage}.{word}.jsonl")
    stem = Path(path.stem).stem if is_compressed_name(path) else path.stem
    return path.with_name(f"{stem}.{word}.jsonl")
