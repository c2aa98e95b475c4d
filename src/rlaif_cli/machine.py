"""This machine: its processor, cores and memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path

GIB = 2**30


def machine() -> str:
    """The hardware that a throughput refers to: the GPU, or the processor and its cores."""
    try:
        import torch

        if torch.cuda.is_available():
            return f"{torch.cuda.get_device_name()} x{torch.cuda.device_count()}"
    except Exception:  # a broken torch build may raise anything; fall back to the processor
        pass
    return f"{_processor()}, {cores()} cores"


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
