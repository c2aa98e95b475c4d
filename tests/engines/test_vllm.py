"""The real vLLM: its log-probs are the model's, its samples are reproducible, and its weights follow the trainer's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

import families
from helpers import rows_of, vllm_serve
from rlaif_cli.config.engine import EngineConfig
from rlaif_cli.config.judge import LabelConfig
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.data.messages import Message
from rlaif_cli.engines import EnginePool
from rlaif_cli.engines.base import Completion, Request, Sampling
from rlaif_cli.engines.transformers import TransformersEngine
from rlaif_cli.engines.vllm import VllmEngine
from rlaif_cli.errors import EngineError, ModelError
from rlaif_cli.models.resolve import resolve_model
from rlaif_cli.models.tokenizer import ChatTokenizer
from rlaif_cli.stages.label import label
from rlaif_cli.train.nn.heads import load_policy
from rlaif_cli.train.ppo import check_mismatch, train_ppo
from rlaif_cli.train.rollout import policy_weights

pytestmark = pytest.mark.vllm

SMALL = "smollm2-135m"
# Sizes that vLLM's kernels for CPUs take.
EXPERTS: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 128,
    "head_dim": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 128,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 2,
    "sliding_window": None,
    "max_position_embeddings": 512,
}
OPTIONS: dict[str, Any] = {"engine": "vllm", "dtype": "float32", "max_length": 1024}


@pytest.fixture(scope="module")
def pool() -> Iterator[EnginePool]:
    """One engine at a time; a start costs seconds, so tests of one model stand together."""
    with EnginePool() as engines:
        yield engines


@pytest.fixture
def engine(pool: EnginePool, tiny: Path) -> Any:
    return pool.get(EngineConfig(**OPTIONS), str(tiny))


@pytest.fixture(scope="module")
def reference(tiny: Path) -> TransformersEngine:
    return TransformersEngine(tiny, dtype="float32", batch_size=8)


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(3, 259, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def sampled(engine: Any, requests: list[Request], **sampling: Any) -> dict[Any, list[Completion]]:
    return dict(engine.generate(requests, Sampling(**sampling)))


# ------------------------------------------------------------------------------------------- a mixture of experts
# First, while no other engine is open: vLLM makes its group for experts with the process's first model, or never.


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_engine_follows_a_mixture_of_experts(family: str, tiny: Path, tmp_path: Path) -> None:
    """Experts lie stacked in the trainer, and one by one in what vLLM loads."""
    folder = families.save(family, tmp_path, **EXPERTS)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny / file, folder)
    policy = load_policy(folder)
    options: dict[str, Any] = {"dtype": "float32", "max_length": 256, "memory": 1, "logprobs": "processed"}
    engine = VllmEngine(folder, syncable=True, **options)
    try:
        assert mismatch(engine, policy, folder) < 1e-3
        engine.load_weights(policy_weights(policy))
        assert mismatch(engine, policy, folder) < 1e-3, "the same weights, handed over"
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
        assert mismatch(engine, policy, folder) > 1e-2
        engine.load_weights(policy_weights(policy))
        assert mismatch(engine, policy, folder) < 1e-3
    finally:
        engine.close()


# ------------------------------------------------------------------------------------------- the tiny model


def test_generate_gives_n_different_responses(engine: Any) -> None:
    # Prompts of whole characters: vLLM decodes with the prompt's tail as context, and holds back half a character.
    prompts = {name: engine.tokenizer.chat([Message(role="user", content=name)]) for name in "ab"}
    requests = [Request(name, prompt, seed=seed) for seed, (name, prompt) in enumerate(prompts.items())]
    found = sampled(engine, requests, n=3, max_tokens=6)
    assert found.keys() == {"a", "b"}
    for completions in found.values():
        assert len({tuple(c.token_ids) for c in completions}) == 3
        for c in completions:
            ended = c.token_ids[-1] in engine.tokenizer.eos_ids
            assert len(c.logprobs) == len(c.token_ids) and (ended or len(c.token_ids) == 6)
            assert c.finish_reason == ("stop" if ended else "length")
            assert c.text.rstrip("\ufffd") == engine.tokenizer.decode(c.token_ids).rstrip("\ufffd")


def test_a_seeded_row_does_not_depend_on_its_batch(engine: Any) -> None:
    """More prompt tokens than one step holds: a prompt prefilled in pieces broke seeds ("does not use offset")."""
    requests = [Request(i, tokens(600, i), seed=100 + i) for i in range(16)]
    together = sampled(engine, requests, n=2, max_tokens=5)
    again = sampled(engine, requests[::-1], n=2, max_tokens=5)
    assert {k: [c.token_ids for c in v] for k, v in together.items()} == {
        k: [c.token_ids for c in v] for k, v in again.items()
    }
    for i in (0, 9, 15):
        alone = sampled(engine, [requests[i]], n=2, max_tokens=5)[i]
        assert [c.token_ids for c in alone] == [c.token_ids for c in together[i]]
    other = sampled(engine, [Request(0, requests[0].prompt, seed=999)], n=2, max_tokens=5)[0]
    assert [c.token_ids for c in other] != [c.token_ids for c in together[0]]


def test_sampled_logprobs_are_those_of_scoring_the_same_tokens(engine: Any) -> None:
    prompt = tokens(20, 5)
    completions = sampled(engine, [Request(0, prompt, seed=7)], n=4, max_tokens=10)[0]
    scores = dict(engine.logprobs(Request(i, prompt, continuation=c.token_ids) for i, c in enumerate(completions)))
    for index, completion in enumerate(completions):
        assert scores[index] == pytest.approx(completion.logprobs, abs=1e-3)


def test_next_token_logprobs_are_those_of_transformers(engine: Any, reference: TransformersEngine) -> None:
    requests = [Request(i, tokens(5 + 13 * i, i), choices=[3, 40, 258][: i + 1]) for i in range(3)]
    requests.append(Request("mixed in", tokens(9, 9), continuation=tokens(4, 4)))
    found, want = (dict(e.logprobs(requests)) for e in (engine, reference))
    for key in want:
        assert found[key] == pytest.approx(want[key], abs=1e-3)


def test_scores_are_those_of_transformers_with_and_without_the_prefix_cache(
    engine: Any, reference: TransformersEngine
) -> None:
    prefix = tokens(100, 1)
    requests = [Request(i, [*prefix, *tokens(i, i)], continuation=tokens(3 + 40 * i, 50 + i)) for i in range(4)]
    # The cache holds a prompt up to the very end here, continuation and all: those positions must be computed anew.
    requests.append(Request("long", [*requests[3].prompt], continuation=requests[3].continuation[:90]))
    want = dict(reference.logprobs(requests))
    for _ in range(2):
        found = dict(engine.logprobs(requests))
        assert found.keys() == want.keys()
        for key in want:
            assert found[key] == pytest.approx(want[key], abs=1e-3)


def test_a_run_that_is_left_early_leaves_the_engine_usable(engine: Any) -> None:
    stream = engine.generate((Request(i, tokens(5, i), seed=i) for i in range(6)), Sampling(max_tokens=20))
    next(stream)
    stream.close()
    assert len(sampled(engine, [Request(0, tokens(5, 0))], max_tokens=3)[0]) == 1


# ------------------------------------------------------------------------------------------- weight sync


@pytest.fixture(scope="module")
def syncable(pool: EnginePool, tiny: Path) -> Iterator[VllmEngine]:
    pool.close()
    engine = VllmEngine(tiny, dtype="float32", max_length=256, memory=1, logprobs="processed", syncable=True)
    yield engine
    engine.close()


@pytest.fixture
def changed_policy(tiny: Path) -> Any:
    """A policy that training has moved: every weight, the tied embedding too."""
    policy = load_policy(tiny)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def mismatch(engine: VllmEngine, policy: Any, path: Path) -> float:
    """What PPO logs: mean |engine - trainer| over sampled tokens."""
    prompt = tokens(40, 3)
    completions = sampled(engine, [Request(0, prompt, seed=1)], n=4, max_tokens=8)[0]
    trainer = TransformersEngine(path, model=policy, batch_size=4)
    own = dict(trainer.logprobs(Request(i, prompt, continuation=c.token_ids) for i, c in enumerate(completions)))
    gaps = [abs(a - b) for i, c in enumerate(completions) for a, b in zip(c.logprobs, own[i], strict=True)]
    return sum(gaps) / len(gaps)


def test_the_engine_follows_the_trainer(syncable: VllmEngine, changed_policy: Any, tiny: Path) -> None:
    stale = mismatch(syncable, changed_policy, tiny)
    with pytest.raises(EngineError, match="not synced"):
        check_mismatch(stale, PPOConfig.model_fields["max_mismatch"].default)
    syncable.load_weights(policy_weights(changed_policy))
    assert mismatch(syncable, changed_policy, tiny) < 1e-3
    # And back: the prefix that was cached under other weights is not reused.
    syncable.load_weights(policy_weights(load_policy(tiny)))
    assert mismatch(syncable, load_policy(tiny), tiny) < 1e-3


def test_an_output_layer_that_is_not_sent_is_noticed(syncable: VllmEngine, changed_policy: Any, tiny: Path) -> None:
    syncable.load_weights(policy_weights(load_policy(tiny)))
    syncable.load_weights(
        [(name, weight) for name, weight in policy_weights(changed_policy) if name != "lm_head.weight"]
    )
    gap = mismatch(syncable, changed_policy, tiny)
    with pytest.raises(EngineError, match="not synced"):
        check_mismatch(gap, PPOConfig.model_fields["max_mismatch"].default)


# ------------------------------------------------------------------------------------------- PPO


class Length:
    def score(self, prompts: Any, responses: Any) -> torch.Tensor:
        return torch.tensor([[float(len(text)) for text in texts] for texts in responses])


def test_ppo_steps_with_vllm(syncable: VllmEngine, tiny: Path, tmp_path: Path, write_jsonl: Callable[..., str]) -> None:
    syncable.close()
    config = PPOConfig(
        prompts=write_jsonl("prompts.jsonl", [{"id": f"p{i}", "prompt": f"Say {i}"} for i in range(4)]),
        output=str(tmp_path / "policy"),
        model=str(tiny),
        judge="fake",
        constitution="helpfulness",
        engine="vllm",
        engine_memory=1,
        precision="fp32",
        steps=2,
        prompts_per_step=4,
        n=2,
        max_tokens=8,
        temperature=0.7,  # "processed" log-probs: of the distribution that was sampled from
        lr=1e-3,
        eval_function=f"{tmp_path}/gold.py:length",
        eval_fraction=0.5,
    )
    (tmp_path / "gold.py").write_text("def length(responses):\n    return [len(text) for text in responses]\n")
    train_ppo(config, lambda _: Length())
    rows = rows_of(tmp_path / "policy" / "metrics.jsonl")
    start, end = rows_of(tmp_path / "policy" / "evaluations.jsonl")
    assert abs(start["kl"]["value"]) < 1e-4 and abs(end["kl"]["value"]) > 0.1, "of the weights of each time"
    assert all(row["functions"]["length"] == row["reward"] and row["responses"] == 4 for row in (start, end))
    assert [row["step"] for row in rows] == [1, 2]
    # The engine works in bfloat16 here, so a little is left; stale weights would be beyond 0.2 in the second step.
    assert all(row["mismatch"] < 0.05 for row in rows) and abs(rows[1]["kl"]) > 0.1
    before, after = (dict(load_policy(path).named_parameters()) for path in (tiny, tmp_path / "policy"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


# ------------------------------------------------------------------------------------------- a model that means it


@pytest.fixture(scope="module")
def small() -> Path:
    try:
        return resolve_model(SMALL)
    except ModelError as error:
        pytest.skip(f"the built-in model is not installed: {error}")


ROWS = [
    ("What is the capital of France?", "The capital of France is Paris.", "banana banana banana"),
    ("How do I boil an egg?", "Put it into boiling water for eight minutes.", "I will not tell you, you fool."),
    ("Name a primary colour.", "Red.", "A primary colour is a colour such as blue, which cannot be mixed."),
    ("Is water wet?", "Yes, in the everyday sense of the word.", "No!"),
]


@pytest.mark.parametrize("method", ["pairwise", "contrast"])
def test_swapping_two_responses_swaps_their_label(
    small: Path, pool: EnginePool, tmp_path: Path, write_jsonl: Callable[..., str], method: str
) -> None:
    p_first, read = [], set()
    for name in ("forth", "back"):
        rows = [
            {"id": f"r{i}", "prompt": prompt, "responses": list(pair if name == "forth" else pair[::-1])}
            for i, (prompt, *pair) in enumerate(ROWS)
        ]
        config = LabelConfig(
            candidates=write_jsonl(f"{name}.jsonl", rows),
            output=str(tmp_path / f"{name}.{method}.jsonl"),
            judge=SMALL,
            constitution="helpfulness",
            method=method,
            min_mass=0,
            **OPTIONS,
        )
        summary = label(config, pool)
        assert summary.unscored == 0
        for row in rows_of(config.output):  # this judge follows the position: both orders' mean is near one half
            read |= {round(p, 3) for p in row["judge"].get("p_first") or [row["p_chosen"]]}
        # The side that stood first in the candidates: `pair` names the responses, chosen first.
        p_first.append(
            {
                row["id"]: row["p_chosen"] if row["meta"]["pair"] == [0, 1] else 1 - row["p_chosen"]
                for row in rows_of(config.output)
            }
        )
    forth, back = p_first
    assert forth.keys() == back.keys() == {f"r{i}" for i in range(len(ROWS))}
    assert max(abs(forth[key] + back[key] - 1) for key in forth) < 1e-3
    # Verdicts that ignore the responses, or one value everywhere, would pass the line above.
    assert len(read) >= 3 and max(read) - min(read) > 0.01


def test_a_real_models_logprobs_are_those_of_transformers(small: Path, pool: EnginePool) -> None:
    engine = pool.get(EngineConfig(**OPTIONS), SMALL)
    tokenizer = ChatTokenizer(small)
    prompt = tokenizer.chat([Message(role="user", content=ROWS[0][0])])
    requests = [Request(i, prompt, continuation=tokenizer.response(text)) for i, text in enumerate(ROWS[0][1:])]
    reference = TransformersEngine(small, dtype="float32")
    want, first, second = (dict(e.logprobs(requests)) for e in (reference, engine, engine))
    for key in want:
        assert first[key] == pytest.approx(want[key], abs=1e-3)
        assert second[key] == pytest.approx(want[key], abs=1e-3)
    assert sum(want[0]) / len(want[0]) > sum(want[1]) / len(want[1])  # Paris is the likelier answer
    [completion] = sampled(engine, [Request(0, prompt)], temperature=0.0, max_tokens=8)[0]
    assert "Paris" in completion.text


def test_generate_and_label_in_a_pipe(small: Path, pool: EnginePool, tmp_path: Path) -> None:
    pool.close()
    prompts = '{"prompt": "Name a colour."}\n{"prompt": "Say hello."}\n'
    (tmp_path / "p.jsonl").write_text(prompts)
    command = (
        f"set -o pipefail; {sys.executable} -m rlaif_cli generate p.jsonl --model {SMALL} -n 2 --max-tokens 8"
        f" | {sys.executable} -m rlaif_cli label - --judge {SMALL} --constitution helpfulness --min-mass 0"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=200, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2 and {row["prompt"][0]["content"] for row in rows} == {"Name a colour.", "Say hello."}
    assert all(0.5 <= row["p_chosen"] <= 1 and row["judge"]["mass"] for row in rows)


# Known gap: the template takes the blank off the prefilled "Number: ", and the server then shows less of the labels.
TRIMS = pytest.param(
    "trims", marks=pytest.mark.xfail(reason="the server's labels have less mass behind such a template")
)


@pytest.fixture(params=["as it is", TRIMS])
def asked(request: pytest.FixtureRequest, small: Path, tmp_path: Path) -> Path:
    """The built-in model with its own chat template, or with one that trims every message."""
    if request.param == "as it is":
        return small
    folder = tmp_path / "model"
    shutil.copytree(small, folder, symlinks=True)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    assert "message['content']" in template
    (folder / "chat_template.jinja").write_text(template.replace("message['content']", "(message['content'] | trim)"))
    return folder


@pytest.fixture
def served(asked: Path, pool: EnginePool, tmp_path: Path) -> Iterator[str]:
    """`vllm serve` with that model; its address."""
    pool.close()
    with vllm_serve(asked, "judge", tmp_path / "serve.log", "--dtype", "float32", "--max-model-len", "1024") as address:
        yield address


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pairwise", "score"])
def test_a_served_judge_gives_the_labels_of_the_engine(served: str, asked: Path, tmp_path: Path, method: str) -> None:
    """Also the scores, of which the tokenizer writes "10" as "1" and "0"."""
    pairs = [("A dog is an animal.", "asdf qwer"), ("Yes, gladly.", "No."), ("4", "The sum of 2 and 2 is 5.")]
    rows = [{"id": str(i), "prompt": f"Question {i}?", "responses": list(pair)} for i, pair in enumerate(pairs)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for name, options in (
        ("openai", {"engine": "openai", "base_url": served, "judge": "judge"}),
        ("vllm", {**OPTIONS, "judge": str(asked)}),
    ):
        output = str(tmp_path / f"{name}.jsonl")
        config = LabelConfig(
            candidates=str(tmp_path / "c.jsonl"), output=output, method=method, constitution="helpfulness", **options
        )
        with EnginePool() as engines:
            label(config, engines)
        found[name] = {row["id"]: row for row in rows_of(output)}
    for name, pair in enumerate(pairs):
        a, b = (found[engine][str(name)] for engine in ("vllm", "openai"))
        p = [row["p_chosen"] if row["chosen"][0]["content"] == pair[0] else 1 - row["p_chosen"] for row in (a, b)]
        assert p[1] == pytest.approx(p[0], abs=0.02)
        assert sorted(b["judge"]["mass"]) == pytest.approx(sorted(a["judge"]["mass"]), abs=0.02)
        assert min(a["judge"]["mass"]) > 0.3, "the judge answers"
        if method == "score":
            assert sorted(b["judge"]["scores"]) == pytest.approx(sorted(a["judge"]["scores"]), abs=0.05)
