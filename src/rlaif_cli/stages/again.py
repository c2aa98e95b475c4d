"""An output, or a whole run, made again from what its manifest or summary recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlaif_cli import strict_yaml
from rlaif_cli.config import LineageConfig
from rlaif_cli.errors import InputError
from rlaif_cli.jsonl import describe
from rlaif_cli.output import read_json
from rlaif_cli.stages.lineage import lineage, manifest_of
from rlaif_cli.stages.pipeline import SUMMARY, PipelineFile, StageKind, Step


def again(path: str, output: Path, kinds: Mapping[str, StageKind], **overrides: Any) -> tuple[PipelineFile, list[Step]]:
    """What made an output, or a whole run's folder, as steps that make it again, elsewhere.

    Args:
        path: the output, its manifest, or the folder of a run.
        output: where it goes now; a folder for a whole run.

    Raises:
        InputError: there is no record of what made it.
    """
    place = Path(path.removesuffix(".manifest.json"))
    if (place / SUMMARY).is_file():
        return _run_again(place, output, kinds, overrides)
    manifest = manifest_of(place) if place.exists() else None
    if manifest is None or manifest.get("stage") not in kinds:
        raise InputError("no manifest says what made this", where=path, hint="an output of a stage, or a run's folder")
    _refuse_changed([place], place)
    kind, settings = manifest["stage"], manifest["settings"] | {"output": str(output)}
    try:
        return PipelineFile(name=output.name, stages={kind: {}}), [_recorded(kind, kind, settings, kinds, overrides)]
    except ValueError as error:  # pydantic's are ValueErrors too
        raise _not_recorded(path, error) from None


def _run_again(
    folder: Path, output: Path, kinds: Mapping[str, StageKind], overrides: Mapping[str, Any]
) -> tuple[PipelineFile, list[Step]]:
    summary = read_json(folder / SUMMARY, name=str, stages=dict)

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        inside = isinstance(value, str) and Path(value).is_relative_to(folder)
        return str(output / Path(value).relative_to(folder)) if inside else value

    stages = summary["stages"]
    for name, stage in stages.items():
        if not isinstance(stage, dict) or not isinstance(stage.get("settings"), dict):
            raise _not_recorded(str(folder / SUMMARY), ValueError(f"stage '{name}' has no settings"))
    _refuse_changed([Path(str(stage["settings"].get("output"))) for stage in stages.values()], folder)
    steps = []
    try:
        for name, stage in stages.items():
            settings = {key: moved(value) for key, value in stage["settings"].items()}
            steps.append(_recorded(name, str(stage.get("run")), settings, kinds, overrides))
        return PipelineFile(name=summary["name"], stages={step.stage: {} for step in steps}), steps
    except ValueError as error:
        raise _not_recorded(str(folder / SUMMARY), error) from None


def _refuse_changed(outputs: Iterable[Path], inside: Path) -> None:
    """What is made again from other inputs is another thing.

    Args:
        inside: what lies in this folder is made again itself.

    Raises:
        InputError: an input of one of the outputs is gone, or not what it was.
    """
    made = [lineage(LineageConfig(path=str(path))) for path in outputs if _has_record(path)]
    faults = [
        f"{node.name} ({node.role} of {root.name}): {node.state}"
        for root in made
        for node in root.inputs
        if node.state in ("changed", "missing") and not Path(node.name).is_relative_to(inside)
    ]
    if faults:
        hint = "put back what it was made of, or run the stage with the inputs as they are now"
        raise InputError("it would not be made of the same inputs", where=str(inside), faults=faults, hint=hint)


def _has_record(path: Path) -> bool:
    try:
        return path.exists() and manifest_of(path) is not None
    except (OSError, ValueError):  # what a summary names as an output need not be a possible name
        return False


def _not_recorded(where: str, error: ValueError) -> InputError:
    return InputError(f"it does not say how this was made: {describe(error)}", where=where)


def _recorded(
    name: str, kind: str, settings: Mapping[str, Any], kinds: Mapping[str, StageKind], overrides: Mapping[str, Any]
) -> Step:
    """A step from recorded settings, without the hashes that stand among them.

    Raises:
        ValueError: this version of rlaif knows no such stage, or not with such settings.
    """
    if kind not in kinds:
        raise ValueError(f"{strict_yaml.shown(kind)} is no stage")
    config = kinds[kind].config
    known = {key: value for key, value in settings.items() if key in config.model_fields}
    return Step(name, kind, config.model_validate({**known, **overrides}))
