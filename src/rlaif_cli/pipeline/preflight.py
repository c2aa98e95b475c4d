"""Find everything that would stop a run before its first stage spends compute.

This checks the files, constitutions, models and functions that a stage names and no earlier stage makes. Nothing is
started, converted or downloaded, except the config of a hub model; a function's file is executed to find the function.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from rlaif_cli.config.base import DATA_FIELDS, FUNCTION_FIELDS, StageConfig, function_place
from rlaif_cli.config.engine import GenerateConfig, ReviseConfig
from rlaif_cli.config.evaluate import WinRateConfig
from rlaif_cli.config.judge import JudgeConfig, LabelConfig
from rlaif_cli.config.naming import as_field
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.config.reward import RewardSourceConfig
from rlaif_cli.config.train import TrainConfig
from rlaif_cli.data import user_function
from rlaif_cli.data.inputs import files, is_remote, names_records
from rlaif_cli.engines import LOCAL, computing_engine
from rlaif_cli.errors import InputError, RlaifError
from rlaif_cli.judge import named_principles
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.judge.session import check_principles
from rlaif_cli.models.metadata import check_reward_model
from rlaif_cli.models.resolve import look_up
from rlaif_cli.pipeline.file import Step

Need = tuple[str, Callable[[str], object]]  # a name, and a check that raises RlaifError if it is unavailable


def check(path: str, steps: Collection[Step], wanted: Collection[Step]) -> None:
    """Check everything that the wanted steps of a pipeline need.

    Raises:
        RlaifError: something is missing; each error is listed once with the stages that it stops. Its class is
            that of the first error.
    """
    stopped: dict[str, list[str]] = {}  # error -> steps
    kinds = list[type[RlaifError]]()
    for step in wanted:
        for error in _errors(step, steps, wanted):
            error.spell = as_field
            text = f"{error} ({error.hint})" if error.hint else str(error)
            names = stopped.setdefault(text, [])
            names += [] if step.name in names else [step.name]
            kinds.append(type(error))
    if kinds:
        count = len({name for names in stopped.values() for name in names})
        what = f"{count} of {len(wanted)} stages cannot run; nothing was started"
        faults = [f"{', '.join(names)}: {text}" for text, names in stopped.items()]
        raise kinds[0](what, where=path, errors=faults)


def _errors(step: Step, steps: Collection[Step], wanted: Collection[Step]) -> Iterator[RlaifError]:
    for name, look in _needs(step.config):
        if any(_made_by(other, name) for other in wanted):
            continue
        maker = next((other.name for other in steps if other.output == name), None)
        if maker and not Path(name).exists():
            what = f"it is made by stage '{maker}', which is not being run"
            yield InputError(what, where=name, hint="run that stage too")
            continue
        try:
            look(name)
        except RlaifError as error:
            yield error


def _made_by(step: Step, name: str) -> bool:
    """Whether the step writes the file: its output, a file in it, or one named after it (`labels.unscored.jsonl`)."""
    output, path = Path(step.output), Path(name)
    beside = path.parent == output.parent and path.name.startswith(f"{output.stem}.")
    return path.is_relative_to(output) or beside


def _needs(config: Any) -> Iterator[Need]:
    for field in DATA_FIELDS:
        name = getattr(config, field, None)
        if name is None or (isinstance(config, LabelConfig) and field == "pairs"):
            continue
        if field not in ("a", "b") or names_records(name):
            yield name, _file
    for name in getattr(config, "reward_model", ()):
        yield name, _reward_model
    for field in FUNCTION_FIELDS:
        for spec in getattr(config, field, ()):
            yield function_place(spec)[0], lambda _, spec=spec: user_function.load(spec)  # type: ignore[misc]
    for part in _parts(config):
        yield from _constitution(part)
        yield from ((name, look_up) for name in _local_models(part))


def _file(name: str) -> None:
    if not is_remote(name):  # stdin can be read only once, and a remote file costs a download
        files(name)


def _reward_model(name: str) -> None:
    folder = look_up(name)
    if folder is not None:
        check_reward_model(folder)


def _parts(config: StageConfig) -> Iterator[StageConfig]:
    """The settings themselves, and those of the judges that a trainer uses."""
    yield config
    if isinstance(config, RewardSourceConfig) and config.judge is not None:
        yield config.reward_judge
    if isinstance(config, PPOConfig) and config.eval_judge is not None:
        yield config.eval_comparison


def _constitution(config: StageConfig) -> Iterator[Need]:
    if isinstance(config, JudgeConfig):
        yield config.constitution, lambda name: check_principles(config, load_constitution(name))
    if isinstance(config, ReviseConfig):
        drawn = config.principles == ("sample",)
        ids = ("all",) if drawn else config.principles
        yield config.constitution, lambda name: named_principles(load_constitution(name), ids)


def _local_models(config: Any) -> Iterator[str]:
    """The names of the models that are loaded locally, not on a server or the fake one."""
    asked: list[str] = []
    if isinstance(config, TrainConfig):
        yield config.model
    elif isinstance(config, GenerateConfig | ReviseConfig):
        asked = [config.model]
    elif isinstance(config, JudgeConfig):
        sides = (config.a, config.b) if isinstance(config, WinRateConfig) else ()
        asked = [*config.judge, *(side for side in sides if not names_records(side))]
    yield from (name for name in asked if computing_engine(config, name) in LOCAL)
