"""Memory must not grow with the rows: every data command on files of 10,000, 100,000 and 1,000,000 records.

    python benchmarks/scale.py [--rows 10000 100000 1000000] [--words 150] [--limit 300] [--folder DIR]

Prompts are made, `generate` and `label` run with the fake engine, and each command is a process of its own, whose peak
memory the operating system tells when it ends. `label, resumed`: the same command again after its last row was torn,
so that it reads back every id that stands in the output. Ends with exit code 1 where a peak is above `--limit` MB, or
where the largest file takes over 100 MB more than the smallest.
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

    def resumed() -> tuple[float, float]:
        tear_last_row(Path(preferences))
        return measured(*label)

    return {
        "generate": lambda: measured("generate", prompts, "--model", "fake", "-n", "2", "-o", candidates),
        "label": lambda: measured(*label),
        "label, resumed": resumed,
        "data validate": lambda: measured("data", "validate", preferences),
        "data stats": lambda: measured("data", "stats", preferences),
        "audit": lambda: measured("audit", preferences),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--words", type=int, default=150, help="of a prompt; 150 make preferences of about 1.2 KB")
    parser.add_argument("--limit", type=float, default=300)
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder, if not given")
    options = parser.parse_args()
    peaks: dict[str, list[float]] = {}
    print("| command | rows | input, MB | seconds | rows/s | peak, MB |", "|---" * 6 + "|", sep="\n", flush=True)
    for rows in options.rows:
        with tempfile.TemporaryDirectory(prefix="rlaif-scale-", dir=options.folder) as name:
            folder = Path(name)
            write_prompts(folder / "prompts.jsonl", rows, options.words)
            for command, run in commands(folder).items():
                seconds, peak = run()
                peaks.setdefault(command, []).append(peak)
                source = {"generate": "prompts", "label": "candidates"}.get(command.split(",")[0], "prefs")
                size = (folder / f"{source}.jsonl").stat().st_size / 1e6
                print(
                    f"| {command} | {rows} | {size:.0f} | {seconds:.1f} | {rows / seconds:.0f} | {peak:.0f} |",
                    flush=True,
                )
    too_much = [name for name, found in peaks.items() if max(found) > options.limit or found[-1] > found[0] + FLAT]
    print(f"\nabove {options.limit:.0f} MB, or not flat: {', '.join(too_much) or 'none'}")
    sys.exit(bool(too_much))


if __name__ == "__main__":
    main()
