"""From an output back to what it was made of: a tree of manifests, recorded hashes held against what stands there."""

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
    """A file, checkpoint, function or constitution, and what it was made of.

    Attributes:
        role: what it was to the output it stands under (`prompts`, `judge`, …); "" at the root.
        stage: the command that made it; None where no manifest says so.
        state: whether it still is what the output was made of (of the root: what its own manifest says).
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
        InputError: there is nothing, or nothing that rlaif made.
    """
    path = Path(config.path)
    if not path.exists():
        raise InputError("there is no such file or folder", where=config.path)
    manifest = manifest_of(path)
    if manifest is None:
        hint = "of a run's folder, name one of its outputs" if path.is_dir() else None
        raise InputError("no manifest says what made it: not rlaif, or not to the end", where=config.path, hint=hint)
    return _made(path, "", manifest, manifest.get("sha256") or manifest.get("checkpoint_sha256"), config.verify, ())


def manifest_of(path: Path) -> dict[str, Any] | None:
    """What a data file's, a result's or a trained folder's manifest says; None if there is none."""
    place = path / "manifest.json" if path.is_dir() else sidecar(path, "manifest.json")
    return read_json(place, settings=dict) if place.exists() else None


def _made(
    path: Path, role: str, manifest: dict[str, Any], recorded: str | None, verify: bool, above: tuple[Path, ...]
) -> Node:
    node = Node(str(path), role, manifest.get("stage"), _state(path, manifest, recorded, verify), recorded)
    if path.resolve() not in above:  # a file that is its own ancestor was changed by hand
        node.inputs = list(_inputs(path, manifest, verify, (*above, path.resolve())))
    return node


def _state(path: Path, manifest: dict[str, Any] | None, recorded: str | None, verify: bool) -> State:
    """Records are always hashed; checkpoints only to verify, else their manifest is asked."""
    if recorded is None:
        return "no record"
    if manifest is not None and "checkpoint_sha256" in manifest:
        said = checkpoint_hash(path) if verify else manifest["checkpoint_sha256"]
    else:
        said = content_sha256(*(file.path for file in files(str(path))))
    return "as recorded" if said == recorded else "changed"


def _inputs(output: Path, manifest: dict[str, Any], verify: bool, above: tuple[Path, ...]) -> Iterator[Node]:
    settings = manifest["settings"]
    for role, recorded in input_hashes(settings).items():
        if role == "pairs" and manifest.get("stage") == "label":
            continue  # there it is the rule by which pairs are formed
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
    for path in shards:  # of a pattern or folder, those that were made one by one
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
    """The sha256 of a function's file that recorded settings hold; None if they hold none."""
    hashes = settings.get(f"{role}_sha256")
    found = hashes.get(spec) if isinstance(hashes, dict) else None
    return found if isinstance(found, str) else None


def _function(spec: str, role: str, recorded: str | None) -> Node:
    """The file that is named is only hashed, never run."""
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
