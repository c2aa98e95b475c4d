"""Run one stage by its name."""

from __future__ import annotations

from typing import Any

from rlaif_cli.config.train import TrainConfig
from rlaif_cli.registry import STAGES
from rlaif_cli.train.parallel import launch
from rlaif_cli.ui.progress import ProgressCallback


def run_stage(name: str, config: Any, /, *, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
    """Run a stage. A training stage first closes the engines, then starts `--num-processes` processes."""
    if not isinstance(config, TrainConfig):
        return STAGES[name].run(config, engines, progress)
    engines.close()
    if config.num_processes == 1 or config.dry_run:
        return STAGES[name].run(config, engines, progress)
    try:
        return launch.start(name, config, quiet=True)
    except launch.AlreadyReported as error:
        raise launch.AlreadyReported(error.exit_code, "one of its processes failed, see above") from error
