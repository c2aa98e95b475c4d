"""What a manifest records about the judge: hashes of its models, its constitution and its prompts."""

from __future__ import annotations

from typing import Any

from rlaif_cli.config.base import FUNCTION_FIELDS, StageConfig
from rlaif_cli.config.engine import SERVERS
from rlaif_cli.data import user_function
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.models.metadata import checkpoint_hash
from rlaif_cli.models.resolve import resolve_model


def judging_hashes(config: StageConfig) -> dict[str, Any]:
    """Hashes of the judges, reward models, functions and constitution of a config; judges behind a server have none."""
    settings, found = config.deciding(), dict[str, Any]()
    for role in ("judge", "reward_model"):
        if settings.get(role) and not _behind_a_server(config, role):
            named = [settings[role]] if isinstance(settings[role], str) else settings[role]
            found[f"{role}_sha256"] = {name: checkpoint_hash(resolve_model(name)) for name in named}
    for role in FUNCTION_FIELDS:
        if specs := getattr(config, role, ()):
            found[f"{role}_sha256"] = {spec: user_function.sha256_of(spec) for spec in specs}
    if settings.get("constitution"):
        found["constitution_sha256"] = load_constitution(settings["constitution"]).sha256
    return found


def _behind_a_server(config: Any, role: str) -> bool:
    engines = (getattr(config, "engine", None), getattr(config, "judge_engine", None))
    return role == "judge" and any(engine in SERVERS for engine in engines)
