"""What data stages share about their files, models and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif_cli import models
from rlaif_cli.chat import AnyTokenizer, ChatTokenizer, FakeTokenizer
from rlaif_cli.config import EngineConfig
from rlaif_cli.engines import FAKE, engine_name
from rlaif_cli.jsonl import Source, file_sha256, sidecar


def input_settings(source: Source[Any], path: str) -> dict[str, Any]:
    """What a resumed run must find unchanged, and what leads back from an output to what it was made of."""
    settings: dict[str, Any] = {"input_sha256": source.sha256}
    manifest = sidecar(Path(path), "manifest.json") if path != "-" else None
    if manifest is not None and manifest.exists():
        settings["input_manifest_sha256"] = file_sha256(manifest)
    return settings


def open_tokenizer(config: EngineConfig, model: str) -> tuple[AnyTokenizer, int]:
    """The model's tokenizer and its context in tokens, without starting an engine.

    Raises:
        ModelError: the model cannot be found or has no tokenizer.
    """
    if engine_name(config, model) == FAKE:
        return FakeTokenizer(), config.max_length or 1 << 20
    path = models.resolve(model)
    limit = models.context_length(path)
    return ChatTokenizer(path), min(limit, config.max_length or limit)


def model_hash(config: EngineConfig, model: str) -> str | None:
    return None if engine_name(config, model) == FAKE else models.checkpoint_hash(models.resolve(model))


def too_long(tokens: int, limit: int, what: str) -> str | None:
    """The fault of a row that does not fit the model's context; None if it fits."""
    if tokens <= limit:
        return None
    return f"{what} need {tokens} tokens, the model's context holds {limit}"
