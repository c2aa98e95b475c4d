"""Send what is logged to TensorBoard, trackio or Weights & Biases too; `metrics.jsonl` always has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif_cli.config.naming import option
from rlaif_cli.config.train import TrainConfig
from rlaif_cli.errors import UsageError

FOLDER = "tracker"  # in the run's folder; TensorBoard reads it


def check_trackers(config: TrainConfig) -> None:
    """Raises: UsageError: a tracker's package is not installed."""
    if not config.tracker:
        return
    from accelerate.tracking import get_available_trackers

    available = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in config.tracker if name not in available]:
        raise UsageError(f"{option('tracker')} {missing[0]} needs a package", hint=f"pip install {missing[0]}")


class Trackers:
    """The trackers of one run, each started with the run's settings."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self._trackers = [_start(name, folder) for name in config.tracker]
        settings = {name: _plain(value) for name, value in config.deciding().items()}
        for tracker in self._trackers:
            tracker.store_init_configuration(settings)

    def log(self, step: int, numbers: dict[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(numbers, step=step)

    def finish(self) -> None:
        for tracker in self._trackers:
            tracker.finish()


def _start(name: str, folder: Path) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # accelerate's trackers need it to know their process
    kind = LOGGER_TYPE_TO_CLASS[name]
    tracker = kind(folder.name, folder / FOLDER) if kind.requires_logging_directory else kind(folder.name)
    tracker.start()
    return tracker


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else str(value)
