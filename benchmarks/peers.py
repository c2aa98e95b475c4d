"""What benchmarks of training share: peers in pinned environments, a process for each contender, and its measures."""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

TRL = "trl==1.16.0"


def environment(*requirements: str, dependencies: bool = False) -> str:
    """The Python of a virtual environment with these packages on top of what ours has (torch, transformers, …).

    Ours itself, where it has them already, as on a machine that nothing can be fetched to.

    Args:
        dependencies: theirs too, in that environment; else ours have to do.
    """
    if all(_is_here(requirement) for requirement in requirements):
        return sys.executable
    folder = Path(__file__).parents[1] / "runs" / "peers" / "-".join(r.replace("==", "-") for r in requirements)
    python, whole = folder / "bin" / "python", folder / "whole"
    if not whole.exists():  # or an installation was stopped half-way
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        site = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages/ours.pth"
        (folder / site).write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
        command = [str(python), "-m", "pip", "install", "-q", *([] if dependencies else ["--no-deps"]), *requirements]
        subprocess.run(command, check=True)
        whole.touch()
    return str(python)


def _is_here(requirement: str) -> bool:
    name, _, version = requirement.partition("==")
    try:
        return importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        return False


def wait_for_device() -> None:
    """A GPU works on while Python goes ahead: without this a clock tells how long it took to ask."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gib() -> float:
    """This process's memory at most: its own on a CPU, torch's on a GPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run_apart(script: str, name: str, input_file: Path, options: dict[str, Any]) -> dict[str, Any]:
    """A contender in its own process, `script INPUT --child NAME --option value …`; its last line is the result."""
    python = environment(TRL) if name == "trl" else sys.executable
    command = [python, script, str(input_file), "--child", name]
    for option, value in options.items():
        if value is True:
            command.append(f"--{option.replace('_', '-')}")
        elif value is not False:
            command += [f"--{option.replace('_', '-')}", str(value)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=offline)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(name, json.dumps(found), file=sys.stderr, flush=True)  # a run that is stopped has told what it measured
    return found
