"""A pipeline file: stages with inputs, outputs and settings, run one after another into one folder.

    name: demo
    stages:
      candidates: {run: generate, prompts: "${examples}/demo/train.jsonl", model: smollm2-135m, n: 2}
      preferences: {run: label, candidates: "${candidates}", judge: smollm2-135m, constitution: helpfulness}

`${stage}` is that stage's output, `${examples}` the folder of shipped examples, `${run}` the run's own folder. A stage
without `output` writes `<stage>` with the ending that its kind of output has. Unknown keys are errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlaif_cli import strict_yaml
from rlaif_cli.config import StageConfig
from rlaif_cli.console import ProgressCallback
from rlaif_cli.errors import InputError
from rlaif_cli.jsonl import describe
from rlaif_cli.output import read_json, write_json
from rlaif_cli.resources import shipped_path
from rlaif_cli.stages.lineage import manifest_of

SUMMARY = "summary.json"
_REFERENCE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True)
class StageKind:
    """What a pipeline can run: `run(config, progress) -> the stage's numbers`; `ending` of its output's name."""

    config: type[StageConfig]
    run: Callable[[Any, ProgressCallback], dict[str, Any]]
    ending: str


class PipelineFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[^/\\]+$")  # also the run's folder, under runs/
    description: str = ""
    stages: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Step:
    """A stage of a loaded pipeline, its settings checked and its references resolved."""

    name: str
    kind: str
    config: StageConfig


def read(path: str) -> PipelineFile:
    """A pipeline file as it is written: a YAML file, or the name of a shipped one (`demo`).

    Raises:
        InputError: it cannot be read, or is no pipeline.
    """
    file = shipped_path("examples") / path / "pipeline.yaml" if "/" not in path and "." not in path else Path(path)
    try:
        document = strict_yaml.parse(strict_yaml.read(file), file)
        if document.faults:
            raise document.error(file, document.faults)
        return PipelineFile.model_validate(document.value)
    except FileNotFoundError:
        shipped = sorted(place.parent.name for place in shipped_path("examples").glob("*/pipeline.yaml"))
        hint = f"shipped: {', '.join(shipped)}; or give the path of a YAML file"
        raise InputError("no such pipeline file", where=path, hint=hint) from None
    except ValidationError as error:
        raise InputError(describe(error), where=path) from error


def load(
    path: str, run_folder: Path, kinds: Mapping[str, StageKind], **overrides: Any
) -> tuple[PipelineFile, list[Step]]:
    """Read and check a pipeline file whole, before anything runs.

    Args:
        path: a YAML file, or the name of a shipped pipeline (`demo`).
        run_folder: where outputs go.
        kinds: what `run:` may name.
        overrides: settings for every stage (`overwrite`, `dry_run`).

    Raises:
        InputError: with every fault, each naming its stage and setting.
    """
    pipeline = read(path)
    values = {"run": str(run_folder), "examples": str(shipped_path("examples"))}
    steps, faults = [], []
    for name, settings in pipeline.stages.items():
        try:
            step = _step(name, dict(settings), run_folder, kinds, values, overrides)
        except ValueError as error:  # pydantic's are ValueErrors too
            text = describe(error) if isinstance(error, ValidationError) else str(error)
            faults.append(f"{path} stage '{name}': {text}")
        else:
            steps.append(step)
        values[name] = str(run_folder / _output_name(name, settings, kinds))
    if faults:
        raise InputError(f"{len(faults)} stages cannot be run as they are written", where=path, faults=faults)
    return pipeline, steps


def _output_name(name: str, settings: Mapping[str, Any], kinds: Mapping[str, StageKind]) -> str:
    kind = kinds.get(str(settings.get("run")))
    return str(settings.get("output") or name + (kind.ending if kind else ""))


def _step(
    name: str,
    settings: dict[str, Any],
    run_folder: Path,
    kinds: Mapping[str, StageKind],
    values: Mapping[str, str],
    overrides: Mapping[str, Any],
) -> Step:
    kind_name = settings.pop("run", None)
    if str(kind_name) not in kinds:
        raise ValueError(f"run: {strict_yaml.shown(kind_name)} is unknown; one of {', '.join(kinds)}")
    settings["output"] = str(run_folder / _output_name(name, {"run": kind_name, **settings}, kinds))
    resolved = {key: _resolve(value, values) for key, value in settings.items()}
    return Step(name, kind_name, kinds[kind_name].config.model_validate({**resolved, **overrides}))


def _resolve(value: Any, values: Mapping[str, str]) -> Any:
    def replace(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ValueError(f"${{{match[1]}}} is no earlier stage; there are {', '.join(values)}")
        return values[match[1]]

    if isinstance(value, list):
        return [_resolve(item, values) for item in value]
    return _REFERENCE.sub(replace, value) if isinstance(value, str) else value


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

    steps = []
    try:
        for name, stage in summary["stages"].items():
            if not isinstance(stage, dict) or not isinstance(stage.get("settings"), dict):
                raise ValueError(f"stage '{name}' has no settings")
            settings = {key: moved(value) for key, value in stage["settings"].items()}
            steps.append(_recorded(name, str(stage.get("run")), settings, kinds, overrides))
        return PipelineFile(name=summary["name"], stages={step.name: {} for step in steps}), steps
    except ValueError as error:
        raise _not_recorded(str(folder / SUMMARY), error) from None


def _not_recorded(where: str, error: ValueError) -> InputError:
    reason = describe(error) if isinstance(error, ValidationError) else str(error)
    return InputError(f"it does not say how this was made: {reason}", where=where)


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


def run(
    pipeline: PipelineFile,
    steps: list[Step],
    run_folder: Path,
    kinds: Mapping[str, StageKind],
    progress_for: Callable[[str], Any],
    announce: Callable[[int, Step], None],
    seconds: Callable[[], float],
) -> dict[str, Any]:
    """Run the stages in order. A stage that is complete already is not run again: each resumes by itself.

    Returns:
        What is also written to `<run>/summary.json`: the settings and the numbers of every stage.
    """
    summary: dict[str, Any] = {"name": pipeline.name, "description": pipeline.description, "stages": {}}
    for index, step in enumerate(steps):
        announce(index, step)
        started = seconds()
        with progress_for(step.name) as progress:
            numbers = kinds[step.kind].run(step.config, progress)
        summary["stages"][step.name] = {
            "run": step.kind,
            "settings": step.config.model_dump(mode="json"),
            "seconds": round(seconds() - started, 1),
            "results": numbers,
        }
        write_json(run_folder / SUMMARY, summary)
    return summary
