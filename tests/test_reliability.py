"""Short forms of `benchmarks/kill.py`, `fuzz.py` and `scale.py`: the same commands, smaller."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT


def benchmark(*arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_killed_stages_lose_nothing() -> None:
    said = benchmark("benchmarks/kill.py", "--kills", "6", "--stages", "generate", "label", "train-rm")
    assert "6 kills: 0 lost, 0 doubled, 0 different, 0 tracebacks" in said


@pytest.mark.parametrize("seed", [100, 101])
def test_nothing_broken_is_let_in(seed: int) -> None:
    said = benchmark("benchmarks/fuzz.py", "--inputs", "200", "--seed", str(seed))
    assert said.count("\n") == 2 + 11  # a row for every reader


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    said = benchmark("benchmarks/scale.py", "--rows", "1000", "5000", "--folder", str(tmp_path))
    assert "above 300 MB, or not flat: none" in said
    assert not list(tmp_path.iterdir())
