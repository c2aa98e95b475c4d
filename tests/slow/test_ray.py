"""`--engine ray`: the same rows as one engine, whatever happens to the replicas. One small cluster of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import rlaif_process, rows_of
from rlaif_cli.engines.base import Request, Sampling
from rlaif_cli.engines.fake import FakeEngine
from rlaif_cli.errors import EngineError, RlaifWarning

ray = pytest.importorskip("ray")

from rlaif_cli.engines.ray import RayEngine, _BatchQueue  # noqa: E402


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayEngine]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, address="local")
    engine = RayEngine(None, replicas=2, batch=32, sharing=2)
    yield engine
    engine.close()
    ray.shutdown()


def requests(count: int) -> list[Request]:
    return [Request(("row", i), [i % 250, i // 250, 7], seed=i, choices=[49, 50]) for i in range(count)]


@pytest.mark.slow
def test_every_request_is_answered_once_and_as_by_one_engine(cluster: RayEngine) -> None:
    wanted = requests(300)
    assert sorted(cluster.logprobs(wanted)) == sorted(FakeEngine().logprobs(wanted))
    sampling = Sampling(n=2, max_tokens=12)
    assert sorted(cluster.generate(wanted, sampling), key=str) == sorted(
        FakeEngine().generate(wanted, sampling), key=str
    )


@pytest.mark.slow
def test_requests_are_pulled_as_there_is_room(cluster: RayEngine) -> None:
    pulled = []
    results = cluster.logprobs(pulled.append(each) or each for each in requests(5_000))
    next(results)
    assert len(pulled) <= 4 * 32  # two replicas with two batches each
    results.close()  # type: ignore[attr-defined]  # a generator
    assert len(list(cluster.logprobs(requests(10)))) == 10  # what the stopped stream left behind harms nothing


@pytest.mark.slow
def test_a_lost_replica_costs_no_row(cluster: RayEngine) -> None:
    def stream() -> Iterator[Request]:
        for place, request in enumerate(requests(400)):
            if place == 150:
                ray.kill(next(each for each in cluster._replicas if each.ready).actor)
            yield request

    with pytest.warns(RlaifWarning, match="a replica was lost; its batches are reassigned"):
        found = sorted(cluster.logprobs(stream()))
    assert found == sorted(FakeEngine().logprobs(requests(400)))


def test_requests_that_kill_replica_after_replica_end_the_run() -> None:
    work = _BatchQueue(iter(requests(10)), 32)
    batch = requests(4)
    work.lost(batch)
    work.lost(batch)
    with pytest.raises(EngineError, match="3 replicas died one after another on the same 4 requests"):
        work.lost(batch)


@pytest.mark.slow
def test_a_model_that_no_node_has(cluster: RayEngine, tiny: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.symlink_to(tiny)
    engine = RayEngine.__new__(RayEngine)
    try:
        # The driver can read it; then it is gone, as on a node that does not share the disk.
        original = RayEngine._start
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RayEngine, "_start", lambda self: (gone.unlink(missing_ok=True), original(self))[1])
            with pytest.raises(EngineError, match="is not on the node"):
                engine.__init__(gone, replicas=1, sharing=4)  # type: ignore[misc]
    finally:
        engine.close()


def test_a_cluster_that_is_not_there(write_jsonl: Any, tmp_path: Path) -> None:
    prompts = write_jsonl("p.jsonl", [{"prompt": "a"}])
    done = rlaif_process(
        "generate", prompts, "--model", "fake", "--engine", "ray", "--ray-address", "127.0.0.1:1", cwd=tmp_path
    )
    assert done.returncode == 1 and "no Ray cluster can be reached" in done.stderr and "ray start --head" in done.stderr


@pytest.mark.parametrize("option", [["--replicas", "2"], ["--ray-address", "a:1"], ["--gpus-per-replica", "1"]])
def test_options_of_a_cluster_need_one(option: list[str], write_jsonl: Any) -> None:
    done = rlaif_process("generate", write_jsonl("p.jsonl", [{"prompt": "a"}]), "--model", "fake", *option)
    assert done.returncode == 2 and f"{option[0]} needs --engine ray" in done.stderr


@pytest.mark.slow
def test_a_node_is_lost_while_vllm_labels(tiny: Path, tmp_path: Path) -> None:
    """Two nodes, each with a real vLLM; the second is killed in the middle."""
    from ray.cluster_utils import Cluster

    rows = [{"id": f"r{i}", "prompt": f"Count to {i}.", "responses": [f"one {i}" * 9, "no"]} for i in range(400)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["label", "c.jsonl", "--judge", str(tiny), "--constitution", "helpfulness", "--min-mass", "0"]
    command += ["--dtype", "float32", "--engine-memory", "1", "--max-length", "4096"]
    assert rlaif_process(*command, "-o", "one.jsonl", cwd=tmp_path).returncode == 0

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = nodes.add_node(num_cpus=1)
    try:
        many = [*command, "--engine", "ray", "--ray-address", nodes.address, "--replica-batch", "16", "-o", "ray.jsonl"]
        run = subprocess.Popen(
            [sys.executable, "-m", "rlaif_cli", *many], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        wait_for_rows(tmp_path / "ray.jsonl", 60, run)
        kill_node(second)
        _, said = run.communicate(timeout=240)
    finally:
        nodes.shutdown()
    assert run.returncode == 0, said
    one, found = ({row["id"]: row for row in rows_of(tmp_path / name)} for name in ("one.jsonl", "ray.jsonl"))
    assert len(rows_of(tmp_path / "ray.jsonl")) == len(found) == 400 and found.keys() == one.keys()
    for name, row in one.items():
        chosen = found[name]["chosen"] == row["chosen"]
        p = found[name]["p_chosen"] if chosen else 1 - found[name]["p_chosen"]
        assert p == pytest.approx(row["p_chosen"], abs=1e-3)
    assert "a replica was lost" in said


def wait_for_rows(path: Path, count: int, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not path.exists() or len(path.read_bytes().splitlines()) < count:
        assert run.poll() is None and time.monotonic() < deadline, "no rows came"
        time.sleep(0.2)


def kill_node(node: Any) -> None:
    """As if its plug were pulled: the raylet and all its workers at once."""
    for process in node.live_processes():
        for each in [process[1].pid, *children(process[1].pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [each for child in map(int, found) for each in (child, *children(child))]
