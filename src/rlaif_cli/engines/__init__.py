"""Inference engines: the protocol and its back ends. Only the factory imports a back end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif_cli.config.base import name_and_address
from rlaif_cli.config.engine import SERVERS, EngineConfig
from rlaif_cli.engines.base import Completion, Engine, Failed, Request, Sampling, Usage, gather
from rlaif_cli.models.chat_template import ChatFormat
from rlaif_cli.models.resolve import resolve_model

FAKE = "fake"
SERVER = "openai"
DECISIONS = "decisions"
CLUSTER = "ray"
LOCAL = ("vllm", "transformers")  # engines that load a checkpoint themselves

__all__ = [
    "CLUSTER",
    "DECISIONS",
    "FAKE",
    "LOCAL",
    "SERVER",
    "SERVERS",
    "Completion",
    "Engine",
    "EnginePool",
    "Failed",
    "Request",
    "ResolvedModel",
    "Sampling",
    "Usage",
    "computing_engine",
    "engine_name",
    "gather",
    "open_engine",
    "resolve",
]


def engine_name(config: EngineConfig, model: str) -> str:
    """The engine of a config; `--model fake` (or `--judge fake`) needs no real one."""
    return config.engine or (FAKE if model == FAKE else "vllm")


def computing_engine(config: EngineConfig, model: str) -> str:
    """The engine that computes: on a cluster, the one inside its replicas."""
    name = engine_name(config, model)
    return name if name != CLUSTER else FAKE if model == FAKE else "vllm"


@dataclass(frozen=True)
class ResolvedModel:
    """A model that a config names: resolved once, for its tokenizer, its engine and the manifest.

    Attributes:
        path: the checkpoint's folder; None for the fake model, or one that only a server knows.
        address: of its own server; None: the config says where it is.
    """

    name: str
    path: Path | None
    address: str | None = None


def resolve(config: EngineConfig, name: str) -> ResolvedModel:
    """Raises: ModelError: the config's engine loads a checkpoint, and there is none of this name."""
    if computing_engine(config, name) in SERVERS:
        model, address = name_and_address(name)
        return ResolvedModel(model, None, address)
    return ResolvedModel(name, resolve_model(name) if computing_engine(config, name) in LOCAL else None)


def open_engine(name: str, path: Path | str | None, **options: Any) -> Engine:
    """Start an engine.

    Args:
        name: "vllm", "transformers", "openai", "decisions", "ray" or "fake".
        path: the checkpoint's folder; the model's name on the server for "openai" and "decisions"; None for the fake
            model.
        options: see the engine's class.

    Raises:
        MissingDependency, EngineError: the engine cannot be started.
    """
    if name == FAKE:
        from rlaif_cli.engines.fake import FakeEngine

        return FakeEngine()
    if name == SERVER:
        from rlaif_cli.engines.openai import OpenAIEngine

        return OpenAIEngine(str(path), **options)
    if name == DECISIONS:
        from rlaif_cli.engines.decisions import DecisionsEngine

        return DecisionsEngine(str(path), **options)
    if name == CLUSTER:
        from rlaif_cli.engines.ray import RayEngine

        return RayEngine(Path(path) if path else None, **options)
    assert isinstance(path, Path)
    if name == "transformers":
        from rlaif_cli.engines.transformers import TransformersEngine

        return TransformersEngine(path, **options)
    from rlaif_cli.engines.vllm import VllmEngine

    return VllmEngine(path, **options)


class EnginePool:
    """Keeps the last engines open, so that pipeline stages with the same model start it once."""

    def __init__(self) -> None:
        self._open: dict[tuple[Any, ...], Engine] = {}

    def get(self, config: EngineConfig, model: str | ResolvedModel) -> Engine:
        """The engine of `config` for one model."""
        return self.get_all(config, [model])[0]

    def get_all(self, config: EngineConfig, wanted: Sequence[str | ResolvedModel]) -> list[Engine]:
        """One engine for each model, open side by side; others are closed first."""
        models = [resolve(config, model) if isinstance(model, str) else model for model in wanted]
        settings = [self._settings(config, model) for model in models]
        keys = [(name, path, *options.items()) for name, path, options in settings]
        for key in [key for key in self._open if key not in keys]:
            self._open.pop(key).close()
        for key, (name, path, options) in zip(keys, settings, strict=True):
            if key not in self._open:
                # A cluster is divided up front: the first model would otherwise take all of it.
                shared = {"sharing": len(keys)} if name == CLUSTER else {}
                self._open[key] = open_engine(name, path, **options, **shared)
        return [self._open[key] for key in keys]

    def _settings(self, config: EngineConfig, model: ResolvedModel) -> tuple[str, Path | str | None, dict[str, Any]]:
        name, computing = engine_name(config, model.name), computing_engine(config, model.name)
        options: dict[str, Any] = {}
        if computing in SERVERS:
            options = {key: getattr(config, key) for key in ("base_url", "concurrency", "retries", "timeout")}
            options["base_url"] = (model.address,) if model.address else config.base_url
        if computing == SERVER:
            options["template_arguments"] = config.chat_format[0]
        if computing == DECISIONS:
            options["decision_format"] = getattr(config, "decision_format", None)
        if computing in LOCAL:
            options = {"dtype": config.dtype, "max_length": config.max_length, "seed": config.seed}
            options["chat"] = ChatFormat(*config.chat_format)
        if computing == "vllm":
            options |= {"memory": config.engine_memory, "tensor_parallel_size": config.tensor_parallel_size}
        if computing == "transformers":
            options["batch_size"] = config.batch_size
        if name == CLUSTER:
            options |= {
                "address": config.ray_address,
                "replicas": config.replicas,
                "gpus_per_replica": config.gpus_per_replica,
                "batch": config.replica_batch,
            }
        return name, model.name if computing in SERVERS else model.path, options

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> EnginePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
