"""Read a tool's rows, and write its output with a manifest."""

from __future__ import annotations

from typing import Any

from rlaif_cli.config.data import DataConfig
from rlaif_cli.data.atomic import new_file
from rlaif_cli.data.paths import rejected_path
from rlaif_cli.data.reader import Source
from rlaif_cli.data.tools.kinds import KINDS


def rows_of_kind(config: DataConfig, kind: str, output: str, stage: str, **options: Any) -> Source[Any]:
    rejected = rejected_path(output, stage)
    return Source(config.records, KINDS[kind], skip_invalid=config.skip_invalid, rejected_path=rejected, **options)


def rewritten(config: Any, source: Source[Any], **facts: str) -> Any:
    """A new file, written atomically, with a manifest that records its input."""
    manifest = {"stage": "data", "settings": recorded_settings(config, source), **facts}
    return new_file(config.output, manifest, overwrite=config.overwrite)


def recorded_settings(config: DataConfig, source: Source[Any]) -> dict[str, Any]:
    return config.deciding() | {"input_sha256": source.sha256}
