"""A node is lost while a cluster labels: are all rows there, once, with the labels of one engine?

    python benchmarks/node_loss.py PAIRS.jsonl … [--pairs 2000] [--dtype bfloat16] [--judge smollm2-135m]

The shortest pairs, labelled by one vLLM, then by `--engine ray` on two nodes with addresses of their own: the head
here, the other in a network namespace (root is needed; the namespace `rlaif-node` is made and removed). When half of
the rows are there, every process of the second node is killed at once. Ends with exit code 1 where a row is missing,
doubled, or further from the one engine's label than 0.03 (float32: 0.001).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMESPACE, HERE, THERE, PORT = "rlaif-node", "10.77.1.1", "10.77.1.2", 6391
NETWORK = f"""
ip netns add {NAMESPACE}
ip link add rlaif0 type veth peer name rlaif1
ip link set rlaif1 netns {NAMESPACE}
ip addr add {HERE}/24 dev rlaif0
ip link set rlaif0 up
ip netns exec {NAMESPACE} ip addr add {THERE}/24 dev rlaif1
ip netns exec {NAMESPACE} ip link set rlaif1 up
ip netns exec {NAMESPACE} ip link set lo up
"""
RAY = str(Path(sys.executable).with_name("ray"))
CLOSE = {"bfloat16": 0.03, "float32": 1e-3}


def shortest(paths: list[Path], count: int) -> list[dict[str, object]]:
    rows = [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines()]
    rows.sort(key=lambda row: len(row["response_a"]) + len(row["response_b"]) + len(json.dumps(row["prompt"])))
    return [
        {"id": row["id"], "prompt": row["prompt"], "responses": [row["response_a"], row["response_b"]]}
        for row in rows[:count]
    ]


def start_cluster(cores: int) -> None:
    for line in NETWORK.strip().splitlines():
        subprocess.run(line.split(), check=True)
    common = ["--num-cpus", str(cores), "--disable-usage-stats"]
    head = [RAY, "start", "--head", f"--node-ip-address={HERE}", f"--port={PORT}", "--include-dashboard=false"]
    node = ["ip", "netns", "exec", NAMESPACE, RAY, "start", f"--address={HERE}:{PORT}", f"--node-ip-address={THERE}"]
    for command in ([*head, *common], [*node, *common]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def processes_there() -> list[int]:
    found = subprocess.run(["ip", "netns", "pids", NAMESPACE], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def label(folder: Path, output: str, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rlaif_cli", "label", "pairs.jsonl", "-o", output, *options]
    return subprocess.Popen(command, cwd=folder, stderr=open(folder / f"{output}.log", "wb"))


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def lose_a_node(folder: Path, count: int, options: list[str]) -> int:
    """Label on two nodes, and kill one at half; returns the rows that were there."""
    cluster = ["--engine", "ray", "--ray-address", f"{HERE}:{PORT}", "--replica-batch", "64"]
    running = label(folder, "cluster.jsonl", *options, *cluster)
    while (there := len(rows(folder / "cluster.jsonl"))) < count / 2 and running.poll() is None:
        time.sleep(1)
    kill_all(processes_there())
    if running.wait():
        sys.exit((folder / "cluster.jsonl.log").read_text("utf-8")[-3000:])
    return there


def furthest(one: list[dict[str, object]], many: list[dict[str, object]]) -> float:
    """The largest difference of P(the same response is preferred)."""
    labels = {row["id"]: row for row in one}

    def p(row: dict[str, object]) -> float:
        same = row["chosen"] == labels[row["id"]]["chosen"]
        return float(row["p_chosen"]) if same else 1 - float(row["p_chosen"])  # type: ignore[arg-type]

    return max(abs(p(row) - float(labels[row["id"]]["p_chosen"])) for row in many)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--dtype", choices=list(CLOSE), default="bfloat16")
    parser.add_argument("--judge", default="smollm2-135m")
    options = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "token"
    subprocess.run([RAY, "get-auth-token", "--generate"], check=True, stdout=subprocess.DEVNULL)
    asked = ["--judge", options.judge, "--constitution", "helpfulness", "--dtype", options.dtype]
    asked += ["--max-length", "2048", "--engine-memory", "2"]
    with tempfile.TemporaryDirectory(prefix="rlaif-node-loss-") as name:
        folder = Path(name)
        wanted = shortest(options.files, options.pairs)
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wanted), "utf-8")
        if label(folder, "one.jsonl", *asked).wait():
            sys.exit((folder / "one.jsonl.log").read_text("utf-8")[-3000:])
        try:
            start_cluster(max(1, (os.cpu_count() or 2) // 2))
            there = lose_a_node(folder, len(wanted), asked)
        finally:
            subprocess.run([RAY, "stop", "--force"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            subprocess.run(["ip", "netns", "del", NAMESPACE])
        one, many = rows(folder / "one.jsonl"), rows(folder / "cluster.jsonl")
        distance = furthest(one, many)
        ids = {row["id"] for row in many}
        print(f"one engine {len(one)} rows, two nodes {len(many)} rows with {len(ids)} ids; a node killed at {there}")
        print(f"largest difference of a label, {options.dtype}: {distance:.3g} (bound {CLOSE[options.dtype]})")
        whole = len(many) == len(ids) == len(wanted) == len(one)
    sys.exit(not whole or distance > CLOSE[options.dtype])


if __name__ == "__main__":
    main()
