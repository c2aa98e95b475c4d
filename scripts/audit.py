#!/usr/bin/env python3
"""Known vulnerabilities of what is installed in .venv, by pip-audit, in an environment of its own.

`make audit` runs this. Exit code 1 where a package has a known vulnerability. Where the advisories cannot be reached
(CI without the internet), it says so and ends with 0: that is no clean bill, and it says that too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / ".venv-audit"
BIN = "Scripts" if os.name == "nt" else "bin"


def installed() -> str:
    """The folder that holds .venv's packages."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    python = str(ROOT / ".venv" / BIN / "python")
    return subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()


def pip_audit() -> str:
    program = TOOL / BIN / "pip-audit"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(TOOL)], check=True)
        quiet = ["install", "-q", "--disable-pip-version-check", "pip-audit>=2.7"]
        subprocess.run([str(TOOL / BIN / "python"), "-m", "pip", *quiet], check=True)
    return str(program)


def main() -> int:
    try:
        done = subprocess.run([pip_audit(), "--path", installed(), "-f", "json"], capture_output=True, text=True)
        packages = json.loads(done.stdout)["dependencies"]
    except subprocess.CalledProcessError as error:
        print(f"audit: nothing was audited, pip-audit cannot be set up: {error}")
        return 0
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"audit: nothing was audited, the advisories cannot be reached: {last}")
        return 0
    audited = [package for package in packages if "vulns" in package]
    found = [(package, fault) for package in audited for fault in package["vulns"]]
    for package, fault in found:
        fixed = ", ".join(fault["fix_versions"]) or "no version yet"
        print(f"audit: {package['name']} {package['version']}: {fault['id']}; fixed in {fixed}")
    print(f"audit: {len(audited)} of {len(packages)} packages audited, {len(found)} known vulnerabilities")
    if not audited:
        print("audit: nothing was audited: the advisories know none of them, or cannot be reached")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
