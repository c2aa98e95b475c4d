"""What a pipeline is said to do beforehand is what it then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif_cli.commands.run import kinds
from rlaif_cli.engines import EnginePool
from rlaif_cli.engines.fake import FakeEngine
from rlaif_cli.stages import pipeline
from rlaif_cli.stages.plan import measure, plan

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
        available = kinds(engines)
        _, steps = pipeline.load(str(file), tmp_path / "run", available)
        before = dict(zip(stages, (found for _, found in plan(steps)), strict=True))
        for step in steps:
            available[step.kind].run(step.config, lambda *_: None)
    assert before["candidates"].calls == 30 and before["candidates"].tokens_out == 30 * 2 * 16
    assert before["preferences"].calls == calls
    assert made["generate"] + made["logprobs"] == 30 + calls


def test_lengths_and_money_come_from_the_files_that_are_there(write_jsonl: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "p" * 400, "responses": ["r" * 80, "r" * 40]} for _ in range(10)]
    candidates = write_jsonl("candidates.jsonl", rows)
    found = measure(Path(candidates))
    assert (found.rows, found.responses, found.prompt, found.response) == (10, 2, 100.0, 15.0)
    server = {"judge": "m", "engine": "openai", "base_url": "http://127.0.0.1:1/v1", "constitution": "helpfulness"}
    stage = {"run": "label", "candidates": candidates, **server, "price_in": 1.0, "price_out": 2.0}
    file = tmp_path / "pipeline.yaml"
    file.write_text(json.dumps({"name": "x", "stages": {"preferences": stage, "next": stage | {"candidates": "gone"}}}))
    (_, first), (_, second) = plan(pipeline.load(str(file), tmp_path / "run", kinds(None))[1])
    assert first.tokens_in == 20 * (100 + 120 + 30) and first.tokens_out == 20
    assert first.cost == pytest.approx((5000 * 1.0 + 20 * 2.0) / 1e6, abs=1e-4)
    assert second.rows is None and second.cost is None, "a file that is not there is no reason to stop"
