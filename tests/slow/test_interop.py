"""What we write is read by the others: run in an environment of theirs where they are not in ours (TRL)."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT, rlaif, rows_of, vllm_serve

sys.path.insert(0, str(ROOT / "benchmarks"))
from peers import TRL, environment

pytestmark = pytest.mark.slow

JUDGED = ("--judge", "fake", "--constitution", "helpfulness")
POLICY = (
    *("--model", "fake", "--reward-model", "rm", "--engine", "transformers"),
    *("--steps", "2", "--max-tokens", "8", "--samples-every", "1"),
)
TRAIN = """
import sys
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
kind, model, data, out = sys.argv[1:]
rows = load_dataset("json", data_files=data, split="train")
Config, Trainer = {"dpo": (DPOConfig, DPOTrainer), "reward": (RewardConfig, RewardTrainer)}[kind]
options = Config(out, max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, bf16=False)
done = Trainer(model=model, args=options, train_dataset=rows).train()
print("steps", done.global_step, done.training_loss)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of file and checkpoint that the pipeline writes."""
    folder = tmp_path_factory.mktemp("run")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": f"q{i}", "prompt": f"Why {i}?"}) + "\n" for i in range(12)))
    for command in (
        ("generate", "prompts.jsonl", "--model", "fake", "-n", "2", "-o", "candidates.jsonl"),
        ("label", "candidates.jsonl", *JUDGED, "-o", "preferences.jsonl"),
        ("revise", "prompts.jsonl", "--model", "fake", *JUDGED[2:], "-o", "revisions.jsonl"),
        ("train-rm", "preferences.jsonl", "--model", "fake", "-o", "rm"),
        ("ppo", "prompts.jsonl", *POLICY, "-o", "policy"),
        ("eval", "win-rate", "candidates.jsonl", "candidates.jsonl", *JUDGED, "-o", "win.json"),
    ):
        done = rlaif(*command, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_our_preferences_train_in_trl_unchanged(kind: str, run: Path, tiny: Path, tmp_path: Path) -> None:
    command = [environment(TRL), "-c", TRAIN, kind, str(tiny), str(run / "preferences.jsonl"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    steps, loss = done.stdout.split("steps ")[1].split()
    assert steps == "2" and math.isfinite(float(loss))


ARGILLA = """
import json, sys
import argilla as rg
rows = [json.loads(line) for line in open("review.jsonl")]
for number, row in enumerate(rows):
    record = rg.Record.from_dict(row)
    better = "a" if record.fields["response_a"] > record.fields["response_b"] else "b"
    record.responses.add(rg.Response("preference", better, user_id="00000000-0000-0000-0000-000000000001"))
    rows[number] = record.to_dict()
open("reviewed.jsonl", "w").writelines(json.dumps(row) + "\\n" for row in rows)
"""


def test_people_review_our_labels_in_argilla(run: Path, tmp_path: Path) -> None:
    labels = run / "preferences.jsonl"
    done = rlaif("data", "convert", str(labels), "--to", "argilla-records", "-o", "review.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown_first = [row["fields"]["response_a"] for row in rows_of(tmp_path / "review.jsonl")]
    chosen = [row["chosen"][0]["content"] for row in rows_of(labels)]
    assert 0 < sum(a == b for a, b in zip(shown_first, chosen, strict=True)) < len(chosen), "the order tells nothing"
    python = environment("argilla==2.8.0", "requests", dependencies=True)
    reviewed = subprocess.run([python, "-c", ARGILLA], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert reviewed.returncode == 0, reviewed.stderr[-3000:]
    done = rlaif("data", "convert", "reviewed.jsonl", "--from", "argilla-records", "-o", "people.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    people = rows_of(tmp_path / "people.jsonl")
    assert len(people) == len(chosen)
    for row in people:
        assert row["p_chosen"] == 1.0 and row["chosen"][0]["content"] > row["rejected"][0]["content"]
        assert row["meta"]["annotators"] == 1 and "judge" not in row


def test_datasets_loads_every_file(run: Path) -> None:
    from datasets import load_dataset

    files = sorted(path for path in run.rglob("*.jsonl"))
    assert len(files) >= 8
    for file in files:
        loaded = load_dataset("json", data_files=str(file), split="train", cache_dir=str(run / "cache"))
        assert len(loaded) == len(rows_of(file)), file


def conversation(run: Path) -> str:
    from transformers import AutoTokenizer

    row = rows_of(run / "preferences.jsonl")[0]
    text: Any = AutoTokenizer.from_pretrained(run / "rm").apply_chat_template(
        [*row["prompt"], *row["chosen"]], tokenize=False
    )
    return str(text).rstrip("\n")  # the reward is read at the token that ends the turn


def our_score(run: Path) -> float:
    """The reward as `rlaif eval reward` reports it, without its normalisation."""
    rows = rows_of(run / "preferences.jsonl")[:1]
    one = {"id": "x", "prompt": rows[0]["prompt"], "responses": [rows[0]["chosen"][0]["content"]]}
    (run / "one.jsonl").write_text(json.dumps(one) + "\n")
    done = rlaif("eval", "reward", "one.jsonl", "--reward-model", "rm", "--precision", "fp32", cwd=run)
    assert done.returncode == 0, done.stderr
    scale = json.loads((run / "rm" / "config.json").read_text())["rlaif"]
    return float(json.loads(done.stdout)["reward"]["value"] * scale["reward_std"] + scale["reward_mean"])


def test_our_reward_model_scores_in_a_transformers_pipeline(run: Path) -> None:
    from transformers import pipeline

    score = pipeline("text-classification", model=str(run / "rm"), function_to_apply="none", dtype="float32")
    assert score(conversation(run))[0]["score"] == pytest.approx(our_score(run), abs=1e-3)


# What vLLM scores is tested, not how its threads end: at the interpreter's exit they abort now and then.
CLASSIFY = """
import os, sys, vllm
llm = vllm.LLM(sys.argv[1], runner="pooling", dtype="float32", enforce_eager=True, max_model_len=512)
print("probability", llm.classify([sys.argv[2]])[0].outputs.probs[0], flush=True)
llm.llm_engine.engine_core.shutdown()
os._exit(0)
"""


def test_our_reward_model_scores_in_vllm(run: Path) -> None:
    command = [sys.executable, "-c", CLASSIFY, str(run / "rm"), conversation(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = float(done.stdout.split("probability ")[1].split()[0])
    expected = 1 / (1 + math.exp(-our_score(run)))  # vLLM puts a sigmoid on a single label
    assert found == pytest.approx(expected, abs=2e-3)


def test_our_policy_is_served_by_vllm(run: Path, tmp_path: Path) -> None:
    from openai import OpenAI

    with vllm_serve(run / "policy", "policy", tmp_path / "serve.log", "--max-model-len", "512") as address:
        answer = OpenAI(base_url=address, api_key="none").chat.completions.create(
            model="policy", messages=[{"role": "user", "content": "Why?"}], max_tokens=4
        )
    assert answer.usage is not None and answer.usage.completion_tokens >= 1
