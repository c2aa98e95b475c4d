"""rlaif eval alignment | win-rate | harmless-rate | reward-model | best-of-n | reward"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import typer

from rlaif_cli.cli.options import command
from rlaif_cli.config.base import StageConfig
from rlaif_cli.config.evaluate import (
    AlignmentConfig,
    BestOfNConfig,
    HarmlessRateConfig,
    RewardConfig,
    RewardModelEvalConfig,
    WinRateConfig,
)
from rlaif_cli.errors import EXIT_PARTIAL
from rlaif_cli.ui.console import Console

app = typer.Typer(help="Evaluate judges, reward models and policies.", no_args_is_help=True)


def shown(name: str, found: dict[str, Any]) -> str:
    if found["low"] is None:
        return f"{name} {found['value']:.3f} (no interval: only one prompt)"
    return f"{name} {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def sample_size(found: dict[str, Any]) -> str:
    """How many items and prompts a number is based on."""
    return f"n {found['n']}" + (f" of {found['prompts']} prompts" if found["prompts"] != found["n"] else "")


def _report(console: Console, config: Any, result: dict[str, Any]) -> int:
    """Print the result (to stdout if it has no file) and a summary line, and return the exit code."""
    if config.dry_run:
        console.say(f"{result['metric']}: {result['n']} to be scored" if result["n"] else "all inputs are readable")
        return 0
    if config.output == "-":
        console.records.write(json.dumps(result, ensure_ascii=False) + "\n")
    found = {name: each for name, each in result.items() if isinstance(each, dict) and "value" in each}
    estimates = [
        shown(name, each) + ("" if sample_size(each) == sample_size(result) else f" ({sample_size(each)})")
        for name, each in found.items()
    ]
    console.say(f"{result['metric']}: " + ", ".join([*estimates, sample_size(result)]))
    if openings := result.get("openings"):
        shares = (f"{side} {each['share']:.1%} with '{each['commonest']}'" for side, each in openings.items())
        console.say(f"most common opening: {', '.join(shares)}")
    if alone := result.get("prompts_of_one_side"):
        console.warn(f"{alone} prompts are in only one of the two files and are not counted")
    if alone := result.get("samples_of_one_side"):
        console.warn(f"{alone} responses have no counterpart in the other file and are not counted")
    unscored = result.get("unscored", 0)
    if unscored:
        console.warn(f"{unscored} items could not be scored and are not counted")
        return EXIT_PARTIAL
    return 0


def _evaluation(name: str) -> Callable[[Any, Console], int]:
    def run(config: Any, console: Console) -> int:
        from rlaif_cli.engines import EnginePool
        from rlaif_cli.registry import run_stage

        with EnginePool() as engines, console.progress(f"eval {name}") as progress:
            result = run_stage(f"eval {name}", config, engines=engines, progress=progress)
        return _report(console, config, result)

    return run


_EVALUATIONS: dict[str, type[StageConfig]] = {
    "alignment": AlignmentConfig,
    "win-rate": WinRateConfig,
    "harmless-rate": HarmlessRateConfig,
    "reward-model": RewardModelEvalConfig,
    "best-of-n": BestOfNConfig,
    "reward": RewardConfig,
}
for _name, _config in _EVALUATIONS.items():
    command(app, _name, _config, _evaluation(_name))
