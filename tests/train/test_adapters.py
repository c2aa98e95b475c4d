"""LoRA: what is trained, merged, stored and shared must be one and the same model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from helpers import rlaif, rows_of
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.config.train import RewardModelConfig, SftConfig
from rlaif_cli.models.tokenizer import ChatTokenizer
from rlaif_cli.train.nn import lora
from rlaif_cli.train.nn.heads import load_policy, load_reward_model, response_logprobs, rewards, trainable
from rlaif_cli.train.nn.lora import Adapted
from rlaif_cli.train.nn.packing import Group, Packed, pack
from rlaif_cli.train.ppo import train_ppo
from rlaif_cli.train.ppo_update import Trainer
from rlaif_cli.train.reward_model import train_reward_model
from rlaif_cli.train.rollout import policy_weights
from rlaif_cli.train.sft import train_sft

LORA: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 16, "precision": "fp32"}


pytestmark = pytest.mark.usefixtures("one_thread")


def batch() -> Packed:
    return pack([Group([1, 5, 9, 7], [[40, 41, 42], [50, 51]]), Group([3, 8], [[60], [61, 62]])])


def shaken(model: Any, name: str) -> Any:
    """An adapter that changes something: its second factor is no longer zero."""
    torch.manual_seed(len(name))
    for key, parameter in model.named_parameters():
        if ".lora_B." in key and f".{name}." in key:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def config(kind: type, tmp_path: Path, tiny: Path, **options: Any) -> Any:
    return kind(**(LORA | {"model": str(tiny), "output": str(tmp_path / kind.__name__), "lr": 1e-2} | options))


@torch.no_grad()
def logprobs(model: Any) -> torch.Tensor:
    return response_logprobs(model, batch(), 1.0)


@pytest.fixture
def shared(tiny: Path, tmp_path: Path) -> Any:
    """A policy's body with the adapters "one" and "two"."""
    model = load_policy(tiny)
    options = config(SftConfig, tmp_path, tiny, records="-")
    for name in ("one", "two"):
        lora.add(model, name, options)
        shaken(model, name)
    return model


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(tiny: Path, tmp_path: Path) -> None:
    plain = logprobs(load_policy(tiny))
    model = trainable(load_policy(tiny), config(SftConfig, tmp_path, tiny, records="-"))
    torch.testing.assert_close(logprobs(model), plain, atol=0, rtol=0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    assert len(trained) == 2 * 7 * 2, "two factors for each of a layer's seven products"


def test_adapters_on_one_body_do_not_touch_each_other(tiny: Path, shared: Any) -> None:
    plain = logprobs(load_policy(tiny))
    one, two, reference = Adapted(shared, "one"), Adapted(shared, "two"), Adapted(shared, None)
    first = logprobs(one)
    assert (first - plain).abs().max() > 1e-2 and (first - logprobs(two)).abs().max() > 1e-2
    torch.testing.assert_close(logprobs(reference), plain, atol=1e-6, rtol=0)
    torch.testing.assert_close(logprobs(one), first, atol=0, rtol=0)
    response_logprobs(two, batch(), 1.0).sum().backward()
    assert all(p.grad is not None for p in two.trained_parameters().values())
    assert all(p.grad is None for p in one.trained_parameters().values())


def test_merged_is_applied(tiny: Path, shared: Any) -> None:
    """By the weights that are sent to an engine, and by the module that is saved."""
    policy = Adapted(shared, "two")
    applied = logprobs(policy)
    sent = load_policy(tiny)
    weights = dict(policy_weights(policy))
    assert weights.keys() == {*dict(sent.named_parameters()), "lm_head.weight"}
    sent.load_state_dict(weights, strict=False)
    torch.testing.assert_close(logprobs(sent), applied, atol=1e-5, rtol=1e-5)
    merged = lora.merge(policy)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in sent.named_parameters()}
    torch.testing.assert_close(logprobs(merged), applied, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_changes_no_gradient(tiny: Path, tmp_path: Path, checkpointing: bool) -> None:
    def gradients(**options: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = trainable(load_policy(tiny), config(SftConfig, tmp_path, tiny, records="-", **options))
        response_logprobs(shaken(model, "trained"), batch(), 1.0).sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    by_lora = {} if checkpointing else {"lora_rank": 0, "lora_alpha": None}
    plain, again = gradients(**by_lora), gradients(gradient_checkpointing=True, **by_lora)
    assert plain and plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-5)


@pytest.fixture
def preferences(write_jsonl: Callable[..., str]) -> str:
    rows = [
        {"prompt": f"Question {i % 6}?", "chosen": f"good {i}", "rejected": "bad!", "p_chosen": 0.9} for i in range(12)
    ]
    return write_jsonl("preferences.jsonl", rows)


def train_rm(tiny: Path, tmp_path: Path, preferences: str, **options: Any) -> Path:
    settings = config(RewardModelConfig, tmp_path, tiny, preferences=preferences, epochs=4, batch_size=4, **options)
    results = train_reward_model(settings)
    assert results["held_out"]["accuracy"] == 1
    return Path(settings.output)


def test_a_reward_model_is_saved_merged_and_as_its_adapter(tiny: Path, tmp_path: Path, preferences: str) -> None:
    folder = train_rm(tiny, tmp_path, preferences)
    packed = batch()
    with torch.no_grad():
        merged = rewards(load_reward_model(folder), packed)
        base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1)
        theirs = PeftModel.from_pretrained(base, folder / "adapter").base_model.model
        theirs.config.use_cache = False
        ids = [[1, 5, 9, 7, 40, 41, 42], [1, 5, 9, 7, 50, 51]]
        alone = [theirs.score(theirs.model(input_ids=torch.tensor([row])).last_hidden_state)[0, -1, 0] for row in ids]
    torch.testing.assert_close(torch.stack(alone), merged[0], atol=1e-4, rtol=1e-4)
    assert (merged[0, 0] - merged[0, 1]).abs() > 1e-3
    assert not list(folder.glob("**/*.bin"))


def test_ppo_holds_one_body(tiny: Path, tmp_path: Path, preferences: str) -> None:
    """Policy, reference, value and reward model; the reward and first values are those of the merged reward model."""
    folder = train_rm(tiny, tmp_path, preferences)
    options = config(PPOConfig, tmp_path, tiny, prompts="-", reward_model=str(folder), engine="transformers")
    trainer = Trainer(options, tiny, folder)
    reward = trainer.load_adapter(folder)
    assert reward is not None and trainer.value_model is not None
    assert trainer.policy.shared is trainer.reference.shared is trainer.value_model.shared is reward.shared
    packed = batch()
    with torch.no_grad():
        merged = rewards(load_reward_model(folder), packed)
        torch.testing.assert_close(rewards(reward, packed), merged, atol=1e-4, rtol=1e-4)
        scale = json.loads((folder / "config.json").read_text())["rlaif"]
        normalised = (merged - scale["reward_mean"]) / scale["reward_std"]
        torch.testing.assert_close(rewards(trainer.value_model, packed), normalised, atol=1e-3, rtol=1e-3)
    trained = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
    assert trained < 0.5 * sum(p.numel() for p in load_policy(tiny).parameters())


def test_a_reward_model_of_another_base_is_loaded_whole(tiny: Path, tmp_path: Path, preferences: str) -> None:
    folder = train_rm(tiny, tmp_path, preferences)
    other = load_policy(tiny)
    torch.nn.init.normal_(other.model.norm.weight)
    other.save_pretrained(tmp_path / "other")
    assert lora.adapter_of_base(folder, tiny) is not None
    assert lora.adapter_of_base(folder, tmp_path / "other") is None
    assert lora.adapter_of_base(tiny, tiny) is None, "it has no adapter"


class Lowercase:
    def score(self, prompts: Any, responses: Any) -> torch.Tensor:
        return torch.tensor([[sum("a" <= c <= "z" for c in t) / max(1, len(t)) for t in texts] for texts in responses])


@pytest.mark.parametrize("advantage", [pytest.param("gae", marks=pytest.mark.slow), "rloo"])
def test_ppo_by_adapters_climbs_and_resumes(
    tiny: Path, tmp_path: Path, write_jsonl: Callable[..., str], advantage: str
) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"prompt": f"Say {i}"} for i in range(10)])
    options = {"judge": "fake", "constitution": "helpfulness", "engine": "transformers", "max_tokens": 8, "n": 4}
    options |= {"prompts_per_step": 8, "steps": 30, "kl_coef": 0.0, "lr": 3e-2, "save_every": 10, "prompts": prompts}
    rows = {}
    for name, stop in (("whole", None), ("cut", 25), ("cut", None)):
        settings = config(PPOConfig, tmp_path, tiny, advantage=advantage, **options, overwrite=False)
        settings = settings.model_copy(update={"output": str(tmp_path / name)})

        def progress(done: int, *_: Any, stop: int | None = stop) -> None:
            if done == stop:
                raise KeyboardInterrupt

        if stop:
            with pytest.raises(KeyboardInterrupt):
                train_ppo(settings, lambda _: Lowercase(), progress=progress)
        else:
            train_ppo(settings, lambda _: Lowercase())
            rows[name] = [row["reward"] for row in rows_of(tmp_path / name / "metrics.jsonl")]
    assert sum(rows["whole"][-3:]) / 3 > sum(rows["whole"][:3]) / 3 + 0.3
    assert rows["cut"] == rows["whole"]
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = ChatTokenizer(tiny)
    base = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), tmp_path / "whole" / "adapter")
    ids = torch.tensor([tokenizer.response("some text")])
    with torch.no_grad():
        torch.testing.assert_close(base(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-3, rtol=1e-3)


def test_sft_by_an_adapter_learns(tiny: Path, tmp_path: Path, write_jsonl: Callable[..., str]) -> None:
    records = write_jsonl("records.jsonl", [{"prompt": f"Say {i}", "response": "aaaa bbbb"} for i in range(20)])
    results = train_sft(config(SftConfig, tmp_path, tiny, records=records, epochs=6, batch_size=4, lr=3e-2))
    assert results["held_out"]["loss"] < 0.7 * results["held_out"]["loss_before"]


def test_the_command_line_says_what_does_not_go_together(preferences: str, tmp_path: Path) -> None:
    arguments = ("train-rm", preferences, "--model", "fake", "-o", "rm")
    done = rlaif(*arguments, "--lora-alpha", "8", cwd=tmp_path)
    assert done.returncode == 2 and "--lora-alpha needs --lora-rank" in done.stderr
    done = rlaif(*arguments, "--optimizer", "adamw-8bit", cwd=tmp_path)
    assert done.returncode == 2 and ("bitsandbytes" in done.stderr or "needs a GPU" in done.stderr)
