"""metrics.jsonl: one row per step, also if the run was resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from rlaif_cli.config.train import TrainConfig
from rlaif_cli.data.atomic import cannot_write
from rlaif_cli.data.torn_lines import drop_torn_line
from rlaif_cli.train.parallel.distributed import is_main
from rlaif_cli.train.runtime.trackers import Trackers


def drop_rows_after(path: Path, step: int) -> None:
    """Drop the rows of a log after the step that a run resumes from: they will be written again."""
    if not is_main() or not path.exists():
        return
    drop_torn_line(path)
    kept = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                if json.loads(line)["step"] > step:
                    break
                kept += len(line)
        os.truncate(path, kept)  # in one call: a kill while rewriting the file would lose it
    except OSError as error:
        raise cannot_write(path, error) from error


class MetricsLog:
    """Writes a row per step to `metrics.jsonl`, on the main process only.

    Args:
        resume_step: the step that the run resumes from; later rows are dropped.
    """

    def __init__(self, config: TrainConfig, folder: Path, *, resume_step: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        self._writes = is_main()
        if not self._writes:
            return
        drop_rows_after(self.path, resume_step)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed in `close`
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._trackers = Trackers(config, folder)

    def add(self, step: int, **numbers: Any) -> None:
        if not self._writes:
            return
        plain = {name: _plain(value) for name, value in numbers.items()}
        self._write({"step": step, **plain})
        self._trackers.log(step, plain)

    def close(self) -> None:
        if not self._writes:
            return
        self._file.close()
        self._trackers.finish()

    def _write(self, row: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _plain(value: Any) -> Any:
    if torch.is_tensor(value):
        value = value.item()
    return round(value, 6) if isinstance(value, float) else value
