"""Environments for the libraries that we are compared with, pinned, beside ours and never in it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

TRL = "trl==1.16.0"


def environment(*requirements: str) -> str:
    """The Python of a virtual environment with these packages on top of what ours has (torch, transformers, …)."""
    folder = Path(__file__).parents[1] / "runs" / "peers" / "-".join(r.replace("==", "-") for r in requirements)
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        site = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages/ours.pth"
        (folder / site).write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", *requirements], check=True)
    return str(python)
