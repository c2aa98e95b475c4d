"""A pipeline file: stages with inputs, outputs and settings, run one after another into one folder.

    name: mine
    stages:
      candidates: {run: generate, prompts: "${examples}/no-signal/train.jsonl", model: smollm2-135m, n: 2}
      preferences: {run: label, candidates: "${candidates}", judge: smollm2-135m, constitution: helpfulness}

`${stage}` is that stage's output, `${examples}` the folder of shipped examples, `${run}` the run's own folder. A stage
without `output` writes `<stage>` with the extension of its kind of output. Unknown keys are errors.

`values:` defines names that several stages use (`${judge}`). `matrix:` defines axes with their values: a stage that
uses an axis, or the output of one that does, runs once per value, as `<stage>.<axis>=<value>`; all others run once.

    matrix: {hard: [false, true], seed: [0, 1]}
    stages:
      preferences: {run: label, …}                                                    # once
      rm: {run: train-rm, preferences: "${preferences}", hard_labels: "${hard}", seed: "${seed}", …}      # four times
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from rlaif_cli.config.base import StageConfig
from rlaif_cli.config.naming import as_field
from rlaif_cli.config.refusal import refusal
from rlaif_cli.data import strict_yaml
from rlaif_cli.data.json_lines import describe
from rlaif_cli.data.overlap import check_outputs
from rlaif_cli.data.shipped_files import shipped_path
from rlaif_cli.errors import InputError, UsageError
from rlaif_cli.ui.console import counted
from rlaif_cli.ui.progress import ProgressCallback

SUMMARY = "summary.json"
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_RUN_SETTINGS = ("overwrite", "dry_run")  # apply to the whole run, so --set cannot change them for one stage
_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]")  # in a file's name
Scalar = str | int | float | bool


@dataclass(frozen=True)
class StageKind:
    """A kind of stage: `run(config, engines, progress) -> its results`; `ending`: the extension of its output."""

    config: type[StageConfig]
    run: Callable[[Any, Any, ProgressCallback], dict[str, Any]]
    ending: str


# Used as a file name in the run folder; short enough to append the axes of a matrix.
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^/\\\x00-\x1f\x7f.][^/\\\x00-\x1f\x7f]*$")]


class PipelineFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name  # also the run's folder, under runs/
    description: str = ""
    values: dict[str, Scalar] = {}
    matrix: dict[str, Annotated[list[Scalar], Field(min_length=1)]] = {}
    stages: dict[Name, dict[str, Any]] = Field(min_length=1)

    @field_validator("matrix")
    @classmethod
    def _each_once(cls, matrix: dict[str, list[Scalar]]) -> dict[str, list[Scalar]]:
        for axis, values in matrix.items():
            if len({_shown(value) for value in values}) < len(values):
                raise ValueError(f"'{axis}' has duplicate values: {', '.join(map(_shown, values))}")
        return matrix

    def given(self, changed: Mapping[str, str]) -> dict[str, Scalar]:
        """The values with some of them replaced; a text is parsed as the type of the file's own value.

        Raises:
            ValueError: there is no such value, or the text has a different type.
        """
        found = dict(self.values)
        for name, text in changed.items():
            if name not in found:
                there = f"it has {', '.join(found) or 'none'}; for the setting of a stage, use STAGE.SETTING=VALUE"
                raise ValueError(f"the pipeline has no value '{name}'; {there}")
            kind = type(found[name])
            if found[name] != "" and not text.strip():  # an unset shell variable
                raise ValueError(f"'{name}' is empty; in the file it is {_shown(found[name])}")
            try:
                found[name] = TypeAdapter(kind).validate_python(text)
            except ValidationError:
                raise ValueError(
                    f"'{name}' is {_shown(found[name])} in the file; '{text}' is not of type {kind.__name__}"
                ) from None
        return found

    def with_settings(self, changed: Mapping[str, str], kinds: Mapping[str, StageKind]) -> PipelineFile:
        """Stages with some settings replaced, by STAGE.SETTING; a text in brackets is a list.

        Raises:
            ValueError: the stage has no such setting, or the text is empty or not a list.
        """
        stages = {name: dict(settings) for name, settings in self.stages.items()}
        for name, text in changed.items():
            stage, _, key = name.rpartition(".")
            kind = kinds.get(str(stages[stage].get("run")))
            known = [field for field in kind.config.model_fields if field not in _RUN_SETTINGS] if kind else [key]
            if key not in known:
                there = ", ".join(known)
                raise ValueError(f"stage '{stage}' has no setting '{key}'; it has {there}")
            if not text.strip():
                raise ValueError(f"'{name}' is empty")
            stages[stage][key] = strict_yaml.parse(text.encode(), Path(name)).value if text.startswith("[") else text
        return self.model_copy(update={"stages": stages})


@dataclass(frozen=True)
class Step:
    """A checked stage of a pipeline with its references resolved; in a matrix, one for each combination of values.

    Attributes:
        stage: its name in the file.
        axes: the values of the matrix that it was resolved with.
    """

    stage: str
    kind: str
    config: StageConfig
    axes: tuple[tuple[str, Scalar], ...] = ()

    @property
    def name(self) -> str:
        return step_name(self.stage, self.axes)

    @property
    def output(self) -> str:
        return str(self.config.output)  # type: ignore[attr-defined]  # every stage of a pipeline has one


def step_name(stage: str, axes: Iterable[tuple[str, Scalar]]) -> str:
    """`rm`, or in a matrix `rm.hard=true.seed=0`; also used as a file name."""
    return ".".join([stage, *(f"{axis}={_UNSAFE.sub('_', _shown(value))}" for axis, value in axes)])


def _shown(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def read(path: str) -> PipelineFile:
    """Read a pipeline file without resolving it: a YAML file, or the name of a shipped one (`demo`).

    Raises:
        InputError: it cannot be read, or is not a pipeline.
    """
    file = shipped_path("examples") / path / "pipeline.yaml" if "/" not in path and "." not in path else Path(path)
    try:
        return PipelineFile.model_validate(strict_yaml.load(file))
    except FileNotFoundError:
        shipped = sorted(place.parent.name for place in shipped_path("examples").glob("*/pipeline.yaml"))
        hint = f"shipped: {', '.join(shipped)}; or the path of a YAML file"
        raise InputError("no such pipeline file", where=path, hint=hint) from None
    except ValidationError as error:
        raise InputError(describe(error), where=path) from error


def load(
    path: str, run_folder: Path, kinds: Mapping[str, StageKind], changed: Mapping[str, str] = {}, **overrides: Any
) -> tuple[PipelineFile, list[Step]]:
    """Read and check a whole pipeline file before anything runs.

    Args:
        path: a YAML file, or the name of a shipped pipeline (`demo`).
        run_folder: where outputs go.
        kinds: what `run:` may name.
        changed: replacements for `values` of the file and, by STAGE.SETTING, for settings of its stages.
        overrides: settings for every stage (`overwrite`, `dry_run`).

    Raises:
        UsageError: `changed` has an unknown name, or a value of the wrong type.
        InputError: the file is invalid; all errors are listed with stage and setting.
    """
    pipeline = read(path)
    own = {name: text for name, text in changed.items() if name.rpartition(".")[0] in pipeline.stages}
    own = {name: text for name, text in own.items() if name not in pipeline.values}
    values: dict[str, Scalar] = {"run": str(run_folder), "examples": str(shipped_path("examples"))}
    faults = [f"{path}: '{name}' is defined twice" for name in _named_twice(pipeline, values)]
    try:
        pipeline = pipeline.with_settings(own, kinds)
        given = pipeline.given({name: text for name, text in changed.items() if name not in own})
        values |= {name: _resolve(value, values) for name, value in given.items()}
    except ValueError as error:
        raise UsageError(str(error), where=path) from None
    steps: list[Step] = []
    for stage, settings in pipeline.stages.items():
        axes = _axes_of(settings, pipeline, steps)
        for combination in product(*(pipeline.matrix[axis] for axis in axes)):
            chosen = dict(zip(axes, combination, strict=True))
            outputs = {
                step.stage: step.output for step in steps if all(chosen.get(axis) == value for axis, value in step.axes)
            }
            try:
                steps.append(
                    _step(stage, dict(settings), run_folder, kinds, values | chosen | outputs, chosen, overrides)
                )
            except ValueError as error:
                faults.append(f"{path} stage '{step_name(stage, chosen.items())}': {error}")
                values[stage] = "-"  # later stages may refer to it: report this error only once
    if faults:
        what = f"{counted(len(faults), 'error')} in the stages"
        hint = f"changed by --set: {', '.join(own)}; write lists in brackets: [a, b]" if own else None
        raise InputError(what, where=path, errors=faults, hint=hint)
    return pipeline, steps


def _named_twice(pipeline: PipelineFile, values: Iterable[str]) -> list[str]:
    names = [*values, *pipeline.values, *pipeline.matrix, *pipeline.stages]
    return sorted({name for name in names if names.count(name) > 1})


def _axes_of(settings: Mapping[str, Any], pipeline: PipelineFile, steps: Iterable[Step]) -> list[str]:
    """The axes that a stage uses, directly or through the output of another, in the order of the matrix."""
    used = set(_REFERENCE.findall(json.dumps(settings, default=str)))
    used |= {axis for step in steps if step.stage in used for axis, _ in step.axes}
    return [axis for axis in pipeline.matrix if axis in used]


def _output_name(stage: str, axes: Mapping[str, Scalar], settings: Mapping[str, Any], ending: str) -> str:
    name = settings.get("output")
    if name is None:
        return step_name(stage, axes.items()) + ending
    path = Path(str(name))
    return str(path.with_name(step_name(path.stem, axes.items()) + path.suffix)) if axes else str(name)


def _step(
    stage: str,
    settings: dict[str, Any],
    run_folder: Path,
    kinds: Mapping[str, StageKind],
    values: Mapping[str, Scalar],
    axes: Mapping[str, Scalar],
    overrides: Mapping[str, Any],
) -> Step:
    name = settings.pop("run", None)
    kind = kinds.get(str(name))
    if kind is None:
        raise ValueError(f"run: {strict_yaml.shown(name)} is unknown; it must be one of {', '.join(kinds)}")
    settings["output"] = str(run_folder / _output_name(stage, axes, settings, kind.ending))
    resolved = {key: _resolve(value, values) for key, value in settings.items()}
    try:
        config = check_outputs(kind.config.model_validate({**resolved, **overrides}))
    except ValueError as error:  # pydantic's are ValueErrors too
        raise ValueError(refusal(error, kind.config, as_field)) from None
    return Step(stage, str(name), config, tuple(axes.items()))


def _resolve(value: Any, values: Mapping[str, Scalar]) -> Any:
    """Replace references; a text that is one single reference takes its type (a number, true or false)."""

    def known(name: str) -> Scalar:
        if name not in values:
            raise ValueError(f"${{{name}}} is neither an earlier stage nor a value; known are {', '.join(values)}")
        return values[name]

    if isinstance(value, list):
        return [_resolve(item, values) for item in value]
    if not isinstance(value, str):
        return value
    if whole := _REFERENCE.fullmatch(value):
        return known(whole[1])
    return _REFERENCE.sub(lambda match: _shown(known(match[1])), value)
