"""The command line as a function: its streams, its exit code, and that a call leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import rlaif
from rlaif_cli.cli.app import main
from rlaif_cli.engines.fake import FakeEngine
from rlaif_cli.errors import RlaifWarning
from rlaif_cli.ui import messages
from rlaif_cli.ui.console import Console

Write = Callable[..., str]
PROMPTS = [{"id": f"q{i}", "prompt": f"What is number {i}?"} for i in range(4)]


@pytest.fixture
def stale(write_jsonl: Write) -> str:
    """Prompts that are not what their manifest says."""
    path = write_jsonl("prompts.jsonl", PROMPTS)
    Path(f"{path}.manifest.json").write_text(json.dumps({"sha256": "another"}))
    return path


def test_a_call_returns_its_exit_code_and_leaves_the_streams_of_python(write_jsonl: Write) -> None:
    before = sys.stdin, sys.stdout, sys.stderr
    path = write_jsonl("prompts.jsonl", PROMPTS)
    for arguments, code in (
        (("--version",), 0),
        (("generate", path, "--model", "fake"), 0),
        (("generate", "gone.jsonl", "--model", "fake"), 1),
        (("generate", "gone.jsonl", "--model", "fake", "--debug"), 1),
        (("generate", path), 2),
        (("nonsense",), 2),
    ):
        assert rlaif(*arguments).returncode == code, arguments
    assert (sys.stdin, sys.stdout, sys.stderr) == before


def test_streams_need_no_descriptor(write_jsonl: Write) -> None:
    said, errors = io.StringIO(), io.StringIO()
    assert main(["generate", write_jsonl("p.jsonl", PROMPTS), "--model", "fake"], stdout=said, stderr=errors) == 0
    assert [json.loads(line)["id"] for line in said.getvalue().splitlines()] == [row["id"] for row in PROMPTS]
    assert "generate: 4 rows" in errors.getvalue() or "4" in errors.getvalue()


def test_what_an_engine_prints_is_no_record(write_jsonl: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = FakeEngine.generate

    def noisy(self: Any, requests: Any, sampling: Any) -> Any:
        print("noise")
        yield from generate(self, requests, sampling)

    monkeypatch.setattr(FakeEngine, "generate", noisy)
    done = rlaif("generate", write_jsonl("p.jsonl", PROMPTS), "--model", "fake")
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [row["id"] for row in PROMPTS]
    assert "noise" in done.stderr


def test_two_calls_of_a_process_share_its_stdout(write_jsonl: Write) -> None:
    """Each guards the file descriptor while it runs, and restores it."""
    code = """
import os, sys
from rlaif_cli.cli.app import main
for _ in "ab":
    assert main(["generate", sys.argv[1], "--model", "fake"]) == 0
    os.write(1, b"between\\n")
"""
    command = [sys.executable, "-c", code, write_jsonl("p.jsonl", PROMPTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("{")] == ["between"] * 2, done.stderr
    assert lines[4] == lines[9] == "between" and len(lines) == 10


def test_a_command_leaves_nothing_of_the_process_changed(write_jsonl: Write, tmp_path: Path) -> None:
    def state() -> dict[str, Any]:
        return {
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
            "imports": sys.path[:],
            "excepthook": sys.excepthook,
            "random numbers": (random.getstate(), torch.get_rng_state().tolist()),
            "threads": torch.get_num_threads(),
        }

    rows = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no", "p_chosen": 0.8} for i in range(8)]
    command = ("train-rm", write_jsonl("p.jsonl", rows), "--model", "fake", "--batch-size", "4")
    assert rlaif(*command, "-o", "first", cwd=tmp_path).returncode == 0  # imports libraries, which set variables
    before = state()
    assert rlaif(*command, "-o", "second", cwd=tmp_path).returncode == 0
    assert state() == before


# ------------------------------------------------------------------------------------------------ warnings


def test_a_command_warns_once_and_so_does_the_next(stale: str) -> None:
    for _ in "ab":
        assert rlaif("generate", stale, "--model", "fake").stderr.count("it was changed after it was made") == 1


def test_the_api_within_a_command_is_silent(stale: str) -> None:
    import rlaif_cli

    errors = io.StringIO()
    with (
        messages.reported_to(Console(io.StringIO(), errors)),
        pytest.warns(RlaifWarning, match="it was changed after it was made"),
    ):
        rlaif_cli.generate(stale, model="fake")
    assert errors.getvalue() == ""


def test_threads_report_where_they_are_told_to() -> None:
    errors = io.StringIO()
    with messages.reported_to(Console(io.StringIO(), errors)):
        pool = ThreadPoolExecutor(1, initializer=messages.report_to, initargs=(messages.current(),))
    with pool, warnings.catch_warnings():
        warnings.simplefilter("error")
        pool.submit(messages.warn_once, "once").result()
        pool.submit(messages.warn_once, "once").result()
    assert errors.getvalue() == "warning: once\n"
