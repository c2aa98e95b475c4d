"""What benchmarks against other libraries share: pinned environments beside ours, and a process for each contender."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

TRL = "trl==1.16.0"


def environment(*requirements: str, dependencies: bool = False) -> str:
    """The Python of a virtual environment with these packages on top of what ours has (torch, transformers, …).

    Args:
        dependencies: theirs too, in that environment; else ours have to do.
    """
    folder = Path(__file__).parents[1] / "runs" / "peers" / "-".join(r.replace("==", "-") for r in requirements)
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        site = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages/ours.pth"
        (folder / site).write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
        command = [str(python), "-m", "pip", "install", "-q", *([] if dependencies else ["--no-deps"]), *requirements]
        subprocess.run(command, check=True)
    return str(python)


def run_apart(script: str, name: str, input_file: Path, options: dict[str, Any]) -> dict[str, Any]:
    """A contender in its own process, `script INPUT --child NAME --option value …`; its last line is the result."""
    python = environment(TRL) if name == "trl" else sys.executable
    command = [python, script, str(input_file), "--child", name]
    for option, value in options.items():
        command += [f"--{option.replace('_', '-')}", str(value)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=offline)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
