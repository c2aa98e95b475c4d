"""`rlaif plan`: arithmetic that can be done by hand, and what it says of clusters that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT, rlaif

H100 = {"gpu": {"teraflops": 1000, "terabytes_per_second": 3.35}}
PIPELINE = """
name: small
stages:
  candidates: {run: generate, prompts: %s, model: org/policy, n: 2, max_tokens: 100}
  labels: {run: label, candidates: "${candidates}", judge: org/judge, constitution: helpfulness, method: score}
  rm: {run: train-rm, preferences: "${labels}", model: org/policy, batch_size: 1024, tokens_per_batch: 1000}
  policy: {run: ppo, prompts: %s, model: org/policy, reward_model: "${rm}", steps: 10, prompts_per_step: 64, n: 2,
           max_tokens: 100, advantage: rloo}
"""


@pytest.fixture
def forecast(tmp_path: Path, write_jsonl: Any) -> Any:
    prompts = write_jsonl("prompts.jsonl", [{"prompt": "x" * 400}] * 10)
    (tmp_path / "p.yaml").write_text(PIPELINE % (prompts, prompts))

    def run(cluster: dict[str, Any], *options: str) -> dict[str, Any]:
        (tmp_path / "c.yaml").write_text(json.dumps({"name": "c"} | cluster))
        done = rlaif("plan", "p.yaml", "--cluster", "c.yaml", "--json", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        return found | {each["name"]: each for each in found["stages"]}

    return run


def models(**judge: Any) -> dict[str, Any]:
    return {"models": {"org/policy": {"billions": 8, "sampled": 1000}, "org/judge": {"billions": 10} | judge}}


def test_sampling_is_tokens_over_the_speed_of_all_copies(forecast: Any) -> None:
    found = forecast(H100 | models() | {"gpus": 4, "drivers": 1000}, "--prompts", "40000")
    phases = found["candidates"]["phases"]
    assert phases["sampling"] == pytest.approx(40_000 * 2 * 100 / 1000 / 4)
    assert phases["reading"] == pytest.approx(40_000 * 100 / (0.5 * 1e15 / 16e9) / 4)  # half of the arithmetic
    assert found["candidates"]["limit"] == "sampling" and found["bottleneck"] == "candidates"


def test_a_judge_over_four_gpus_has_a_quarter_of_the_copies(forecast: Any) -> None:
    one, four = (
        forecast(H100 | models(gpus=gpus, read=5000) | {"gpus": 8}, "--prompts", "1000")["labels"]["phases"]["reading"]
        for gpus in (1, 4)
    )
    assert four == pytest.approx(4 * one)


def test_the_feeding_command_becomes_the_bottleneck_and_shards_end_it(forecast: Any) -> None:
    many = H100 | models(read=1e9) | {"gpus": 512, "rows_per_second": 1000}
    found = forecast(many, "--prompts", "1000000")["labels"]
    assert found["limit"] == "feeding" and found["phases"]["feeding"] == pytest.approx(1000)
    assert forecast(many | {"drivers": 10}, "--prompts", "1000000")["labels"]["phases"]["feeding"] == pytest.approx(100)


def test_tokens_of_a_step_follow_one_another_on_any_number_of_gpus(forecast: Any) -> None:
    found = forecast(H100 | models() | {"gpus": 512})["policy"]
    one_token = 2 * 8e9 / (0.7 * 3.35e12)
    assert found["phases"]["tokens"] == pytest.approx(10 * 100 * one_token)
    assert found["phases"]["tokens"] > found["phases"]["sampling"]


def test_no_more_gpus_learn_than_a_step_has_micro_batches(forecast: Any) -> None:
    found = forecast(H100 | models() | {"gpus": 512}, "--prompts", "100000")["rm"]
    # 1,024 pairs of 100 + 2 x 100 tokens, 1,000 a micro-batch; the last step of an epoch is smaller
    assert found["idle"] == "a training step has work for only 307 of 512"
    assert forecast(H100 | models() | {"gpus": 256}, "--prompts", "100000")["rm"]["idle"] is None


def test_where_a_copy_takes_all_gpus_there_is_nothing_to_divide(forecast: Any) -> None:
    policy = {"models": {"org/policy": {"billions": 8, "gpus": 4}, "org/judge": {"billions": 10}}}
    assert forecast(H100 | policy | {"gpus": 4})["policy"]["split"] is None
    assert forecast(H100 | policy | {"gpus": 5})["policy"]["split"]["training"] == 1


def test_the_best_split_is_no_slower_than_any_other(forecast: Any) -> None:
    found = forecast(H100 | models() | {"gpus": 8})["policy"]
    split, phases = found["split"], found["phases"]
    work = 8 * (phases["reading"] + phases["sampling"])
    learning = phases["learning"] * 8

    def seconds(rollout: int) -> float:
        return phases["start"] + max(work / rollout, phases["tokens"], learning / (8 - rollout))

    assert split["rollout"] + split["training"] == 8
    assert split["seconds"] == pytest.approx(min(map(seconds, range(1, 8))))


def test_a_model_that_does_not_fit_is_named(forecast: Any) -> None:
    eighty = {"gpu": H100["gpu"] | {"gigabytes": 80}} | models() | {"gpus": 1}
    # 8B: 16 bytes a parameter are 128 GB, of 64 that there are
    assert forecast(eighty)["rm"]["too_large"] == ["org/policy needs 128 GB for training, 64 GB available"]
    assert forecast(eighty)["candidates"]["too_large"] == [] and forecast(eighty | {"gpus": 2})["rm"]["too_large"] == []


def test_money_is_of_all_gpus_for_the_whole_time(forecast: Any) -> None:
    found = forecast(H100 | models() | {"gpus": 4, "price": 3.0})
    assert found["cost"] == pytest.approx(found["seconds"] / 3600 * 4 * 3)


@pytest.mark.parametrize(
    ("cluster", "says"),
    [
        ({"gpus": 8}, "'gpu' is missing"),
        ({"gpus": 8, "machines": 1} | H100, "exactly one of 'gpus' and 'machines'"),
        ({"gpus": 8, "prise": 1} | H100, "'prise' is not a known field"),
        ({"gpus": 8} | H100, "the speed of model 'org/policy' (read, sampled) is unknown"),
        ({"machines": 1}, "--calibrate"),
    ],
)
def test_a_cluster_file_that_cannot_be_used(cluster: dict[str, Any], says: str, tmp_path: Path, forecast: Any) -> None:
    (tmp_path / "c.yaml").write_text(json.dumps({"name": "c"} | cluster))
    done = rlaif("plan", "p.yaml", "--cluster", "c.yaml", cwd=tmp_path)
    assert done.returncode == 1 and says in done.stderr and done.stdout == ""


@pytest.mark.parametrize("name", ["h100-8", "h100-512"])
def test_the_shipped_clusters(name: str) -> None:
    sizes = ["--set", "model=org/policy", "--set", "judge=org/judge", "--prompts", "1000000"]
    done = rlaif("plan", "helpful", "--cluster", str(ROOT / "examples" / "clusters" / f"{name}.yaml"), *sizes)
    assert done.returncode == 0 and "is the bottleneck" in done.stderr and "preferences" in done.stdout


def test_a_copy_needs_no_more_gpus_than_there_are(tmp_path: Path, forecast: Any) -> None:
    (tmp_path / "c.yaml").write_text(json.dumps({"name": "c", "gpus": 2} | H100 | models(gpus=4)))
    done = rlaif("plan", "p.yaml", "--cluster", "c.yaml", cwd=tmp_path)
    assert done.returncode == 1 and "a copy of 'org/judge' needs 4 GPUs, but the cluster has 2" in done.stderr


def test_only_this_machine_is_measured(tmp_path: Path, forecast: Any) -> None:
    (tmp_path / "c.yaml").write_text(json.dumps({"name": "c", "gpus": 8} | H100 | models()))
    done = rlaif("plan", "p.yaml", "--cluster", "c.yaml", "--calibrate", cwd=tmp_path)
    assert done.returncode == 2 and "--calibrate measures this machine" in done.stderr
