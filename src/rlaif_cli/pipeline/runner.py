"""Run the stages of a pipeline, or some of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from rlaif_cli.config.naming import as_option
from rlaif_cli.data.atomic import read_json, write_json
from rlaif_cli.errors import RlaifError, UsageError
from rlaif_cli.pipeline.file import SUMMARY, PipelineFile, Step
from rlaif_cli.ui.progress import ProgressCallback


class RunStage(Protocol):
    def __call__(self, name: str, config: Any, /, *, progress: ProgressCallback) -> dict[str, Any]: ...


def select(steps: list[Step], only: Sequence[str] = (), start: str | None = None) -> list[Step]:
    """The steps of the stages in `only`, or of stage `start` and all after it; without either, all steps.

    Args:
        only: stages, or single steps of a matrix (`rm.seed=1`).

    Raises:
        UsageError: there is no such stage or step, or no step satisfies both.
    """
    known = list(dict.fromkeys(name for step in steps for name in (step.stage, step.name)))
    for name in [*only, *([start] if start else [])]:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(known)}"
            raise UsageError(f"the pipeline has no stage '{name}'", hint=hint)
    first = next((place for place, step in enumerate(steps) if start in (step.stage, step.name)), 0)
    found = [step for step in steps[first:] if not only or step.stage in only or step.name in only]
    if not found:
        raise UsageError(f"no stage of --only comes at or after '{start}'", hint="give --only or --from alone")
    return found


def spell(field: str) -> str:
    """A setting as those who write pipeline files know it; `--overwrite` is an option of the whole run."""
    return as_option(field) if field == "overwrite" else field


def _add_stage(error: RlaifError, step: Step) -> None:
    """Add to an error the stage that failed, how to set what it mentions in a pipeline, and how to resume."""
    error.spell = spell
    error.where = f"stage '{step.name}'" + (f": {error.where}" if error.where else "")
    hints = [error.hint] if error.hint else []
    for name in error.mentions():
        if name == "overwrite":
            hints.append(f"--from {step.name} --overwrite restarts this stage and those after it")
        elif name in type(step.config).model_fields:
            value = "true" if isinstance(getattr(step.config, name), bool) else "VALUE"
            hints.append(f"set {name} by `--set {step.stage}.{name}={value}`, or in the file by `{name}: {value}`")
    hints.append("finished work is saved; rerun the same command to resume")
    error.hint = "\n      ".join(hints)


def run(
    pipeline: PipelineFile,
    steps: list[Step],
    wanted: list[Step],
    run_folder: Path,
    run_stage: RunStage,
    stage: Callable[[int, Step], AbstractContextManager[ProgressCallback]],
    seconds: Callable[[], float],
) -> dict[str, Any]:
    """Run the wanted steps in order. Each resumes by itself, so a complete one does nothing.

    Args:
        run_stage: runs a stage by its name and config, and returns its results.
        stage: `stage(index, step)` is a context that is open while the step runs and yields its progress callback.

    Returns:
        The content of `<run>/summary.json`: the settings and results of every stage, those of stages that are not
        wanted now from an earlier run.
    """
    summary: dict[str, Any] = {"name": pipeline.name, "description": pipeline.description, "stages": {}}
    hint = "remove it; it is rewritten after every stage"
    before = (
        read_json(run_folder / SUMMARY, hint=hint, stages=dict)["stages"] if (run_folder / SUMMARY).exists() else {}
    )
    for index, step in enumerate(steps):
        if step not in wanted:
            summary["stages"] |= {step.name: before[step.name]} if step.name in before else {}
            continue
        started = seconds()
        with stage(index, step) as progress:
            try:
                numbers = run_stage(step.kind, step.config, progress=progress)
            except RlaifError as error:
                _add_stage(error, step)
                raise
        summary["stages"][step.name] = {
            "run": step.kind,
            "settings": step.config.shown(),
            "seconds": round(seconds() - started, 1),
            "results": numbers,
        }
        write_json(run_folder / SUMMARY, summary)
    return summary
