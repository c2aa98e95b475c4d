"""What tests share: the command line, in this process or as one of its own, and a server of models."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif_cli.cli.app import main

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def rlaif(*arguments: str, stdin: str = "", cwd: Path | None = None) -> Done:
    """The command line in this process: what it says and its exit code."""
    streams = [_stream(text) for text in (stdin, "", "")]
    with working_folder(cwd) if cwd else contextlib.nullcontext():
        code = main(arguments, stdin=streams[0], stdout=streams[1], stderr=streams[2])
    return Done(code, *map(_written, streams[1:]))


def _stream(text: str) -> io.TextIOWrapper:
    """A text stream with a `buffer`, as those of a process are."""
    return io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8", "backslashreplace", newline="\n", write_through=True)


def _written(stream: io.TextIOWrapper) -> str:
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode()


@contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    """`contextlib.chdir`, which Python 3.10 does not have."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def rlaif_process(*arguments: str, stdin: str | None = None, cwd: Path | None = None, timeout: int = 300) -> Any:
    """The command line as a process of its own, for what concerns processes."""
    return subprocess.run(
        [sys.executable, "-m", "rlaif_cli", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
    )


def heed_interrupts() -> None:
    """As `preexec_fn`: tests that a shell runs in the background ignore SIGINT, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def rows_of(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


@contextmanager
def vllm_serve(model: Path, name: str, log: Path, *options: str) -> Iterator[str]:
    """`vllm serve`, a process of its own, until it answers; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", *options]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with open(log, "wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)
