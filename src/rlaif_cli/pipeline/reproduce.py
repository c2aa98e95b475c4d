"""Reproduce an output or a whole run from its manifest or summary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlaif_cli.config.base import FUNCTION_FIELDS
from rlaif_cli.config.report import LineageConfig
from rlaif_cli.data import strict_yaml, user_function
from rlaif_cli.data.atomic import read_json
from rlaif_cli.data.json_lines import describe
from rlaif_cli.data.overlap import check_outputs
from rlaif_cli.errors import InputError, UsageError
from rlaif_cli.pipeline.file import SUMMARY, PipelineFile, Step
from rlaif_cli.pipeline.lineage import lineage, manifest_of, recorded_function
from rlaif_cli.registry import Stage


def reproduce(
    path: str, output: Path, kinds: Mapping[str, Stage], *, run_code: bool = False, **overrides: Any
) -> tuple[PipelineFile, list[Step]]:
    """The recorded steps of an output or a run folder, with a new output.

    Args:
        path: the output, its manifest, or the folder of a run.
        output: the new output; a folder for a whole run.
        run_code: whether stages may execute the Python functions that they name, if the files are unchanged.

    Raises:
        InputError: there is no record of how it was made, or an input has changed since.
        UsageError: a stage executes Python code, without `run_code`.
    """
    place = Path(path.removesuffix(".manifest.json"))
    if (place / SUMMARY).is_file():
        return _reproduce_run(place, output, kinds, run_code, overrides)
    manifest = manifest_of(place) if place.exists() else None
    if manifest is None or manifest.get("stage") not in kinds:
        raise InputError(
            "no manifest says how this was made", where=path, hint="give an output of a stage, or a run folder"
        )
    _refuse_changed([place], place)
    kind, settings = manifest["stage"], manifest["settings"] | {"output": str(output)}
    try:
        step = _recorded(kind, kind, settings, kinds, overrides)
        pipeline = PipelineFile(name=output.name, stages={kind: {}})
    except ValueError as error:  # pydantic's are ValueErrors too
        raise _not_recorded(path, error) from None
    _check_code(step, place, run_code)
    return pipeline, [step]


def _reproduce_run(
    folder: Path, output: Path, kinds: Mapping[str, Stage], run_code: bool, overrides: Mapping[str, Any]
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
            # No stage makes a function's file: one in the run folder stays where it is.
            settings = {
                key: value if key in FUNCTION_FIELDS else moved(value) for key, value in stage["settings"].items()
            }
            steps.append(_recorded(name, str(stage.get("run")), settings, kinds, overrides))
        pipeline = PipelineFile(name=summary["name"], stages={step.stage: {} for step in steps})
    except ValueError as error:
        raise _not_recorded(str(folder / SUMMARY), error) from None
    for step, stage in zip(steps, stages.values(), strict=True):
        _check_code(step, Path(str(stage["settings"].get("output"))), run_code)
    return pipeline, steps


def _check_code(step: Step, made: Path, run_code: bool) -> None:
    """Execute code named by a record only if the user allows it and the file is the recorded one.

    Args:
        made: the original output of the stage.

    Raises:
        UsageError: without the user's consent.
        InputError: a file is not the one that was recorded, or its hash was not.
    """
    named = [(role, spec) for role in FUNCTION_FIELDS for spec in getattr(step.config, role, ())]
    if not named:
        return
    where = f"stage '{step.name}'"
    if not run_code:
        what = f"it executes Python code: {', '.join(spec for _, spec in named)}"
        hint = "read the file; if you trust it, add --run-code (the file must be unchanged)"
        raise UsageError(what, where=where, hint=hint)
    manifest = manifest_of(made) if _has_record(made) else None
    settings = manifest["settings"] if manifest else {}
    for role, spec in named:
        recorded = recorded_function(settings, role, spec)
        if recorded is None:
            hint = f"run the stage with --{role.replace('_', '-')} yourself"
            raise InputError(f"no manifest has the sha256 of {spec}", where=where, hint=hint)
        if user_function.sha256_of(spec) != recorded:
            hint = "restore the file, or run the stage with the file as it is now"
            raise InputError(f"{spec} has changed since it was recorded: its sha256 differs", where=where, hint=hint)


def _refuse_changed(outputs: Iterable[Path], inside: Path) -> None:
    """Refuse to reproduce outputs whose inputs have changed.

    Args:
        inside: files in this folder are exempt, since they are reproduced too.

    Raises:
        InputError: an input of one of the outputs is missing or has changed.
    """
    made = [lineage(LineageConfig(path=str(path))) for path in outputs if _has_record(path)]
    faults = [
        f"{node.name} ({node.role} of {root.name}): {node.state}"
        for root in made
        for node in root.inputs
        if node.state in ("changed", "missing") and not Path(node.name).is_relative_to(inside)
    ]
    if faults:
        hint = "restore the inputs, or run the stage with the inputs as they are now"
        raise InputError("its inputs have changed", where=str(inside), errors=faults, hint=hint)


def _has_record(path: Path) -> bool:
    try:
        return path.exists() and manifest_of(path) is not None
    except (OSError, ValueError):  # the output named in a summary may not be a valid path
        return False


def _not_recorded(where: str, error: ValueError) -> InputError:
    return InputError(f"it does not record how this was made: {describe(error)}", where=where)


def _recorded(
    name: str, kind: str, settings: Mapping[str, Any], kinds: Mapping[str, Stage], overrides: Mapping[str, Any]
) -> Step:
    """A step from recorded settings, without the hashes among them.

    Raises:
        ValueError: this version of rlaif has no such stage, or not with these settings.
    """
    if kind not in kinds:
        raise ValueError(f"{strict_yaml.shown(kind)} is not a stage")
    config = kinds[kind].config_class
    known = {key: value for key, value in settings.items() if key in config.model_fields}
    return Step(name, kind, check_outputs(config.model_validate({**known, **overrides})))
