"""A worker process of a training run, started by `train/parallel/launch.py`.

Usage: `python -m rlaif_cli.worker STAGE SETTINGS QUIET DEBUG`.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import Any

import typer

from rlaif_cli.cli.app import ErrorMappingGroup, exit_with, main
from rlaif_cli.cli.stage import command_of
from rlaif_cli.registry import STAGES
from rlaif_cli.train.parallel import launch
from rlaif_cli.ui.console import Console

app = typer.Typer(cls=ErrorMappingGroup)


@app.callback()
def _root() -> None:
    """A callback makes this app a command group: only `ErrorMappingGroup` reports errors."""


@app.command()
def work(context: typer.Context, stage: str, settings: str, quiet: int, debug: int) -> None:
    _end_with_parent()
    console: Console = context.obj
    console.debug, console.quiet = bool(debug), bool(quiet) or not launch.is_main()
    console.guard_stdout()
    config: Any = STAGES[stage].config_class.model_validate_json(settings)
    launch.run_as_worker(config, command_of(stage), console, watched=True)


def _end_with_parent() -> None:
    """Terminate with the launcher, however it ends: an orphaned worker would keep the output folder locked."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    exit_with(main(["work", *sys.argv[1:]], program=app))
