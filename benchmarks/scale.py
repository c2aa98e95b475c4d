"""Neither memory nor the cost of a row may grow with the rows: data commands on files of up to 1,000,000 records.

    python benchmarks/scale.py [--rows 1000 10000 100000 1000000] [--words 150] [--limit 300] [--folder DIR]
                               [--commands generate label …]

Prompts are made, `generate` and `label` run with the fake engine, and each command is a process of its own, whose peak
memory the operating system tells when it ends. `label, resumed`: the same command again after its last row was torn,
so that it reads back every id that stands in the output. `label, ray`: the same by `--engine ray`, two replicas of the
fake engine on a cluster of this machine; the memory is the driver's.

What a command takes for one row (a cluster's start, imports) is taken off before the cost of a row is told. Ends with
exit code 1 where a peak is above `--limit` MB, where the largest file takes over 100 MB more than the smallest, or
where a row of the largest costs over 20 % more than one of the smallest that is not mostly a start.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

FLAT = 100  # MB
DEARER = 1.2  # a row of the largest file against one of a small file
START = 1 / 3  # of a run's time at most, for the cost of its rows to be more than the noise of a start


def measured(*arguments: str) -> tuple[float, float]:
    """Run `rlaif …`: (seconds, peak MB)."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "rlaif_cli", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = process.stderr.read().decode("utf-8", "replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3):
        sys.exit(f"rlaif {' '.join(arguments)} failed:\n{said[-2000:]}")
    return time.monotonic() - started, usage.ru_maxrss / 1024


def write_prompts(path: Path, rows: int, words: int) -> None:
    vocabulary = [f"{a}{b}" for a in "bdfgklmnprstvz" for b in ("an", "el", "ing", "or", "ust", "ake")]
    chance = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            prompt = " ".join(chance.choices(vocabulary, k=words))
            file.write(json.dumps({"id": f"prompt-{number}", "prompt": prompt}) + "\n")


def tear_last_row(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


def commands(folder: Path) -> dict[str, Callable[[], tuple[float, float]]]:
    prompts, candidates, preferences = (str(folder / f"{name}.jsonl") for name in ("prompts", "candidates", "prefs"))
    label = ("label", candidates, "--judge", "fake", "--constitution", "helpfulness", "-o", preferences)
    ray = ("--engine", "ray", "--replicas", "2", "-o", str(folder / "ray.jsonl"))

    def resumed() -> tuple[float, float]:
        tear_last_row(Path(preferences))
        return measured(*label)

    return {
        "generate": lambda: measured("generate", prompts, "--model", "fake", "-n", "2", "-o", candidates),
        "label": lambda: measured(*label),
        "label, resumed": resumed,
        "label, ray": lambda: measured(*label[:-2], *ray),
        "data validate": lambda: measured("data", "validate", preferences),
        "data stats": lambda: measured("data", "stats", preferences),
        "audit": lambda: measured("audit", preferences),
    }


def all_measured(rows: int, options: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """Of each command: seconds, peak MB, and MB of its input."""
    with tempfile.TemporaryDirectory(prefix="rlaif-scale-", dir=options.folder) as name:
        folder = Path(name)
        write_prompts(folder / "prompts.jsonl", rows, options.words)
        found = {}
        for command, run in commands(folder).items():
            if command in options.commands:
                source = {"generate": "prompts", "label": "candidates"}.get(command.split(",")[0], "prefs")
                found[command] = (*run(), (folder / f"{source}.jsonl").stat().st_size / 1e6)
        return found


def main() -> None:
    names = list(commands(Path()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--words", type=int, default=150, help="of a prompt; 150 make preferences of about 1.2 KB")
    parser.add_argument("--limit", type=float, default=300)
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder, if not given")
    parser.add_argument("--commands", nargs="+", default=names, choices=names)
    options = parser.parse_args()
    peaks: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    starts = {command: seconds for command, (seconds, _, _) in all_measured(1, options).items()}
    print(
        "| command | rows | input, MB | seconds | of which start | µs per row | peak, MB |", "|---" * 7 + "|", sep="\n"
    )
    for rows in options.rows:
        for command, (seconds, peak, size) in all_measured(rows, options).items():
            cost = 1e6 * (seconds - starts[command]) / rows
            peaks.setdefault(command, []).append(peak)
            costs.setdefault(command, []).extend([cost] if starts[command] <= START * seconds else [])
            cells = (
                command,
                rows,
                f"{size:.0f}",
                f"{seconds:.1f}",
                f"{starts[command]:.1f}",
                f"{cost:.0f}",
                f"{peak:.0f}",
            )
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    large = [name for name, found in peaks.items() if max(found) > options.limit or found[-1] > found[0] + FLAT]
    dear = [name for name, found in costs.items() if found and found[-1] > DEARER * found[0]]
    print(f"\nabove {options.limit:.0f} MB, or not flat: {', '.join(large) or 'none'}")
    print(f"a row costs over {DEARER - 1:.0%} more in the largest file: {', '.join(dear) or 'none'}")
    sys.exit(bool(large or dear))


if __name__ == "__main__":
    main()
