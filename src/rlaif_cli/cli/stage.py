"""The subcommand of a stage: what `registry.py` names, else what every stage can be told and can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlaif_cli.cli import evaluate
from rlaif_cli.registry import STAGES, part
from rlaif_cli.ui.console import Console


def command_of(name: str) -> Callable[[Any, Console], int]:
    """`command(config, console) -> exit code` of a stage. Its module is imported when it is called."""

    def run(config: Any, console: Console) -> int:
        if own := STAGES[name].command:
            return int(part(own)(config, console))
        return _run(name, config, console)

    return run


def _run(name: str, config: Any, console: Console) -> int:
    from rlaif_cli.engines import EnginePool

    stage = STAGES[name]
    with EnginePool() as engines, console.progress(name) as progress:
        results = stage.run(config, engines, progress)
    if stage.makes == "result":
        return evaluate.report(console, config, results)
    console.say(f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in results.items()))
    return 0
