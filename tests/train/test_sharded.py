"""Training in two processes: the same numbers as in one, whatever is killed, resumed or wrong in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers import ROOT, heed_interrupts, rlaif_process, rows_of
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.config.train import RewardModelConfig, SftConfig
from rlaif_cli.engines import EnginePool, open_engine
from rlaif_cli.engines.base import Request, Sampling
from rlaif_cli.errors import UsageError
from rlaif_cli.train.evaluations import EVALUATIONS
from rlaif_cli.train.nn.packing import Group, distribute
from rlaif_cli.train.parallel.distributed import Rendezvous, assigned_gpu, leave, world_size
from rlaif_cli.train.ppo import train_ppo
from rlaif_cli.train.reward_model import train_reward_model
from rlaif_cli.train.reward_source import reward_source
from rlaif_cli.train.sft import train_sft

pytestmark = pytest.mark.usefixtures("one_thread")

# Five pairs a batch and few tokens at once: an odd number of micro-batches, so that one process has fewer.
RM = {"batch_size": 5, "tokens_per_batch": 128, "epochs": 4, "eval_fraction": 0.2, "save_every": 3, "lr": 1e-3}
PPO = {
    "engine": "transformers",
    "steps": 20,
    "prompts_per_step": 3,
    "n": 2,
    "max_tokens": 5,
    "tokens_per_batch": 64,  # a prompt at once: one process has two, the other one
    "save_every": 7,
    "lr": 1e-3,
}
FEW = {"steps": 3, "save_every": 1}
JUDGED = {"judge": "fake", "constitution": "helpfulness"}

# name -> stage, settings; each is run by one process and by two.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "rm": ("train-rm", RM),
    "rm-best": ("train-rm", RM | {"patience": 1, "eval_every": 2, "epochs": 2, "gradient_checkpointing": True}),
    "rm-lora": ("train-rm", RM | {"lora_rank": 4, "epochs": 1}),
    "sft": ("sft", {"batch_size": 5, "tokens_per_batch": 64, "eval_fraction": 0.2, "lr": 3e-3}),
    "ppo": ("ppo", PPO | JUDGED),
    "ppo-rm": ("ppo", PPO | FEW | {"reward_model": "rm", "advantage": "reinforce", "minibatches": 2}),
    # Scores that come from a row's own fields: a process must not give a response those of another's rows.
    "ppo-function": ("ppo", PPO | {"steps": 6} | JUDGED | {"reward_function": "own.py:size", "max_unscored": 0.5}),
    "ppo-lora": ("ppo", PPO | FEW | JUDGED | {"lora_rank": 4}),
    "ppo-chosen": (
        "ppo",
        PPO
        | FEW
        | JUDGED
        | {"advantage": "rloo", "eval_judge": "fake", "eval_every": 2, "eval_function": "own.py:size"},
    ),
}


def train(stage: str, name: str, tiny: Path, folder: Path, stop: int | None = None, **settings: Any) -> None:
    """A run into `folder`/`name`, by this process or with the others; interrupted after step `stop`."""
    shared = {"model": str(tiny), "output": str(folder / name), "precision": "fp32"}
    shared |= settings

    def progress(done: int, *_: Any) -> None:
        if done == stop:
            raise InterruptedError

    try:
        if stage == "train-rm":
            config = RewardModelConfig(**shared, preferences=str(folder.parent / "preferences.jsonl"))
            train_reward_model(config, progress=progress)
        elif stage == "sft":
            train_sft(SftConfig(**shared, records=str(folder.parent / "preferences.jsonl")), progress=progress)
        else:
            if "reward_model" in shared:
                shared["reward_model"] = str(folder.parent / "one" / shared["reward_model"])
            for name in {"reward_function", "eval_function"} & shared.keys():
                shared[name] = str(folder.parent / shared[name])
            tuned = PPOConfig(**shared, prompts=str(folder.parent / "prompts.jsonl"))
            compare = _longer_is_better if tuned.eval_judge else None
            with EnginePool() as engines:
                train_ppo(
                    tuned, lambda load_adapter: reward_source(tuned, engines, load_adapter), compare, progress=progress
                )
    except InterruptedError:
        pass


def _longer_is_better(texts: Any) -> list[float | None]:
    return [0.5 + 0.5 * ((len(a) > len(b)) - (len(a) < len(b))) for _, a, b in texts]


def preference(index: int) -> dict[str, Any]:
    return {
        "id": f"r{index}",
        "prompt": [{"role": "user", "content": f"Question {index % 10}?"}],
        "chosen": [{"role": "assistant", "content": "good " * (1 + index % 3) + str(index)}],
        "rejected": [{"role": "assistant", "content": "bad" + "!" * (index % 4)}],
        "p_chosen": 0.8,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def together(script: str, *arguments: str) -> None:
    """Two processes, started by torchrun, that run Python of this file."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = os.pathsep.join([str(Path(__file__).parent), str(ROOT / "tests"), *sys.path])
    environment = os.environ | {"PYTHONPATH": found, "OMP_NUM_THREADS": "1"}
    command += [__file__, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of RUNS by one process (`one/`) and by two (`two/`), and some that were begun by the one, the other."""
    folder = tmp_path_factory.mktemp("sharded")
    write(folder / "preferences.jsonl", [preference(i) for i in range(26)])
    write(folder / "prompts.jsonl", [{"id": f"p{i}", "prompt": f"Say {i}", "size": i} for i in range(10)])
    (folder / "own.py").write_text(
        "def size(responses, meta):\n"
        "    return [None if m['size'] == 4 else len(r) - m['size'] for r, m in zip(responses, meta)]\n"
    )
    for name, (stage, settings) in RUNS.items():
        train(stage, name, tiny, folder / "one", **settings)
    for name, stop in BEGUN.items():
        train(RUNS[name][0], name, tiny, folder / "one then two", stop, **RUNS[name][1])
    together("all", str(tiny), str(folder))
    for name in BEGUN:
        train(RUNS[name][0], name, tiny, folder / "two then one", **RUNS[name][1])
    return folder


BEGUN = {"rm": 8, "ppo": 9, "ppo-lora": 2, "ppo-chosen": 2}


def _all(tiny: str, folder: str) -> None:
    """What the two processes do of `runs`."""
    path = Path(folder)
    for name, (stage, settings) in RUNS.items():
        train(stage, name, Path(tiny), path / "two", **settings)
    for name, stop in BEGUN.items():
        train(RUNS[name][0], name, Path(tiny), path / "one then two", **RUNS[name][1])
        train(RUNS[name][0], name, Path(tiny), path / "two then one", stop, **RUNS[name][1])


def assert_same_run(a: Path, b: Path, tolerance: float = 1e-4) -> None:
    """Every number of every step, but for those of a clock; what was found at the end; and the weights."""
    first, second = ([_numbers(row) for row in rows_of(path / "metrics.jsonl")] for path in (a, b))
    assert len(first) == len(second)
    for row, other in zip(first, second, strict=True):
        assert other == pytest.approx(row, abs=tolerance, rel=tolerance), f"step {row['step']}"
    if (a / EVALUATIONS).exists():
        assert_alike(*(flat(rows_of(path / EVALUATIONS)) for path in (a, b)), tolerance)  # type: ignore[call-arg]
    weights, others = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert weights.keys() == others.keys()
    for name in weights:
        torch.testing.assert_close(others[name], weights[name], atol=tolerance, rtol=tolerance)
    found, again = (json.loads((path / "manifest.json").read_text())["settings"] for path in (a, b))
    assert found | {"preferences": None} == again | {"preferences": None}
    assert json.loads((a / "config.json").read_text()).keys() == json.loads((b / "config.json").read_text()).keys()
    assert sorted(path.name for path in a.iterdir()) == sorted(path.name for path in b.iterdir())


def assert_alike(first: dict[str, Any], second: dict[str, Any], tolerance: float) -> None:
    """Numbers about, everything else exactly."""
    numbers = {name for name, value in first.items() if isinstance(value, float)}
    assert len(numbers) > 30 and first.keys() == second.keys()
    for name, value in first.items():
        assert second[name] == (pytest.approx(value, abs=tolerance, rel=tolerance) if name in numbers else value), name


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Whatever stands in nested rows, by its path."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        return {name: value}
    return {path: each for key, part in inner for path, each in flat(part, f"{name}/{key}").items()}


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if "second" not in key}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one_does(runs: Path, name: str) -> None:
    assert_same_run(runs / "one" / name, runs / "two" / name)


@pytest.mark.slow
def test_the_runs_that_are_compared_are_long_enough_to_differ(runs: Path) -> None:
    assert len(rows_of(runs / "one" / "rm" / "metrics.jsonl")) == 20
    assert len(rows_of(runs / "one" / "ppo" / "metrics.jsonl")) == 20
    assert rows_of(runs / "one" / "ppo" / "metrics.jsonl")[-1]["kl"] > 0.1
    assert 0 < sum(row["unscored"] for row in rows_of(runs / "one" / "ppo-function" / "metrics.jsonl")) < 36


@pytest.mark.slow
@pytest.mark.parametrize("name", BEGUN)
@pytest.mark.parametrize("order", ["one then two", "two then one"])
def test_any_number_of_processes_goes_on_from_the_state_of_another(runs: Path, order: str, name: str) -> None:
    assert_same_run(runs / "one" / name, runs / order / name)


# ------------------------------------------------------------------------------------------- dealing out


def test_micro_batches_are_dealt_out_once_and_equally_often() -> None:
    groups = [Group([1] * 10, [[1] * length]) for length in (5, 50, 7, 20, 1, 33, 8)]
    for parts in (1, 2, 3, 10):
        dealt = distribute(groups, 64, parts)
        counted = sorted(i for batches in dealt for batch, weight in batches if weight for i in batch)
        assert counted == list(range(7)), "every group counts once"
        assert len(dealt) == parts and len({len(batches) for batches in dealt}) == 1
        assert all(weight in (0.0, 1.0) for batches in dealt for _, weight in batches)
    counted_of = [[i for batch, weight in batches if weight for i in batch] for batches in distribute(groups, 64, 2)]
    loads = [sum(groups[i].tokens for i in counted) for counted in counted_of]
    assert abs(loads[0] - loads[1]) <= 15, "about equally many tokens each"


def test_every_process_has_a_gpu_of_its_own() -> None:
    assert [assigned_gpu(number, 2, 4, None) for number in range(2)] == ["0", "1"]
    assert [assigned_gpu(number, 2, 2, "3, GPU-5a") for number in range(2)] == ["3", "GPU-5a"]
    with pytest.raises(UsageError, match="3 processes, 2 GPUs"):
        assigned_gpu(0, 3, 2, None)


def test_alone_nothing_is_distributed(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write(tmp_path / "preferences.jsonl", [preference(i) for i in range(6)])
    train("train-rm", "rm", tiny, tmp_path / "one", epochs=1)
    assert not torch.distributed.is_initialized() and world_size() == 1


def test_a_request_is_sampled_the_same_whatever_is_in_its_batch(tiny: Path) -> None:
    requests = [Request(i, [5, 6, 7, 8 + i], seed=40 + i) for i in range(4)]
    sampling = Sampling(n=2, temperature=0.9, top_p=0.9, max_tokens=12)
    engine = open_engine("transformers", tiny, dtype="float32", batch_size=8)
    whole = dict(engine.generate(requests, sampling))
    alone = {key: found for request in requests[::-1] for key, found in engine.generate([request], sampling)}
    assert [[c.token_ids for c in whole[i]] for i in range(4)] == [[c.token_ids for c in alone[i]] for i in range(4)]
    assert len({tuple(c.token_ids) for found in whole.values() for c in found}) > 4, "and they are not all alike"


# ------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def command(tiny: Path, tmp_path: Path) -> Callable[..., list[str]]:
    data = write(tmp_path / "preferences.jsonl", [preference(i) for i in range(26)])

    def arguments(*more: str, data: str = data) -> list[str]:
        options = ["--model", str(tiny), "-o", str(tmp_path / "rm"), "--batch-size", "5", "--precision", "fp32"]
        return ["train-rm", data, *options, *more]

    return arguments


@pytest.mark.slow
def test_bad_input_is_told_once_and_as_by_one_process(command: Any, tmp_path: Path) -> None:
    bad = str(tmp_path / "bad.jsonl")
    Path(bad).write_text('{"prompt": "q"}\n')
    alone, several = (rlaif_process(*command(*more, data=bad)) for more in ((), ("--num-processes", "2")))
    assert several.returncode == alone.returncode == 1
    assert several.stderr == alone.stderr and "bad.jsonl line 1" in alone.stderr
    assert several.stdout == ""


@pytest.mark.parametrize(
    ("more", "data", "code", "message"),
    [
        (["--num-processes", "0"], None, 2, "--num-processes"),
        (["--num-processes", "2"], "-", 2, "several processes cannot share stdin"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(
    command: Any, more: list[str], data: str | None, code: int, message: str
) -> None:
    found = rlaif_process(*command(*more, **({"data": data} if data else {})), stdin="")
    assert found.returncode == code and message in found.stderr


def begun(arguments: list[str], folder: Path) -> tuple[Any, list[int]]:
    """The command under way, after four steps; and its two processes."""
    command = [sys.executable, "-m", "rlaif_cli", *arguments]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    log, deadline = folder / "metrics.jsonl", time.monotonic() + 200
    while not (log.exists() and len(rows_of(log)) >= 4):
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()
        time.sleep(0.02)
    workers = [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    assert len(workers) == 2
    return run, workers


@pytest.mark.slow
def test_ctrl_c_ends_all_processes(command: Any, tmp_path: Path) -> None:
    run, workers = begun(command("--epochs", "40", "--num-processes", "2"), tmp_path / "rm")
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 130
    assert told.count("interrupted: finished work is saved") == 1 and "Traceback" not in told and "error" not in told
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_then_goes_on(command: Any, runs: Path, tmp_path: Path) -> None:
    options = [part for name in RM for part in (f"--{name.replace('_', '-')}", str(RM[name]))]
    run, workers = begun(command(*options, "--num-processes", "2"), tmp_path / "rm")
    os.kill(workers[1], signal.SIGKILL)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 1
    assert told.count("error:") == 1 and "was killed by SIGKILL" in told and "Traceback" not in told
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert not (tmp_path / "rm" / "manifest.json").exists()
    done = rlaif_process(*command(*options))
    assert done.returncode == 0, done.stderr
    assert_same_run(runs / "one" / "rm", tmp_path / "rm")


@pytest.mark.slow
def test_a_pipeline_starts_the_processes_of_a_stage(tiny: Path, tmp_path: Path, runs: Path) -> None:
    settings = {"run": "train-rm", "preferences": str(runs / "preferences.jsonl"), "model": str(tiny)}
    stages = {"rm": settings | RM | {"precision": "fp32", "num_processes": 2}}
    (tmp_path / "p.yaml").write_text(json.dumps({"name": "p", "stages": stages}))
    done = rlaif_process("run", str(tmp_path / "p.yaml"), "-o", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert_same_run(runs / "one" / "rm", tmp_path / "run" / "rm")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["stages"]["rm"]
    assert summary["results"] == json.loads((tmp_path / "run" / "rm" / "manifest.json").read_text())["results"]


@pytest.mark.vllm
@pytest.mark.slow
def test_every_process_samples_from_a_vllm_of_its_own(tiny: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"id": f"p{i}", "prompt": f"Say {i}"} for i in range(10)])
    options = ["--steps", "3", "--prompts-per-step", "3", "-n", "2", "--max-tokens", "5", "--lr", "0.001"]
    options += ["--judge", "fake", "--constitution", "helpfulness", "--engine", "vllm", "--precision", "fp32"]
    for name, processes in (("one", "1"), ("two", "2")):
        output = ["-o", str(tmp_path / name), "--num-processes", processes]
        done = rlaif_process("ppo", prompts, "--model", str(tiny), *options, *output)
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert max(row["mismatch"] for row in rows_of(tmp_path / "two" / "metrics.jsonl")) < 1e-3, "weights are synced"


def test_every_process_has_a_prompt_of_each_step(tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "a"}])
    few = ["--prompts-per-step", "1", "--num-processes", "2", "-o", str(tmp_path / "policy")]
    done = rlaif_process(
        "ppo", prompts, "--model", "fake", "--engine", "fake", "--judge", "fake", "--constitution", "helpfulness", *few
    )
    assert done.returncode == 2 and "--prompts-per-step is below the number of processes" in done.stderr


if __name__ == "__main__":
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"], os.environ["TRANSFORMERS_VERBOSITY"] = "1", "error"
    Rendezvous().join()
    {"all": _all}[sys.argv[1]](*sys.argv[2:])
    leave()
