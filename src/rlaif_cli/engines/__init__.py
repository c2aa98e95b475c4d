"""Inference engines: the protocol, and the back ends behind it. Each back end is imported in the factory alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif_cli import models
from rlaif_cli.config import EngineConfig
from rlaif_cli.engines.base import Completion, Engine, Failed, Request, Sampling, Usage, gather

FAKE = "fake"
SERVER = "openai"
LOCAL = ("vllm", "transformers")  # engines that load a checkpoint themselves

__all__ = [
    "FAKE",
    "LOCAL",
    "SERVER",
    "Completion",
    "Engine",
    "EnginePool",
    "Failed",
    "Request",
    "Sampling",
    "Usage",
    "engine_name",
    "gather",
    "open_engine",
]


def engine_name(config: EngineConfig, model: str) -> str:
    """`--model fake` (or `--judge fake`) needs no model and so no real engine."""
    return config.engine or (FAKE if model == FAKE else "vllm")


def open_engine(name: str, path: Path | str | None, **options: Any) -> Engine:
    """Start an engine.

    Args:
        name: "vllm", "transformers", "openai" or "fake".
        path: the checkpoint's folder; for "openai" the model's name there; none for "fake".
        options: see the engine's class.

    Raises:
        MissingDependency, EngineError: it cannot be started.
    """
    if name == FAKE:
        from rlaif_cli.engines.fake import FakeEngine

        return FakeEngine()
    if name == SERVER:
        from rlaif_cli.engines.openai import OpenAIEngine

        return OpenAIEngine(str(path), **options)
    assert isinstance(path, Path)
    if name == "transformers":
        from rlaif_cli.engines.transformers import TransformersEngine

        return TransformersEngine(path, **options)
    from rlaif_cli.engines.vllm import VllmEngine

    return VllmEngine(path, **options)


class EnginePool:
    """Keeps the last engine open, so that a pipeline whose models agree pays for one start."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._engine: Engine | None = None

    def get(self, config: EngineConfig, model: str) -> Engine:
        """The engine that `config` asks for, for the model of this name."""
        name = engine_name(config, model)
        options: dict[str, Any] = {}
        if name == SERVER:
            options = {key: getattr(config, key) for key in ("base_url", "concurrency", "retries", "timeout")}
        elif name != FAKE:
            options = {"dtype": config.dtype, "max_length": config.max_length, "seed": config.seed}
        if name == "vllm":
            options |= {"memory": config.engine_memory, "tensor_parallel": config.tensor_parallel}
        if name == "transformers":
            options["batch_size"] = config.batch_size
        path: Path | str | None = models.resolve(model) if name in LOCAL else model
        key = (name, path, *options.items())
        if self._engine is None or key != self._key:
            self.close()
            self._engine, self._key = open_engine(name, path, **options), key
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = self._key = None

    def __enter__(self) -> EnginePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
