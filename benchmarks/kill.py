"""Nothing lost: stages are killed at random moments and started again, until they are through.

    python benchmarks/kill.py [--kills 200] [--stages generate revise label train-rm ppo run] [--seed 0]
                              [--signals KILL TERM INT] [--model fake] [--rows 6000]

The result is compared with an uninterrupted run: data files row by row (`--model fake`) or id by id (any other
model, since a different batch size rounds differently), weights byte by byte, metrics and samples without their times.
One table row a stage:

    in the middle     kills after the first row or checkpoint was on the disk, before the last
    lost, duplicated  rows of the uninterrupted run that are missing; duplicated rows
    different         rows, weights or other files that are not what they should be
    litter            files that a kill left behind and that the finished run did not remove
    tracebacks        of a command that was stopped by Ctrl-C, or that resumed afterwards

Ends with exit code 1 if any but the first and `litter` is not 0.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Numbers that no two runs share, and files whose contents are made of them or name the run's folder.
_TIMES = re.compile(r"seconds|per_second|time")
_NOT_COMPARED = re.compile(r"manifest\.json|summary\.json|report\.html|run\.json")


_ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # faster for a tiny model
_JUDGED = ["--constitution", "helpfulness", "--min-mass", "0"]


@dataclass
class Stage:
    """A command, by the folder it writes to."""

    name: str
    command: Callable[[Path], list[str]]
    seconds: float = 0.0  # of an uninterrupted run
    rows: int = 0
    expected: dict[str, Counter[str]] = field(default_factory=dict)


def rlaif(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rlaif_cli", *arguments]


def stages(folder: Path, model: str, rows: int, wanted: list[str]) -> list[Stage]:
    """The wanted stages on inputs of their own, large enough that a kill can meet them at work."""
    many, few = rows if model == "fake" else 64, 48
    prompts, some = folder / "prompts.jsonl", folder / "some.jsonl"
    for path, count in ((prompts, many), (some, few)):
        asked = ({"id": f"q{i}", "prompt": f"What should I know about subject {i}?"} for i in range(count))
        path.write_text("".join(json.dumps(row) + "\n" for row in asked), "utf-8")
    prepare = [
        rlaif("generate", str(prompts), "--model", "fake", "-n", "3", "-o", str(folder / "candidates.jsonl")),
        rlaif("generate", str(some), "--model", "fake", "-n", "2", "-o", str(folder / "few.jsonl")),
        rlaif("label", str(folder / "few.jsonl"), "--judge", "fake", *_JUDGED, "-o", str(folder / "preferences.jsonl")),
    ]
    if "ppo" in wanted:
        prepare += [rlaif("train-rm", str(folder / "preferences.jsonl"), "--model", "fake", "-o", str(folder / "rm"))]
    for command in prepare:
        subprocess.run(command, check=True, capture_output=True, env=_ONE_THREAD)
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(json.dumps(_pipeline(some)), "utf-8")
    short = ["--max-tokens", "24"] if model != "fake" else []
    training = ["--model", "fake", "--save-every", "1"]
    rm = [str(folder / "preferences.jsonl"), *training, "--epochs", "4"]
    small = ["--prompts-per-step", "8", "-n", "2", "--max-tokens", "16", "--steps", "12"]
    ppo = [str(some), *training, "--reward-model", str(folder / "rm"), "--engine", "fake", *small]
    candidates = str(folder / "candidates.jsonl")
    every = [
        Stage("generate", lambda out: rlaif("generate", str(prompts), "--model", model, *short, *_to(out))),
        Stage("revise", lambda out: rlaif("revise", str(prompts), "--model", model, *_JUDGED[:2], *short, *_to(out))),
        Stage("label", lambda out: rlaif("label", candidates, "--judge", model, *_JUDGED, *_to(out))),
        Stage("train-rm", lambda out: rlaif("train-rm", *rm, "-o", str(out / "out"))),
        Stage("ppo", lambda out: rlaif("ppo", *ppo, "-o", str(out / "out"))),
        Stage("run", lambda out: rlaif("run", str(pipeline), "-o", str(out / "out"))),
    ]
    return [stage for stage in every if stage.name in wanted]


def _to(out: Path) -> list[str]:
    return ["-o", str(out / "out.jsonl")]


def _pipeline(prompts: Path) -> dict[str, Any]:
    training = {"model": "fake", "save_every": 1}
    return {
        "name": "kill",
        "stages": {
            "candidates": {"run": "generate", "prompts": str(prompts), "model": "fake"},
            "preferences": {"run": "label", "candidates": "${candidates}", "judge": "fake"}
            | {"constitution": "helpfulness"},
            "rm": {"run": "train-rm", "preferences": "${preferences}", **training},
            "policy": {"run": "ppo", "prompts": str(prompts), "reward_model": "${rm}", "engine": "fake", **training}
            | {"steps": 6, "prompts_per_step": 8, "n": 2, "max_tokens": 16},
        },
    }


# ------------------------------------------------------------------------------------------------- what is there


def contents(folder: Path, whole_rows: bool) -> dict[str, Counter[str]]:
    """By file: what stands in it, each thing with its count."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _NOT_COMPARED.search(path.name))
    return {str(path.relative_to(folder)): Counter(_things(path, whole_rows)) for path in files}


def _things(path: Path, whole_rows: bool) -> Iterable[str]:
    if path.suffix != ".jsonl":
        return [hashlib.sha256(path.read_bytes()).hexdigest()]
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [json.dumps(_timeless(row) if whole_rows else row["id"], sort_keys=True) for row in rows]


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not _TIMES.search(name)}


def compared(expected: dict[str, Counter[str]], found: dict[str, Counter[str]]) -> Counter[str]:
    """lost, duplicated, different and litter, of all files."""
    result: Counter[str] = Counter()
    for name in expected.keys() | found.keys():
        if name not in expected:
            result["litter"] += 1
            continue
        before, now = expected[name], found.get(name, Counter())
        missing, added = before - now, now - before
        twice = sum(1 for thing in added if thing in before)
        others = len(added) - twice  # each stands in the place of one that is missing
        result["duplicated"] += twice
        result["different"] += others
        result["lost"] += max(0, missing.total() - others)
    return result


# -------------------------------------------------------------------------------------------------------- the killing


def started(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=_ONE_THREAD,
        stdout=subprocess.DEVNULL,
        stderr=open(log, "ab"),
        # A shell that runs this in the background has it ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def measure(stage: Stage, folder: Path, whole_rows: bool) -> None:
    """An uninterrupted run: what is expected, and how long it takes."""
    folder.mkdir()
    begun = time.monotonic()
    done = subprocess.run(stage.command(folder), capture_output=True, text=True, env=_ONE_THREAD)
    if done.returncode not in (0, 3):
        sys.exit(f"{stage.name} fails without being killed:\n{done.stderr}")
    stage.seconds = time.monotonic() - begun
    stage.expected = contents(folder, whole_rows)
    stage.rows = sum(things.total() for name, things in stage.expected.items() if name.endswith(".jsonl"))


def killed_once(stage: Stage, folder: Path, name: str, chance: random.Random, log: Path, counts: Counter[str]) -> bool:
    """Start the command and kill it at a random moment; False: it had ended before."""
    process = started(stage.command(folder), log)
    try:
        process.wait(timeout=chance.uniform(0, stage.seconds))
        _checked(process, log, counts)
        return False
    except subprocess.TimeoutExpired:
        pass
    process.send_signal(getattr(signal, f"SIG{name}"))
    process.wait(timeout=120)
    if process.returncode in (0, 3):
        return False
    counts[f"SIG{name}"] += 1
    counts["in the middle"] += any(path.is_file() and path.stat().st_size for path in folder.rglob("*.*"))
    return True


def _checked(process: subprocess.Popen[bytes], log: Path, counts: Counter[str]) -> None:
    if process.returncode not in (0, 3):
        counts["different"] += 1
        print(f"exit code {process.returncode}: {log.read_text('utf-8', 'replace')[-2000:]}", file=sys.stderr)


def kill(stage: Stage, kills: int, signals: list[str], chance: random.Random, work: Path, whole: bool) -> Counter[str]:
    """`kills` kills of one stage; every run is killed once or more often, and then goes on to its end."""
    counts: Counter[str] = Counter()
    while (so_far := sum(counts[f"SIG{name}"] for name in signals)) < kills:
        folder, log = work / "killed", work / "stderr"
        shutil.rmtree(folder, ignore_errors=True)
        log.unlink(missing_ok=True)
        folder.mkdir()
        counts["runs"] += 1
        name = signals[so_far % len(signals)]
        while so_far < kills and killed_once(stage, folder, name, chance, log, counts) and chance.random() < 0.5:
            so_far += 1
        process = started(stage.command(folder), log)
        process.wait(timeout=600)
        _checked(process, log, counts)
        counts.update(compared(stage.expected, contents(folder, whole)))
        said = log.read_text("utf-8", "replace")
        counts["tracebacks"] += said.count("Traceback") if "rlaif_cli" in said else 0  # else Python's own start
    return counts


COLUMNS = ("runs", "SIGKILL", "SIGTERM", "SIGINT", "in the middle")
FAULTS = ("lost", "duplicated", "different", "tracebacks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stages", nargs="+", default=["generate", "revise", "label", "train-rm", "ppo", "run"])
    parser.add_argument("--signals", nargs="+", default=["KILL", "TERM", "INT"])
    parser.add_argument("--model", default="fake")
    parser.add_argument("--rows", type=int, default=6000, help="prompts of the data stages; another model takes 64")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, whole, totals = random.Random(options.seed), options.model == "fake", Counter[str]()
    with tempfile.TemporaryDirectory(prefix="rlaif-kill-") as name:
        work = Path(name)
        wanted = stages(work, options.model, options.rows, options.stages)
        print("| stage | rows | seconds |", " | ".join((*COLUMNS, *FAULTS, "litter")), "|")
        print("|---" * (3 + len(COLUMNS) + len(FAULTS) + 1) + "|", flush=True)
        for place, stage in enumerate(wanted):
            measure(stage, work / stage.name, whole)
            share = options.kills * (place + 1) // len(wanted) - options.kills * place // len(wanted)
            counts = kill(stage, share, options.signals, chance, work, whole)
            totals.update(counts)
            cells = [counts[column] for column in (*COLUMNS, *FAULTS, "litter")]
            print(
                f"| {stage.name} | {stage.rows} | {stage.seconds:.1f} |", " | ".join(map(str, cells)), "|", flush=True
            )
    kills = sum(totals[f"SIG{name}"] for name in ("KILL", "TERM", "INT"))
    print(f"\n{kills} kills:", ", ".join(f"{totals[fault]} {fault}" for fault in FAULTS))
    sys.exit(any(totals[fault] for fault in FAULTS))


if __name__ == "__main__":
    main()
