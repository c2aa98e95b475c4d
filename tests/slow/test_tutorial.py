"""The tutorial's commands run as they are written, one shell, real vLLM and the built-in model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT, rows_of


@pytest.mark.slow
def test_the_tutorial_runs_as_written(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(re.findall(r"^```sh", text, re.MULTILINE)) >= 8
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Exit code 3 is "done, some rows could not be used": no failure, and no reason to stop either.
    script = "set -uo pipefail\ntrap 'code=$?; [ $code -eq 3 ] || exit $code' ERR\n" + "\n".join(blocks)
    done = subprocess.run(
        [bash, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path},
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    folder = tmp_path / "runs" / "tutorial"
    assert len(rows_of(folder / "preferences.jsonl")) == 12 and len(rows_of(folder / "after.jsonl")) == 8
    assert "What next" in (folder / "labels.html").read_text("utf-8")
    assert "alignment: accuracy" in done.stderr and "lineage" not in done.stderr
