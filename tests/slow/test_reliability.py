"""Short forms of `benchmarks/kill.py`, `fuzz.py` and `scale.py`; and disks that are full or read-only."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT, rlaif_process, rows_of


def benchmark(*arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_killed_stages_lose_nothing() -> None:
    said = benchmark("benchmarks/kill.py", "--kills", "6", "--stages", "generate", "label", "--rows", "1500")
    assert "6 kills: 0 lost, 0 duplicated, 0 different, 0 tracebacks" in said


@pytest.mark.parametrize("seed", [100, 101])
def test_nothing_broken_is_let_in(seed: int) -> None:
    said = benchmark("benchmarks/fuzz.py", "--inputs", "200", "--seed", str(seed))
    assert said.count("\n") == 2 + 11  # a row for every reader


def test_nothing_is_made_of_a_servers_broken_answers() -> None:
    said = benchmark("benchmarks/fuzz.py", "--servers", "--inputs", "100", "--seed", "7")
    assert said.count("\n") == 2 + 4 and "| generate |" in said


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    said = benchmark("benchmarks/scale.py", "--rows", "1000", "5000", "--folder", str(tmp_path))
    assert "above 300 MB, or not flat: none" in said
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted by root, on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_run_goes_on_once_there_is_room(small_disk: Path, write_jsonl: Any) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"id": f"q{i}", "prompt": f"Why {i}?"} for i in range(800)])
    output = small_disk / "candidates.jsonl"
    command = ("generate", prompts, "--model", "fake", "-o", str(output))
    done = rlaif_process(*command)
    assert (
        done.returncode == 1 and "No space left" in done.stderr and "rerun the same command: it resumes" in done.stderr
    )
    assert "Traceback" not in done.stderr and str(output) in done.stderr
    written = output.read_bytes()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    done = rlaif_process(*command)
    assert done.returncode == 0 and "already done" in done.stderr
    assert output.read_bytes().startswith(written[: written.rindex(b"\n") + 1])
    assert [row["id"] for row in rows_of(output)] == [f"q{i}" for i in range(800)]


@pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_full_disk_under_a_training_run(small_disk: Path, write_jsonl: Any, processes: str) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no", "p_chosen": 0.8} for i in range(20)]
    command = ("train-rm", write_jsonl("prefs.jsonl", rows), "--model", "fake", "-o", str(small_disk / "rm"))
    command += ("--num-processes", processes)
    done = rlaif_process(*command)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "a bug" not in done.stderr
    assert done.stderr.count("error:") == 1
    assert str(small_disk / "rm") in done.stderr and "No space left" in done.stderr
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    assert rlaif_process(*command).returncode == 0


def test_a_read_only_place(small_disk: Path, write_jsonl: Any) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"prompt": "Why?"}])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = rlaif_process("generate", prompts, "--model", "fake", "-o", str(small_disk / "out.jsonl"))
    assert (
        done.returncode == 1 and "read-only" in done.stderr and "-o" in done.stderr and "Traceback" not in done.stderr
    )
