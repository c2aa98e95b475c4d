#!/usr/bin/env python3
"""Write constraints.txt: the versions that are in .venv, where the tests have passed with them.

`make constraints` runs this. uv resolves pyproject.toml for every Python and system that it admits, and keeps the
versions of .venv wherever they fit; where they do not, the line has a marker (numpy 2.3 needs Python 3.11, so Python
3.10 gets an older one). `make setup` then installs these versions.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import setup

EXTRAS = ("cpu", "dev", "docs")
# Builds of torch for CUDA pin these, each its own; on a CPU none of them is used (vLLM disables triton there).
LEFT_TO_TORCH = ("triton", "nvidia-", "cuda-")
HEADER = """\
# The versions that were tested, on Python {python}, {system} ({machine}), with vLLM for CPUs. Lines for other Pythons
# and systems hold what fits there, resolved and not tested. vLLM for GPUs needs other versions: it is set up without.
# Written by `make constraints`; see docs/releasing.md.
"""


def uv(*arguments: str | Path) -> str:
    command = [str(part) for part in (setup.PYTHON.with_name("uv"), "pip", *arguments)]
    variables = {**setup.environment(), **setup.uv_variables(setup.pip_configuration())}
    done = subprocess.run(command, cwd=setup.ROOT, env=variables, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout


def tested() -> dict[str, str]:
    """Every package in .venv with its version, without labels of a build such as +cpu."""
    lines = uv("freeze", "--python", setup.PYTHON, "--exclude-editable").splitlines()
    return {name: version.split("+")[0] for name, _, version in (line.partition("==") for line in lines)}


def resolve(versions: dict[str, str]) -> list[str]:
    """Lines of constraints for all Pythons and systems, with these versions wherever they fit."""
    with tempfile.TemporaryDirectory() as folder:
        output, overrides, excluded = (Path(folder) / name for name in ("constraints", "overrides", "excluded"))
        output.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
        overrides.write_text(setup.TORCH_CPU.split("+")[0])  # no index has torch's CPU build for all Pythons
        excluded.write_text("\n".join((*setup.CUDA_ONLY, "triton")))
        first = ".".join(map(str, setup.PYTHONS[0]))
        options = ["--universal", "--python-version", first, "--no-header", "--no-annotate", "--quiet"]
        options += [part for extra in EXTRAS for part in ("--extra", extra)]
        uv("compile", "pyproject.toml", *options, "--overrides", overrides, "--excludes", excluded, "-o", output)
        return output.read_text().splitlines()


def main() -> None:
    versions = tested()
    lines = [line for line in resolve(versions) if not line.startswith(LEFT_TO_TORCH)]
    resolved = {line.split()[0] for line in lines}
    names = {pin.partition("==")[0] for pin in resolved}
    for name, version in versions.items():
        if name in names and f"{name}=={version}" not in resolved:
            print(f"{name} {version} is in .venv, but something that rlaif needs does not admit it", file=sys.stderr)
    unfinished = setup.CONSTRAINTS.with_suffix(".tmp")
    python = "{}.{}".format(*sys.version_info)
    header = HEADER.format(python=python, system=platform.system(), machine=platform.machine())
    unfinished.write_text(header + "\n".join(lines) + "\n", encoding="utf-8")
    os.replace(unfinished, setup.CONSTRAINTS)
    print(f"{setup.CONSTRAINTS.name}: {len(names)} packages")


if __name__ == "__main__":
    main()
