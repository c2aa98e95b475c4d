"""A process that `train/parallel/launch.py` starts: `python -m rlaif_cli.worker STAGE SETTINGS QUIET DEBUG`."""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import Any

import typer

from rlaif_cli.cli import ppo, sft, train_rm
from rlaif_cli.cli.app import ErrorMappingGroup, main
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.config.train import RewardModelConfig, SftConfig, TrainConfig
from rlaif_cli.train.parallel import launch
from rlaif_cli.ui import console

_STAGES: dict[str, tuple[type[TrainConfig], Any]] = {
    "sft": (SftConfig, sft.run),
    "train-rm": (RewardModelConfig, train_rm.run),
    "ppo": (PPOConfig, ppo.run),
}

app = typer.Typer(cls=ErrorMappingGroup)


@app.callback()
def _root() -> None:
    """A callback makes this a group: only groups map errors to exit codes."""


@app.command()
def work(stage: str, settings: str, quiet: int, debug: int) -> None:
    _end_with_parent()
    launch.be_quiet()
    console.debug, console.quiet = bool(debug), console.quiet or bool(quiet)
    console.guard_stdout()
    config, run = _STAGES[stage]
    launch.as_one_of_several(config.model_validate_json(settings), run, watched=True)


def _end_with_parent() -> None:
    """However the one that started this process ends: training without a command behind it would hold the output."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    sys.argv.insert(1, "work")
    main(app)
