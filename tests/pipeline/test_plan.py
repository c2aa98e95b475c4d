"""What a pipeline is said to do beforehand is what it then does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chat_server import message
from rlaif_cli.engines import EnginePool
from rlaif_cli.engines.fake import FakeEngine
from rlaif_cli.pipeline.file import Step
from rlaif_cli.pipeline.file import load as load_pipeline
from rlaif_cli.pipeline.plan.counts import measure, plan
from rlaif_cli.pipeline.plan.throughput import Rate
from rlaif_cli.registry import STAGES

JUDGED = {"judge": "fake", "constitution": "helpfulness"}


@pytest.mark.parametrize(
    ("judging", "calls"),
    [
        ({}, 2 * 30),
        ({"method": "score"}, 4 * 30),
        ({"method": "contrast"}, 4 * 30),
        ({"cot": True, "rationale_tokens": 8}, 4 * 30),
        ({"principles": ["all"]}, 2 * 30 * 7),
        ({"pairs": "all"}, 2 * 30),
    ],
)
def test_calls_are_counted_as_they_are_made(
    judging: dict[str, Any], calls: int, write_jsonl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"prompt": f"Why is it {i}?"} for i in range(30)])
    stages = {
        "candidates": {"run": "generate", "prompts": prompts, "model": "fake", "n": 2, "max_tokens": 16},
        "preferences": {"run": "label", "candidates": "${candidates}", **JUDGED, **judging},
    }
    file = tmp_path / "pipeline.yaml"
    file.write_text(json.dumps({"name": "x", "stages": stages}))
    made = {"generate": 0, "logprobs": 0}

    def counted(name: str) -> Any:
        ask = getattr(FakeEngine, name)

        def asked(self: Any, requests: Any, *options: Any) -> Any:
            for found in ask(self, requests, *options):
                made[name] += 1
                yield found

        return asked

    for name in made:
        monkeypatch.setattr(FakeEngine, name, counted(name))
    with EnginePool() as engines:
        _, steps = load_pipeline(str(file), tmp_path / "run", STAGES)
        before = dict(zip(stages, (found for _, found in plan(steps)), strict=True))
        for step in steps:
            STAGES[step.kind].run(step.config, engines, lambda *_: None)
    assert before["candidates"].calls == 30 and before["candidates"].tokens_out == 30 * 2 * 16
    assert before["preferences"].calls == calls
    assert made["generate"] + made["logprobs"] == 30 + calls


def test_lengths_and_money_come_from_the_files_that_are_there(write_jsonl: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "p" * 400, "responses": ["r" * 80, "r" * 40]} for _ in range(10)]
    candidates = write_jsonl("candidates.jsonl", rows)
    found = measure(candidates)
    assert (found.rows, found.responses, found.prompt, found.response) == (10, 2, 100.0, 15.0)
    server = {"judge": "m", "engine": "openai", "base_url": "http://127.0.0.1:1/v1", "constitution": "helpfulness"}
    stage = {"run": "label", "candidates": candidates, **server, "price_in": 1.0, "price_out": 2.0}
    file = tmp_path / "pipeline.yaml"
    file.write_text(json.dumps({"name": "x", "stages": {"preferences": stage, "next": stage | {"candidates": "gone"}}}))
    (_, first), (_, second) = plan(load_pipeline(str(file), tmp_path / "run", STAGES)[1])
    assert first.tokens_in == 20 * (100 + 120 + 30) and first.tokens_out == 20 * 3
    assert first.cost == pytest.approx((5000 * 1.0 + 60 * 2.0) / 1e6, abs=1e-4)
    assert second.rows is None and second.cost is None, "a file that is not there is no reason to stop"


@pytest.mark.parametrize(
    ("kind", "judging"),
    [
        ("label", {}),
        ("label", {"method": "score"}),
        ("label", {"samples": 5}),
        ("label", {"cot": True, "rationale_tokens": 8}),
        ("label", {"cot": True, "rationale_tokens": 8, "samples": 5}),
        ("eval harmless-rate", {}),
        ("eval harmless-rate", {"samples": 5}),
    ],
)
def test_a_server_may_write_as_many_tokens_as_the_plan_says(
    kind: str, judging: dict[str, Any], serve: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    label = "7" if judging.get("method") == "score" else "1"

    def answer(body: dict[str, Any], text: str) -> Any:
        return [message(label, {label: 0.9, "2": 0.1})] * body.get("n", 1)

    server = serve(answer)
    rows = [{"id": str(i), "prompt": f"Why {i}?", "responses": ["So.", "Thus."]} for i in range(3)]
    stage = {"run": kind, "candidates": write_jsonl("candidates.jsonl", rows), "judge": "judge", "engine": "openai"}
    stage |= {"base_url": server.url, "constitution": "helpfulness", **judging}
    with EnginePool() as engines:
        (step,) = steps_of(tmp_path, {"judged": stage})
        ((_, found),) = plan([step])
        STAGES[step.kind].run(step.config, engines, lambda *_: None)
    limits = [body.get("max_tokens") or body["max_completion_tokens"] for body in server.requests]
    allowed = sum(limit * body.get("n", 1) for limit, body in zip(limits, server.requests, strict=True))
    assert found.tokens_out == allowed
    assert found.calls == len(server.requests)


def test_samples_take_an_engine_of_this_machine_time_to_write(write_jsonl: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "p" * 400, "responses": ["r" * 80, "r" * 40]} for _ in range(10)]
    judged = {**JUDGED, "run": "label", "candidates": write_jsonl("candidates.jsonl", rows), "judge": "org/j"}
    stages = {"read": judged, "sampled": judged | {"samples": 4}}
    stages["reasoned"] = stages["sampled"] | {"cot": True, "rationale_tokens": 8}
    found = {step.name: each for step, each in plan(steps_of(tmp_path, stages))}
    assert found["read"].tokens_out == 20, "the next token's log-probs come with one token"
    written = {name: sum(work.decode for work in each.work or ()) for name, each in found.items()}
    assert written == {"read": 0, "sampled": 20 * 4 * 16, "reasoned": 20 * 4 * (8 + 16)}


# --------------------------------------------------------------------------------------------- time and memory


def steps_of(folder: Path, stages: dict[str, Any]) -> list[Step]:
    file = folder / "pipeline.yaml"
    file.write_text(json.dumps({"name": "x", "stages": stages}))
    return load_pipeline(str(file), folder / "run", STAGES)[1]


def test_time_is_tokens_by_what_was_measured(write_jsonl: Any, tmp_path: Path) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"prompt": "p" * 400} for _ in range(10)])
    ppo = {"run": "ppo", "prompts": prompts, "model": "${sampled}", "reward_model": "org/rm", "steps": 2}
    ppo |= {"prompts_per_step": 5, "n": 4, "max_tokens": 25, "advantage": "rloo"}
    stages = {
        "candidates": {"run": "generate", "prompts": prompts, "model": "org/m", "n": 2, "max_tokens": 50},
        "sampled": {"run": "sft", "records": prompts, "model": "org/m"},
        "policy": ppo,
        "served": {**JUDGED, "run": "label", "candidates": "${candidates}", "engine": "openai", "judge": "j"}
        | {"base_url": "http://127.0.0.1:1/v1"},
    }
    found = {step.name: each for step, each in plan(steps_of(tmp_path, stages))}
    (generate,) = found["candidates"].work or ()
    assert (generate.prefill, generate.decode, generate.train) == (1000, 1000, 0)
    known = {generate.key: Rate(prefill=100, decode=50, start=7, memory=3)}
    assert found["candidates"].seconds(known) == 7 + 10 + 20 and found["candidates"].memory(known) == 3
    assert found["candidates"].seconds(known, running={generate.key}) == 30, "an open engine needs no start"
    assert found["candidates"].seconds({}) is None and found["served"].seconds(known) is None

    rollouts, update, scoring = found["policy"].work or ()
    assert {rollouts.model, update.model} == {"org/m"}, "as large as the model that it begins from"
    assert (rollouts.prefill, rollouts.decode) == (1000, 1000)
    # 10 prompts of 100 tokens with 4 x 25 each: two forward passes, and forward and backward.
    assert update.train == pytest.approx(2000 * (2 / 3 + 1))
    assert scoring.model == "org/rm" and scoring.train == pytest.approx(40 * 125 / 3)
    known |= {rollouts.key: Rate(prefill=100, decode=50, memory=3), update.key: Rate(train=100, memory=5)}
    known |= {scoring.key: Rate(train=100, memory=2)}
    assert found["policy"].seconds(known) == pytest.approx(10 + 20 + 20 * 5 / 3 + 50 / 3)
    assert found["policy"].memory(known) == 10, "all of them side by side"


@pytest.mark.slow
def test_this_machine_is_measured_once(tiny: Path, write_jsonl: Any, tmp_path: Path) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"prompt": f"Why {i}?"} for i in range(8)])
    stages: dict[str, Any] = {
        "candidates": {"run": "generate", "prompts": prompts, "model": str(tiny), "engine": "transformers", "n": 2},
        "preferences": {"run": "label", "candidates": "${candidates}", **JUDGED},
        "rm": {"run": "train-rm", "preferences": "${preferences}", "model": str(tiny)},
    }
    steps_of(tmp_path, stages)
    environment = os.environ | {"RLAIF_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rlaif_cli", "run", "pipeline.yaml", "--dry-run"]

    def run(*options: str) -> str:
        done = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "time: unknown for some steps; use --calibrate" in run()
    first = run("--calibrate")
    assert first.count("measuring ") == 2 and "time: about" in first and first.count(" GiB") == 2, first
    assert "measuring" not in run("--calibrate") and "time: about" in run()
    assert not (tmp_path / "run").exists()
    rates = tmp_path / "cache" / "rates.json"
    rates.write_text(json.dumps({machine: {"key": {"fast": 1}} for machine in json.loads(rates.read_text())}))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "not a file of measured rates" in done.stderr and "delete it" in done.stderr, (
        done.stderr
    )
