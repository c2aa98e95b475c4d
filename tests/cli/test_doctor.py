"""rlaif doctor: what it says of this machine is so, and what is missing is named with what mends it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from helpers import rlaif
from rlaif_cli.cli import diagnose


@pytest.mark.vllm
def test_on_this_machine() -> None:
    done = rlaif("doctor", "--json")
    found = {each["what"]: each for each in json.loads(done.stdout)["checks"]}
    assert done.returncode == (0 if all(each["level"] != "missing" for each in found.values()) else 1)
    assert found["vllm"]["level"] == "ok" and found["built-in model"]["level"] == "ok", found
    assert "`rlaif demo` can run here" in done.stderr or done.returncode == 1


def absent(*_: Any) -> None:
    return None


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        (lambda patch, tmp: patch.setattr(diagnose, "_version", absent), "vllm", "make setup"),
        (lambda patch, tmp: patch.setattr(diagnose, "memory_limit", lambda: 2.0), "memory", "--engine-memory"),
        (lambda patch, tmp: patch.setattr(importlib.util, "find_spec", absent), "built-in model", "pip install"),
        (lambda patch, tmp: patch.setenv("RLAIF_CACHE", "/proc/nowhere"), "disk of the cache", "RLAIF_CACHE"),
        (lambda patch, tmp: patch.setitem(diagnose.NEEDED_GIB, "disk", 1e9), "disk here", "free some space"),
    ],
)
def test_what_is_missing_is_named(
    change: Any, what: str, fix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if what != "vllm":  # its import takes seconds, and is not what is asked here
        monkeypatch.setattr(diagnose, "_vllm", lambda: diagnose.Finding("vllm", "ok", ""))
    change(monkeypatch, tmp_path)
    found = {each.what: each for each in diagnose.examine()}
    assert found[what].level == "missing" and fix in found[what].fix
    assert not diagnose.can_run(found.values())


def test_the_exit_code_says_whether_the_demo_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for level, code in (("note", 0), ("missing", 1)):
        finding = diagnose.Finding("memory", level, "too little", "buy some")  # type: ignore[arg-type]
        monkeypatch.setattr(diagnose, "examine", lambda finding=finding: [finding])
        done = rlaif("doctor")
        assert done.returncode == code and "too little" in done.stdout and "-> buy some" in done.stdout
