"""The whole chain with a model that reasons: the built-in model, whose first sentence is its reasoning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers import rlaif_process, rows_of
from rlaif_cli.data.records import NO_ANSWER
from rlaif_cli.errors import ModelError
from rlaif_cli.models.resolve import resolve_model

# The model opens with a thought; what follows its first sentence is the answer. It often stops after one sentence.
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou write reviews of two sentences.<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}"
    "Thought: {{ m.reasoning_content or 'Well' }}. {% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nThought:{% endif %}"
)
MARKS = ["Thought:", ". "]
SUBJECTS = ("a kettle", "a bus ride", "a crime film", "a hotel", "a pair of boots", "a song", "a museum", "a pizza")


@pytest.fixture
def thinker(tmp_path: Path) -> Path:
    try:
        base = resolve_model("smollm2-135m")
    except ModelError as error:
        pytest.skip(f"the built-in model is not installed: {error}")
    folder = tmp_path / "thinker"
    folder.mkdir()
    for path in base.iterdir():
        if path.name not in ("chat_template.jinja", "rlaif-manifest.json"):
            shutil.copy(path, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.mark.slow
@pytest.mark.vllm
def test_a_reasoning_model_goes_through_the_whole_chain(thinker: Path, tmp_path: Path) -> None:
    prompts = [{"id": str(i), "prompt": f"Write a review of {name}."} for i, name in enumerate(SUBJECTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    sampled: dict[str, Any] = {
        "prompts": str(tmp_path / "prompts.jsonl"),
        "model": str(thinker),
        "reasoning_marks": MARKS,
        "n": 4,
        "max_tokens": 40,
        "engine_memory": 0.5,
    }
    limits = {"max_length": 512, "engine_memory": 0.5}
    judged = {"judge": "smollm2-135m", "constitution": "tone", "method": "contrast", "principles": ["warm"], **limits}
    trained = {"model": "smollm2-135m", "eval_fraction": 0, "batch_size": 4}
    stages = {
        "before": {"run": "generate", **sampled, "max_length": 512},
        "labels": {"run": "label", "candidates": "${before}", **judged},
        "rm": {"run": "train-rm", "preferences": "${labels}", **trained},
        "policy": {
            "run": "ppo",
            **sampled,
            "reward_model": "${rm}",
            "advantage": "rloo",
            "steps": 2,
            "prompts_per_step": 4,
            "missing_eos_penalty": -1.0,
            "samples_every": 1,
        },
        "after": {"run": "generate", **sampled, "model": "${policy}", "max_length": 512},
        "won": {"run": "eval win-rate", "a": "${after}", "b": "${before}", **judged},
    }
    (tmp_path / "chain.yaml").write_text(json.dumps({"name": "chain", "stages": stages}))  # JSON is YAML
    done = rlaif_process("run", str(tmp_path / "chain.yaml"), "-o", str(tmp_path / "run"), timeout=1200)
    assert done.returncode in (0, 3), done.stderr

    run = tmp_path / "run"
    answered = [each["text"] != "" for row in rows_of(run / "before.jsonl") for each in row["responses"]]
    assert any(answered) and not all(answered)
    texts = {reply["content"] for row in rows_of(run / "labels.jsonl") for reply in row["chosen"] + row["rejected"]}
    assert texts and "" not in texts
    assert {row["reason"][-len(NO_ANSWER) :] for row in rows_of(run / "labels.unscored.jsonl")} == {NO_ANSWER}
    for row in rows_of(run / "policy" / "metrics.jsonl"):
        assert 0 < row["answered"] < 1 and row["reasoning_length"] > 0 and row["unscored"] == 0
    for row in rows_of(run / "policy" / "samples.jsonl"):
        assert row["response"] is not None or row["score"] == -1.0  # so have replies that were cut
    won = json.loads((run / "won.json").read_text())
    assert won["n"] + won["unscored"] == len(answered) and won["unscored"] > 0
