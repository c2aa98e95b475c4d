"""What every `rlaif eval` command prints."""

from __future__ import annotations

import json
from typing import Any

from rlaif_cli.errors import EXIT_PARTIAL
from rlaif_cli.ui.console import Console


def shown(name: str, found: dict[str, Any]) -> str:
    if found["low"] is None:
        return f"{name} {found['value']:.3f} (no interval: only one prompt)"
    return f"{name} {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def sample_size(found: dict[str, Any]) -> str:
    """How many items and prompts a number is based on."""
    return f"n {found['n']}" + (f" of {found['prompts']} prompts" if found["prompts"] != found["n"] else "")


def report(console: Console, config: Any, result: dict[str, Any]) -> int:
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
