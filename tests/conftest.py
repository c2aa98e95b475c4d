"""Fixtures for every test: tiny models, files, scripted servers. Functions are in helpers.py."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chat_server import Server
from helpers import rlaif

# vLLM reads these once, when it is imported; the tests of one process share one small cache.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a core; tiny models are also faster on one thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama over bytes."""
    from rlaif_cli.models import tiny

    return tiny.build(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Faster for a tiny model, and sums are always in the same order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium, where the machine has one."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=flags)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    """Rows (or raw lines) to a file in tmp_path; returns its path."""

    def write(name: str, rows: list[Any]) -> str:
        path = tmp_path / name
        lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_text("".join(line + "\n" for line in lines), "utf-8")
        return str(path)

    return write


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts scripted chat servers, see `Server`."""
    made: list[Server] = []

    def start(*arguments: Any, **options: Any) -> Server:
        made.append(Server(*arguments, **options))
        return made[-1]

    yield start
    for server in made:
        server.close()


@pytest.fixture
def label(write_jsonl: Callable[..., str], tmp_path: Path) -> Callable[..., Any]:
    """Runs `rlaif label` with a scripted server as the judge of "gold" and "lead"; (what it did, its output)."""

    def run(server: Server, *options: str, count: int = 30) -> Any:
        rows = [
            {"id": str(i), "prompt": f"q{i}", "responses": ["gold", "lead"] if i % 2 else ["lead", "gold"]}
            for i in range(count)
        ]
        path, output = write_jsonl("candidates.jsonl", rows), str(tmp_path / "prefs.jsonl")
        command = ("label", path, "-o", output, "--engine", "openai", "--base-url", server.url, "--judge", "judge")
        return rlaif(*command, "--constitution", "helpfulness", *options), Path(output)

    return run
