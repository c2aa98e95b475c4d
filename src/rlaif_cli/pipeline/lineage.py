"""Trace an output back to its inputs: a tree of manifests, with recorded hashes compared with the present files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlaif_cli.config.base import FUNCTION_FIELDS
from rlaif_cli.config.report import LineageConfig
from rlaif_cli.data import user_function
from rlaif_cli.data.atomic import read_json
from rlaif_cli.data.compression import content_sha256
from rlaif_cli.data.inputs import files, is_remote
from rlaif_cli.data.paths import sidecar
from rlaif_cli.data.run_settings import input_hashes
from rlaif_cli.errors import InputError, RlaifError
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.models.metadata import checkpoint_hash
from rlaif_cli.models.resolve import resolve_model

State = Literal["as recorded", "changed", "missing", "not checked", "no record"]

MODELS = ("model", "judge", "reward_model")


@dataclass
class Node:
    """A file, checkpoint, function or constitution, and its inputs.

    Attributes:
        role: its role for the output above it (`prompts`, `judge`, …); "" at the root.
        stage: the command that made it; None if no manifest says so.
        state: whether it is still what the output was made from (for the root: what its own manifest says).
    """

    name: str
    role: str
    stage: str | None
    state: State
    sha256: str | None
    inputs: list[Node] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        yield self
        for node in self.inputs:
            yield from node.walk()


def lineage(config: LineageConfig) -> Node:
    """The tree above `config.path`.

    Raises:
        InputError: it does not exist, or was not made by rlaif.
    """
    path = Path(config.path)
    if not path.exists():
        raise InputError("no such file or folder", where=config.path)
    manifest = manifest_of(path)
    if manifest is None:
        hint = "this is a folder: if it is that of a run, name one of its outputs" if path.is_dir() else None
        raise InputError(
            "it has no manifest: it was not made by rlaif, or is not finished", where=config.path, hint=hint
        )
    return _made(path, "", manifest, manifest.get("sha256") or manifest.get("checkpoint_sha256"), config.verify, ())


def manifest_of(path: Path) -> dict[str, Any] | None:
    """The manifest of a data file, a result or a trained folder; None if there is none."""
    place = path / "manifest.json" if path.is_dir() else sidecar(path, "manifest.json")
    return read_json(place, settings=dict) if place.exists() else None


def _made(
    path: Path, role: str, manifest: dict[str, Any], recorded: str | None, verify: bool, above: tuple[Path, ...]
) -> Node:
    node = Node(str(path), role, manifest.get("stage"), _state(path, manifest, recorded, verify), recorded)
    if path.resolve() not in above:  # a file that is its own ancestor was edited by hand
        node.inputs = list(_inputs(path, manifest, verify, (*above, path.resolve())))
    return node


def _state(path: Path, manifest: dict[str, Any] | None, recorded: str | None, verify: bool) -> State:
    """Compare hashes: data files are always hashed, checkpoints only with `verify`; else their manifest counts."""
    if recorded is None:
        return "no record"
    if manifest is not None and "checkpoint_sha256" in manifest:
        present = checkpoint_hash(path) if verify else manifest["checkpoint_sha256"]
    else:
        present = content_sha256(*(file.path for file in files(str(path))))
    return "as recorded" if present == recorded else "changed"


def _inputs(output: Path, manifest: dict[str, Any], verify: bool, above: tuple[Path, ...]) -> Iterator[Node]:
    settings = manifest["settings"]
    for role, recorded in input_hashes(settings, manifest.get("stage")).items():
        yield _data(settings[role], role, recorded, verify, above)
    for role in MODELS:
        names = settings.get(role) or ()
        for name in [names] if isinstance(names, str) else names:
            hashes = settings.get(f"{role}_sha256") or manifest.get("model_sha256")
            recorded = hashes.get(name) if isinstance(hashes, dict) else hashes
            yield _model(name, role, recorded, verify, above)
    for role in FUNCTION_FIELDS:
        specs = settings.get(role) or ()
        for spec in [specs] if isinstance(specs, str) else specs:
            yield _function(spec, role, recorded_function(settings, role, spec))
    if isinstance(name := settings.get("constitution"), str):
        yield _constitution(name, settings.get("constitution_sha256"))


def _data(name: str, role: str, recorded: str | None, verify: bool, above: tuple[Path, ...]) -> Node:
    if is_remote(name):
        return Node("stdin" if name == "-" else name, role, None, "not checked", recorded)
    try:
        shards = [file.path for file in files(name)]
    except InputError:
        return Node(name, role, None, "missing", recorded)
    if (manifest := manifest_of(Path(name))) is not None:
        return _made(Path(name), role, manifest, recorded, verify, above)
    node = Node(name, role, None, _state(Path(name), None, recorded, verify), recorded)
    for path in shards:  # shards of a pattern or folder may have manifests of their own
        if (manifest := manifest_of(path)) is not None:
            node.inputs.append(_made(path, "shard", manifest, manifest.get("sha256"), verify, above))
    return node


def _model(name: str, role: str, recorded: str | None, verify: bool, above: tuple[Path, ...]) -> Node:
    path = Path(name)
    if path.is_dir() and (manifest := manifest_of(path)) is not None:
        return _made(path, role, manifest, recorded, verify, above)
    if recorded is None:
        return Node(name, role, None, "no record", None)
    if not verify:
        return Node(name, role, None, "not checked", recorded)
    try:
        state: State = "as recorded" if checkpoint_hash(resolve_model(name)) == recorded else "changed"
    except RlaifError:
        state = "missing"
    return Node(name, role, None, state, recorded)


def recorded_function(settings: Mapping[str, Any], role: str, spec: str) -> str | None:
    """The recorded sha256 of a function's file; None if the settings have none."""
    hashes = settings.get(f"{role}_sha256")
    found = hashes.get(spec) if isinstance(hashes, dict) else None
    return found if isinstance(found, str) else None


def _function(spec: str, role: str, recorded: str | None) -> Node:
    """The named file is only hashed, never executed."""
    if recorded is None:
        return Node(spec, role, None, "no record", None)
    try:
        found = user_function.sha256_of(spec)
    except InputError:
        return Node(spec, role, None, "missing", recorded)
    return Node(spec, role, None, "as recorded" if found == recorded else "changed", recorded)


def _constitution(name: str, recorded: str | None) -> Node:
    if recorded is None:
        return Node(name, "constitution", None, "no record", None)
    try:
        found = load_constitution(name).sha256
    except RlaifError:
        return Node(name, "constitution", None, "missing", recorded)
    return Node(name, "constitution", None, "as recorded" if found == recorded else "changed", recorded)
