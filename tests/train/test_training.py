"""Training on a tiny model: what packing and padding must not change, what a checkpoint must hold, that it learns."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import rlaif, rows_of
from rlaif_cli.cli.train_rm import summary
from rlaif_cli.config.evaluate import RewardModelEvalConfig
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.config.train import RewardModelConfig, SftConfig
from rlaif_cli.data.messages import Message, prompt_text
from rlaif_cli.data.records import Demonstration
from rlaif_cli.engines import EnginePool
from rlaif_cli.engines.base import Completion
from rlaif_cli.errors import DivergedError, EngineError, InputError, ModelError, RlaifWarning, UsageError
from rlaif_cli.evaluation.reward_model import reward_model as evaluate_reward_model
from rlaif_cli.models.tokenizer import ChatTokenizer
from rlaif_cli.train.dataset import held_out
from rlaif_cli.train.nn.heads import (
    hidden_states,
    load_policy,
    load_reward_model,
    new_reward_model,
    response_logprobs,
    rewards,
    values,
)
from rlaif_cli.train.nn.packing import Group, micro_batches, pack
from rlaif_cli.train.ppo import check_mismatch, shaped_scores, train_ppo
from rlaif_cli.train.ppo_update import Trainer, batch_advantages, group_advantages, token_rewards
from rlaif_cli.train.reward_function import PromptRow
from rlaif_cli.train.reward_model import Pair, hardened, score_groups, split, train_reward_model, train_step
from rlaif_cli.train.reward_source import reward_source, stored_scale
from rlaif_cli.train.rollout import Prompt, Rollout, policy_weights
from rlaif_cli.train.runtime import checkpoint
from rlaif_cli.train.runtime.checkpoint import TrainState
from rlaif_cli.train.runtime.run_folder import _claimed
from rlaif_cli.train.sft import mean_loss, train_sft

PPO_DEFAULTS = {
    "judge": "fake",
    "constitution": "helpfulness",
    "engine": "transformers",
    "precision": "fp32",
    "max_tokens": 8,
    "prompts_per_step": 4,
    "n": 2,
    "lr": 1e-3,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def policy(tiny: Path) -> Any:
    return load_policy(tiny)


@pytest.fixture
def reward_model(tiny: Path) -> Any:
    return new_reward_model(tiny, seed=3)


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(3, 259, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def make_groups() -> list[Group]:
    """Groups of very different lengths."""
    lengths = [(7, 3, 9), (20, 1, 1), (2, 30, 4), (11, 6, 17)]
    return [Group(tokens(p, i), [tokens(a, 10 + i), tokens(b, 20 + i)]) for i, (p, a, b) in enumerate(lengths)]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys() and a
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


# ------------------------------------------------------------------------------------------- packing and padding


def one_by_one_rewards(model: Any, groups: Sequence[Group]) -> torch.Tensor:
    """transformers' own forward on each unpadded sequence."""
    rows = [[model(input_ids=torch.tensor([[*g.prompt, *r]])).logits[0, 0] for r in g.responses] for g in groups]
    return torch.stack([torch.stack(row) for row in rows])


def one_by_one_logprobs(model: Any, groups: Sequence[Group]) -> list[torch.Tensor]:
    found = []
    for group in groups:
        for response in group.responses:
            logits = model(input_ids=torch.tensor([[*group.prompt, *response]])).logits[0]
            at = logits[len(group.prompt) - 1 : -1].log_softmax(-1)
            found.append(at.gather(1, torch.tensor(response)[:, None])[:, 0])
    return found


def test_packed_rewards_and_their_gradients_are_those_of_single_sequences(reward_model: Any) -> None:
    groups = make_groups()
    packed = rewards(reward_model, pack(groups))
    (packed**2).sum().backward()
    packed_gradients = gradients(reward_model)
    single = one_by_one_rewards(reward_model, groups)
    (single**2).sum().backward()
    torch.testing.assert_close(packed, single, atol=1e-4, rtol=1e-4)
    assert_same(packed_gradients, gradients(reward_model), atol=1e-4, rtol=1e-3)


def test_packed_logprobs_and_their_gradients_are_those_of_single_sequences(policy: Any) -> None:
    groups = make_groups()
    batch = pack(groups)
    packed = response_logprobs(policy, batch, 1.0)[batch.response_mask]
    packed.mean().backward()
    packed_gradients = gradients(policy)
    single = torch.cat(one_by_one_logprobs(policy, groups))
    single.mean().backward()
    torch.testing.assert_close(packed, single, atol=1e-4, rtol=1e-4)
    assert_same(packed_gradients, gradients(policy), atol=1e-5, rtol=1e-3)


def test_packed_values_are_those_of_single_sequences(reward_model: Any) -> None:
    groups = make_groups()
    batch = pack(groups)
    packed = values(reward_model, batch)[batch.response_mask]
    packed.mean().backward()
    packed_gradients = gradients(reward_model)
    single = []
    for group in groups:
        for response in group.responses:
            ids = torch.tensor([[*group.prompt, *response]])
            states = reward_model.model(input_ids=ids).last_hidden_state[0, len(group.prompt) - 1 : -1]
            single.append(reward_model.score(states)[:, 0])
    torch.cat(single).mean().backward()
    torch.testing.assert_close(packed, torch.cat(single), atol=1e-4, rtol=1e-4)
    assert_same(packed_gradients, gradients(reward_model), atol=1e-5, rtol=1e-3)


def test_temperature_divides_the_logits(policy: Any) -> None:
    groups = make_groups()[:1]
    batch = pack(groups)
    with torch.no_grad():
        found = response_logprobs(policy, batch, 0.5)[batch.response_mask]
        logits = policy(input_ids=torch.tensor([[*groups[0].prompt, *groups[0].responses[0]]])).logits[0]
    at = (2 * logits[len(groups[0].prompt) - 1 : -1]).log_softmax(-1)
    want = at.gather(1, torch.tensor(groups[0].responses[0])[:, None])[:, 0]
    torch.testing.assert_close(found[: len(want)], want, atol=1e-4, rtol=1e-4)


def test_a_branch_does_not_see_the_others(reward_model: Any) -> None:
    group = make_groups()[0]
    other = Group(group.prompt, [group.responses[0], tokens(13, 99)])
    with torch.no_grad():
        first, second = rewards(reward_model, pack([group])), rewards(reward_model, pack([other]))
    torch.testing.assert_close(first[0, 0], second[0, 0], atol=1e-5, rtol=1e-5)
    assert (first[0, 1] - second[0, 1]).abs() > 1e-3


def test_the_reward_is_read_at_the_last_real_token(reward_model: Any) -> None:
    short, long = Group(tokens(4, 1), [tokens(3, 2)]), Group(tokens(50, 3), [tokens(30, 4)])
    with torch.no_grad():
        alone = rewards(reward_model, pack([short]))[0]
        batch = pack([short, long])
        beside = rewards(reward_model, batch)[0]
        at_the_end = reward_model.score(hidden_states(reward_model, batch))[0, -1]
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=1e-5)
    assert (at_the_end - alone).abs() > 1e-2  # what a reward read at a pad would be: the comparison above can fail


def test_a_last_token_that_equals_the_pad_token_is_read_all_the_same(reward_model: Any) -> None:
    pad = reward_model.config.pad_token_id
    prompt, response = tokens(5, 1), tokens(4, 2)
    with torch.no_grad():
        found = rewards(reward_model, pack([Group(prompt, [[*response, pad]])]))[0, 0]
        states = reward_model.model(input_ids=torch.tensor([[*prompt, *response, pad]])).last_hidden_state
        without = rewards(reward_model, pack([Group(prompt, [response])]))[0, 0]
    torch.testing.assert_close(found, reward_model.score(states)[0, -1, 0], atol=1e-5, rtol=1e-5)
    assert (found - without).abs() > 1e-3


def test_micro_batches_hold_every_group_once_within_the_budget() -> None:
    groups = make_groups()
    for budget in (1, 40, 80, 10_000):
        batches = list(micro_batches(groups, budget))
        assert sorted(i for batch in batches for i in batch) == [0, 1, 2, 3]
        assert all(len(b) == 1 or sum(groups[i].tokens for i in b) <= budget for b in batches)


def test_scores_do_not_depend_on_the_token_budget(reward_model: Any) -> None:
    groups = make_groups()
    small, large = (score_groups(reward_model, groups, "fp32", budget) for budget in (1, 10_000))
    assert abs(small - large).max() < 1e-5


@pytest.mark.parametrize(
    "groups", [[Group([1], [[2]]), Group([1], [[2], [3]])], [Group([], [[2]])], [Group([1], [[]])]]
)
def test_packing_refuses_what_it_cannot_lay_out(groups: list[Group]) -> None:
    with pytest.raises(ValueError):
        pack(groups)


# ------------------------------------------------------------------------------------------- the reward model's step


def rm_config(**options: Any) -> RewardModelConfig:
    return RewardModelConfig(
        **({"preferences": "-", "output": "-", "model": "-", "precision": "fp32", "max_grad_norm": 1e9} | options)
    )


def step_gradient(tiny: Path, pairs: list[Pair], **options: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of one `train_step`, read off a step of plain SGD."""
    model = new_reward_model(tiny, seed=3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    numbers = train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), pairs, rm_config(**options))
    return numbers["loss"], {name: before[name] - p.detach() for name, p in model.named_parameters()}


def make_pairs() -> list[Pair]:
    return [Pair(group, p, f"prompt {p}") for group, p in zip(make_groups(), (0.9, 0.6, 1.0, 0.5), strict=True)]


def test_splitting_a_batch_into_micro_batches_changes_nothing(tiny: Path) -> None:
    whole_loss, whole = step_gradient(tiny, make_pairs(), tokens_per_batch=10_000, centering=0.1)
    split_loss, parts = step_gradient(tiny, make_pairs(), tokens_per_batch=64, centering=0.1)
    assert whole_loss == pytest.approx(split_loss, abs=1e-5)
    assert_same(whole, parts, atol=1e-5, rtol=1e-3)


def test_swapping_chosen_and_rejected_with_the_other_label_is_the_same_pair(tiny: Path) -> None:
    swapped = [Pair(Group(p.group.prompt, p.group.responses[::-1]), 1 - p.p_chosen, p.prompt) for p in make_pairs()]
    loss, gradient = step_gradient(tiny, make_pairs())
    other_loss, other_gradient = step_gradient(tiny, swapped)
    assert loss == pytest.approx(other_loss, abs=1e-5)
    assert_same(gradient, other_gradient, atol=1e-5, rtol=1e-3)


def test_the_held_out_part_shares_no_prompt_with_the_training_part() -> None:
    pairs = [Pair(Group([5], [[6], [7]]), 0.8, f"prompt {i % 20}") for i in range(60)]
    train, test = split(pairs, rm_config(eval_fraction=0.2))
    assert len(train) == 48 and len(test) == 12
    assert not {p.prompt for p in train} & {p.prompt for p in test}
    assert split(pairs, rm_config(eval_fraction=0.2, seed=1))[1] != test
    assert split(pairs, rm_config(eval_fraction=0))[1] == []


# ------------------------------------------------------------------------------------------- the reward model's run


def preference(index: int, p: float = 0.8, prompt: str | None = None) -> dict[str, Any]:
    return {
        "id": f"r{index}",
        "prompt": [{"role": "user", "content": prompt or f"Question {index % 6}?"}],
        "chosen": [{"role": "assistant", "content": "good " * (1 + index % 3) + str(index)}],
        "rejected": [{"role": "assistant", "content": "bad" + "!" * (index % 4)}],
        "p_chosen": p,
    }


@pytest.fixture
def train_rm(tiny: Path, tmp_path: Path, write_jsonl: Callable[..., str]) -> Callable[..., Path]:
    """Train a reward model into tmp_path/<name>; `stop`: the step after which the run is interrupted."""

    def run(name: str, rows: list[Any] | None = None, stop: int | None = None, **options: Any) -> Path:
        data = write_jsonl("preferences.jsonl", rows or [preference(i) for i in range(12)])
        config = rm_config(
            **({"model": str(tiny), "lr": 1e-3, "batch_size": 4} | options),
            preferences=data,
            output=str(tmp_path / name),
        )
        if stop is None:
            train_reward_model(config)
        else:
            with pytest.raises(Interrupted):
                train_reward_model(config, progress=interrupt_after(stop))
        return tmp_path / name

    return run


class Interrupted(Exception):
    pass


def interrupt_after(stop: int) -> Callable[..., None]:
    def progress(done: int, *_: Any) -> None:
        if done == stop:
            raise Interrupted

    return progress


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The metrics, without what a clock decides."""
    rows = rows_of(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not ("seconds" in k or k.endswith("_per_second"))} for row in rows]


def assert_same_run(a: Path, b: Path) -> None:
    assert log_of(a) == log_of(b)
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert not (b / "state").exists()


def test_the_saved_checkpoint_gives_the_same_rewards_in_plain_transformers(train_rm: Any) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = train_rm("rm")
    ours, theirs = load_reward_model(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
    tokenizer = ChatTokenizer(folder)
    prompt = tokenizer.chat([Message(role="user", content="What is good?")])
    groups = [Group(prompt, [tokenizer.response(text) for text in ("good", "bad, and longer than that")])]
    with torch.no_grad():
        want = one_by_one_rewards(theirs, groups)
    found = torch.from_numpy(score_groups(ours, groups, "fp32", 2048)).float()
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)
    assert (want[0, 0] - want[0, 1]).abs() > 1e-3
    assert theirs.config.num_labels == 1
    scale = json.loads((folder / "config.json").read_text())["rlaif"]
    assert scale["reward_std"] > 0 and math.isfinite(scale["reward_mean"])


def test_saving_and_loading_keeps_the_head(reward_model: Any, tmp_path: Path) -> None:
    reward_model.save_pretrained(tmp_path)
    assert torch.equal(load_reward_model(tmp_path).score.weight, reward_model.score.weight)


def test_a_causal_lm_is_no_reward_model(tiny: Path) -> None:
    with pytest.raises(ModelError, match="not a reward model"):
        load_reward_model(tiny)


def test_a_checkpoint_without_its_head_is_refused(reward_model: Any, tmp_path: Path) -> None:
    reward_model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["score.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"score\.weight"):
        load_reward_model(tmp_path)


def test_repeated_soft_labels_drive_the_margin_to_their_logit(train_rm: Any) -> None:
    rows = [preference(0, 0.7, "The same?") | {"id": f"r{i}"} for i in range(4)]
    folder = train_rm("rm", rows, epochs=60, eval_fraction=0, lr=1e-3)
    last = log_of(folder)[-1]
    assert last["margin"] == pytest.approx(math.log(0.7 / 0.3), abs=0.05)
    assert last["loss"] == pytest.approx(last["entropy_floor"], abs=1e-3)


def test_an_interrupted_reward_model_run_goes_on_where_it_was(train_rm: Any) -> None:
    whole = train_rm("whole", epochs=2, save_every=2)
    train_rm("cut", epochs=2, save_every=2, stop=3)
    assert (whole.parent / "cut" / "state").is_dir()
    assert_same_run(whole, train_rm("cut", epochs=2, save_every=2))


def test_a_state_brings_the_random_numbers_back(policy: Any, tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(policy.parameters())
    state = TrainState(tmp_path, {"seed": 1}, {"model": policy}, optimizer)
    torch.manual_seed(5)
    state.save({"step": 3})
    expected = torch.rand(3)
    torch.manual_seed(6)
    assert state.load() == {"step": 3}
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("renamed", [True, False])
def test_a_kill_while_a_state_takes_the_place_of_another(train_rm: Any, renamed: bool) -> None:
    """Between the two renames, or before the older state is removed."""
    whole = train_rm("whole", epochs=2, save_every=2)
    train_rm("cut", epochs=2, save_every=2, stop=3)
    state = whole.parent / "cut" / "state"
    if renamed:
        state.rename(state.with_name("state.old"))
    else:
        state.with_name("state.old").mkdir()
        (state.with_name("state.old") / "position.json").write_text("{")
    assert_same_run(whole, train_rm("cut", epochs=2, save_every=2))


def noisy_preferences(count: int, p: float) -> list[dict[str, Any]]:
    """Prompts of their own, and a judge that is right with probability `p` and says so."""
    return [preference(i, p, f"Number {i}?") | {"id": f"n{i}"} for i in range(count)]


def held_out_results(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text())["results"]["held_out"])


def test_soft_labels_are_better_calibrated_than_the_same_hardened(train_rm: Any) -> None:
    options = {"epochs": 6, "eval_fraction": 0.4, "lr": 3e-3}
    rows = noisy_preferences(30, 0.75)
    soft, hard = (held_out_results(train_rm(str(hard), rows, hard_labels=hard, **options)) for hard in (False, True))
    assert soft["accuracy"] == hard["accuracy"] == 1, "both know which is better"
    assert soft["ece"] < 0.1 < 0.15 < hard["ece"]
    assert soft["brier"] < 0.02 < hard["brier"]
    assert soft["loss"] == pytest.approx(soft["entropy_floor"], abs=0.05)


def test_shuffled_labels_teach_nothing(train_rm: Any) -> None:
    drawn = random.Random(4)
    rows = noisy_preferences(60, 0.9)
    for row in rows:
        if drawn.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    found = held_out_results(train_rm("rm", rows, epochs=6, eval_fraction=0.5, lr=3e-3))
    low, high = found["accuracy_interval"]
    assert found["pairs"] == 30 and low <= 0.5 <= high


def test_patience_keeps_the_weights_of_the_lowest_held_out_loss(train_rm: Any) -> None:
    # Opposite labels on the two sides of the split: the more it learns, the worse it does on what it does not see.
    rows = [preference(i, 0.9) for i in range(12)]
    away = held_out((row["prompt"][0]["content"] for row in rows), 0.4, 0)
    for row in rows:
        if row["prompt"][0]["content"] in away:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    options: dict[str, Any] = {"eval_fraction": 0.4, "epochs": 6, "eval_every": 2, "save_every": 1, "lr": 3e-3}
    folder = train_rm("patient", rows, patience=2, **options)
    log, weights = log_of(folder), json.loads((folder / "manifest.json").read_text())["results"]["weights"]
    losses = {row["step"]: row["held_out_loss"] for row in log if "held_out_loss" in row}
    assert list(losses) == list(range(2, len(log) + 1, 2))
    assert losses[weights["step"]] == min(losses.values()) < list(losses.values())[-1]
    assert len(log) == weights["step"] + 4 < weights["of"], "two measurements later it stopped"
    chooses = held_out(away, 0.5, 0)
    results = json.loads((folder / "manifest.json").read_text())["results"]
    found = [measured(folder, rows, prompts) for prompts in (chooses, away - chooses)]
    assert found[0] == pytest.approx(losses[weights["step"]], abs=1e-3), "and the saved model is that one"
    assert results["held_out"]["loss"] == pytest.approx(found[1], abs=1e-3), "but it is measured on the other half"
    assert 0 < results["held_out"]["prompts"] == len(away - chooses)
    assert results["chosen_on"] == {"pairs": 2 * len(chooses), "prompts": len(chooses), "also_reported": False}
    assert not list(folder.glob("best*"))
    train_rm("cut", rows, patience=2, **options, stop=weights["step"] + 3)
    assert_same_run(folder, train_rm("cut", rows, patience=2, **options))


def measured(reward_model: Path, rows: list[dict[str, Any]], prompts: set[str]) -> float:
    """The loss of a saved model on the pairs of these prompts."""
    path = reward_model.parent / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["prompt"][0]["content"] in prompts))
    config = RewardModelEvalConfig(
        pairs=str(path), reward_model=(str(reward_model),), output=str(path.with_suffix(".json")), precision="fp32"
    )
    return float(evaluate_reward_model(config)["loss"])


def test_one_held_out_prompt_chooses_and_is_reported_and_that_is_said(train_rm: Any) -> None:
    with pytest.warns(RlaifWarning, match="both selects the weights and measures them"):
        folder = train_rm("rm", eval_fraction=0.1, patience=1)
    results = json.loads((folder / "manifest.json").read_text())["results"]
    assert results["chosen_on"]["also_reported"] and results["held_out"]["prompts"] == 1
    assert "held out 2 pairs of 1 prompt: " in summary(results)
    assert "(the weights were chosen on these same pairs)" in summary(results)


def test_patience_without_a_held_out_prompt_is_said_and_claims_nothing(train_rm: Any) -> None:
    """All pairs are of one prompt, which has to be trained on."""
    rows = [preference(0, 0.9, "The same?") | {"id": f"r{i}"} for i in range(4)]
    with pytest.warns(RlaifWarning, match="--patience has no effect: no prompt is held out"):
        folder = train_rm("rm", rows, patience=1)
    results = json.loads((folder / "manifest.json").read_text())["results"]
    assert not {"chosen_on", "held_out"} & results.keys()
    assert "not evaluated, because no pair with a preference was held out" in summary(results)
    assert "chose the weights" not in summary(results)


def test_a_tie_is_no_preference_for_the_rejected_one(train_rm: Any) -> None:
    """Rounding 0.5 down would teach that `rejected` is better."""
    torch.testing.assert_close(hardened(torch.tensor([0.5, 0.49, 0.51, 1.0])), torch.tensor([0.5, 0.0, 1.0, 1.0]))
    tied = [preference(0, 0.5, "The same?") | {"id": f"r{i}"} for i in range(4)]
    options = {"epochs": 40, "eval_fraction": 0, "lr": 1e-3}
    folder = train_rm("kept", tied, hard_labels=True, **options)
    assert log_of(folder)[-1]["margin"] == pytest.approx(0, abs=0.05)
    results = json.loads((folder / "manifest.json").read_text())["results"]
    assert (results["train_pairs"], results["ties"], results["ties_dropped"]) == (4, 4, 0)
    assert "4 pairs (4 of them ties)" in summary(results)
    rows = [tied[0] | {"id": "tie"}, *(preference(i) for i in range(6))]
    results = json.loads((train_rm("dropped", rows, ties="drop", **options) / "manifest.json").read_text())["results"]
    assert (results["train_pairs"], results["ties"], results["ties_dropped"]) == (6, 1, 1)
    assert "6 pairs (1 tie left out)" in summary(results)
    with pytest.raises(InputError, match="every pair to train on is a tie"):
        train_rm("none", tied, ties="drop", **options)


def test_people_measure_a_reward_model_on_prompts_it_was_not_trained_on(
    train_rm: Any, write_jsonl: Callable[..., str]
) -> None:
    pairs = [
        {"prompt": f"Question {i}?", "response_a": "good good", "response_b": "bad!", "human_preference": "a"}
        for i in range(20)
    ]
    folder = train_rm("rm", epochs=4, human=write_jsonl("human.jsonl", pairs))
    results = json.loads((folder / "manifest.json").read_text())["results"]
    held_out_prompts = 1  # a tenth of the six
    assert results["human"]["pairs"] == 20 - (6 - held_out_prompts)
    assert results["human"]["accuracy"] > 0.8, "it learned that good is better than bad"


def test_the_margin_is_asked_beyond_the_label(train_rm: Any) -> None:
    rows = [preference(0, 0.7, "The same?") | {"id": f"r{i}"} for i in range(4)]
    last = log_of(train_rm("rm", rows, epochs=60, eval_fraction=0, lr=1e-3, margin=0.5))[-1]
    assert last["margin"] == pytest.approx(math.log(0.7 / 0.3) + 0.5, abs=0.05)


def test_tensorboard_gets_what_metrics_jsonl_has(train_rm: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train_rm("rm", tracker=("tensorboard",))
    events = EventAccumulator(str(folder / "tracker" / "rm"))
    events.Reload()
    want = [(row["step"], row["loss"]) for row in log_of(folder)]
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in found] == [step for step, _ in want]
    assert [value for _, value in found] == pytest.approx([value for _, value in want], abs=1e-6)


def test_a_tracker_that_is_not_there_is_named_before_training(train_rm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    with pytest.raises(UsageError, match="--tracker wandb needs a package"):
        train_rm("rm", tracker=("wandb",))


# ------------------------------------------------------------------------------------------- supervised fine-tuning


def sft_config(**options: Any) -> SftConfig:
    return SftConfig(**({"records": "-", "output": "-", "model": "-", "precision": "fp32"} | options))


def test_the_loss_is_on_the_response_tokens_alone(policy: Any) -> None:
    groups = [Group(group.prompt, group.responses[:1]) for group in make_groups()]
    logprobs = [row for row in one_by_one_logprobs(policy, groups)]
    tokens = sum(len(row) for row in logprobs)
    want = -sum(float(row.detach().sum()) for row in logprobs) / tokens
    for budget in (64, 10_000):
        assert mean_loss(policy, groups, sft_config(tokens_per_batch=budget)) == pytest.approx(want, abs=1e-4)


@pytest.fixture
def sft(tiny: Path, tmp_path: Path, write_jsonl: Callable[..., str]) -> Callable[..., Path]:
    def run(name: str, stop: int | None = None, **options: Any) -> Path:
        rows = [{"id": str(i), "prompt": f"Question {i}?", "response": "yes, always"} for i in range(12)]
        data = write_jsonl("demonstrations.jsonl", rows)
        settings = {"model": str(tiny), "lr": 3e-3, "batch_size": 4, "epochs": 8, "eval_fraction": 0.25} | options
        config = sft_config(**settings, records=data, output=str(tmp_path / name))
        if stop is None:
            train_sft(config)
        else:
            with pytest.raises(Interrupted):
                train_sft(config, progress=interrupt_after(stop))
        return tmp_path / name

    return run


def test_sft_learns_what_it_is_shown(sft: Any) -> None:
    folder = sft("sft")
    held_out = json.loads((folder / "manifest.json").read_text())["results"]["held_out"]
    assert held_out["records"] == 3 and held_out["loss"] < 0.5 * held_out["loss_before"]
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and model.config.tie_word_embeddings


def test_an_interrupted_sft_run_goes_on_where_it_was(sft: Any) -> None:
    whole = sft("whole", save_every=2, epochs=2)
    sft("cut", stop=3, save_every=2, epochs=2)
    assert_same_run(whole, sft("cut", save_every=2, epochs=2))


SHAPES: list[dict[str, Any]] = [
    {"prompt": "q", "response": "r"},
    {"prompt": "q", "completion": "r"},
    {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "r"}]},
    {"prompt": "q", "chosen": "r", "rejected": "x", "p_chosen": 0.9},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]},
    {"prompt": "q", "responses": [{"text": "r", "finish_reason": "stop"}]},
    {"instruction": "q", "response": "r"},
]


@pytest.mark.parametrize("row", SHAPES, ids=range(len(SHAPES)))
def test_demonstrations_come_in_many_shapes(row: dict[str, Any]) -> None:
    found = Demonstration.model_validate(row)
    assert (prompt_text(found.prompt), found.response) == ("q", "r")


# ------------------------------------------------------------------------------------------- PPO's parts


def test_the_score_is_on_the_last_token_and_the_kl_on_every_token() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 7.0]])
    reference = torch.tensor([[-1.5, -1.0, -3.0], [-3.0, -2.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = token_rewards(torch.tensor([10.0, 20.0]), logprobs, reference, mask, 0.1)
    want = torch.tensor([[-0.05, 0.1, 10.0], [-0.2, 19.9, 0.0]])
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_group_advantages_compare_the_responses_of_one_prompt(kind: str) -> None:
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    rewards = torch.tensor([[1.0, 2.0], [1.0, 0.0], [-1.0, 6.0], [0.0, 5.0]])
    found = group_advantages(rewards, mask, 2, kind)
    if kind == "rloo":  # 3 against 1: both off the other by 2; 5 against 5: nothing to learn
        want = torch.tensor([[2.0, 2.0], [-2.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    else:
        want = torch.tensor([[0.5**0.5, 0.5**0.5], [-(0.5**0.5), 0.0], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("options", [{"n": 1}, {"lam": 0.9}, {"value_lr": 1e-3}])
def test_group_advantages_refuse_what_they_cannot_use(tiny: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\b(advantage|lam|value_lr) "):
        ppo_config(tiny, advantage="rloo", **options)


@pytest.mark.parametrize("mismatch", [0.21, float("nan"), float("inf")])
def test_stale_weights_stop_the_run(mismatch: float) -> None:
    check_mismatch(0.19, 0.2)
    with pytest.raises(EngineError, match="not synced"):
        check_mismatch(mismatch, 0.2)


def test_a_tied_output_layer_is_among_the_weights_to_sync(policy: Any) -> None:
    weights = dict(policy_weights(policy))
    assert torch.equal(weights["lm_head.weight"], policy.model.embed_tokens.weight)
    assert {name for name, _ in policy.named_parameters()} | {"lm_head.weight"} == set(weights)


def ppo_config(tiny: Path, **options: Any) -> PPOConfig:
    return PPOConfig(**(PPO_DEFAULTS | {"prompts": "-", "output": "-", "model": str(tiny)} | options))


def make_rollouts(policy: Any) -> list[Rollout]:
    groups = make_groups()
    logprobs = iter(row.tolist() for row in one_by_one_logprobs(policy, groups))
    return [
        Rollout(
            Prompt(str(i), [], list(group.prompt)), [Completion("", list(r), next(logprobs)) for r in group.responses]
        )
        for i, group in enumerate(groups)
    ]


def test_ppo_does_not_depend_on_the_token_budget(tiny: Path) -> None:
    results = []
    for budget in (64, 10_000):
        trainer = Trainer(ppo_config(tiny, tokens_per_batch=budget, max_grad_norm=1e9, minibatches=2), tiny, None)
        trainer.optimizer = torch.optim.SGD([*trainer.policy.parameters(), *trainer.value_model.parameters()], lr=1e-2)  # type: ignore[attr-defined]
        with torch.no_grad():
            rollouts = make_rollouts(trainer.policy)
        experience = trainer.experience(rollouts, torch.arange(8.0))
        numbers = trainer.update(experience, step=0)
        results.append((experience, numbers, dict(trainer.policy.named_parameters())))  # type: ignore[attr-defined]
    (small, small_numbers, small_weights), (large, large_numbers, large_weights) = results
    for name in ("old_logprobs", "ref_logprobs", "old_values", "advantages", "returns", "weights"):
        torch.testing.assert_close(
            getattr(small, name)[small.mask], getattr(large, name)[large.mask], atol=1e-4, rtol=1e-4
        )
    assert small_numbers == pytest.approx(large_numbers, abs=1e-3)
    assert_same(small_weights, large_weights, atol=1e-4, rtol=1e-3)
    # The trainer's log-probs are those that the sequences have alone, so the mismatch is nothing.
    torch.testing.assert_close(small.old_logprobs[small.mask], small.rollout_logprobs[small.mask], atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------- PPO's run


class Lowercase:
    """A known reward: the share of lowercase letters in the response."""

    def score(self, rows: Sequence[Any], responses: Sequence[Sequence[str]]) -> torch.Tensor:
        return torch.tensor([[_lowercase(text) for text in texts] for texts in responses])


def _lowercase(text: str) -> float:
    return sum("a" <= c <= "z" for c in text) / max(1, len(text))


@pytest.fixture
def ppo(tiny: Path, tmp_path: Path, write_jsonl: Callable[..., str]) -> Callable[..., Path]:
    def run(name: str, stop: int | None = None, compare: Any = None, **options: Any) -> Path:
        data = write_jsonl("prompts.jsonl", [{"id": f"p{i}", "prompt": f"Say {i}"} for i in range(10)])
        config = ppo_config(tiny, **options, prompts=data, output=str(tmp_path / name))
        if stop is None:
            train_ppo(config, lambda _: Lowercase(), compare)
        else:
            with pytest.raises(Interrupted):
                train_ppo(config, lambda _: Lowercase(), compare, progress=interrupt_after(stop))
        return tmp_path / name

    return run


def mean(rows: list[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("rloo", "grpo", "reinforce")]


@pytest.mark.parametrize("advantage", ["gae", *LONG])
def test_ppo_climbs_a_known_reward(ppo: Any, tiny: Path, advantage: str) -> None:
    folder = ppo("policy", steps=30, prompts_per_step=8, n=4, lr=2e-3, kl_coef=0.0, advantage=advantage)
    rows = log_of(folder)
    assert mean(rows[-3:], "reward") > mean(rows[:3], "reward") + 0.3
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-3) and rows[-1]["kl"] > 1
    assert all(row["mismatch"] < 1e-3 for row in rows)
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and model.config.tie_word_embeddings


@pytest.mark.parametrize("advantage", ["rloo", "grpo", "reinforce"])
def test_ppo_takes_steps_by_every_advantage(ppo: Any, advantage: str) -> None:
    rows = log_of(ppo("policy", steps=2, prompts_per_step=4, n=4, lr=2e-3, advantage=advantage))
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-3) and rows[1]["kl"] != rows[0]["kl"], "the policy moves"
    assert all(row["grad_norm"] > 0 and row["mismatch"] < 1e-3 for row in rows)


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_a_large_kl_coefficient_keeps_the_policy_where_it_is(ppo: Any, kl_in: str) -> None:
    options = {"steps": 16, "prompts_per_step": 8, "n": 8, "max_tokens": 4, "lr": 3e-4, "value_lr": 1e-3}
    free, held = (log_of(ppo(f"kl{kl}", kl_coef=kl, kl_in=kl_in, **options)) for kl in (0.0, 10.0))
    assert abs(mean(held[-3:], "kl")) < 0.2 * mean(free[-3:], "kl")


@pytest.mark.parametrize("lora", [0, 4])
def test_ppo_is_the_same_with_gradient_checkpointing(ppo: Any, lora: int) -> None:
    options = {"steps": 2, "prompts_per_step": 4, "n": 2, "lora_rank": lora}
    plain, saving = (log_of(ppo(f"saving{s}", gradient_checkpointing=s, **options)) for s in (False, True))
    for name in ("reward", "kl", "mismatch", "policy_loss", "grad_norm"):
        assert [row[name] for row in saving] == pytest.approx([row[name] for row in plain], abs=1e-4), name
    assert saving[1]["mismatch"] < 1e-3


def test_rollouts_of_a_bf16_trainer_come_from_a_copy_that_follows_it(ppo: Any) -> None:
    folder = ppo("bf16", steps=6, prompts_per_step=8, n=4, lr=2e-3, kl_coef=0.0, advantage="rloo", precision="bf16")
    rows = log_of(folder)
    assert rows[-1]["kl"] > 0.1, "the policy moves"
    # bf16 rounds to three digits; from the start's weights the difference is the KL's size a token.
    assert all(row["mismatch"] < 0.02 for row in rows) and any(row["mismatch"] > 0 for row in rows)


@pytest.mark.slow
def test_compiled_layers_train_alike(train_rm: Any, ppo: Any) -> None:
    runs = [[train_rm(f"rm{c}", compile=c), ppo(f"policy{c}", steps=3, compile=c)] for c in (False, True)]
    for plain, compiled in zip(*runs, strict=True):
        for a, b in zip(log_of(plain), log_of(compiled), strict=True):
            names = [name for name in ("loss", "reward", "policy_loss", "grad_norm") if name in a]
            assert [b[name] for name in names] == pytest.approx([a[name] for name in names], abs=1e-4)


@pytest.mark.parametrize("stage", ["train-rm", "sft", "ppo"])
def test_a_folder_with_an_input_or_of_another_command_is_never_emptied(stage: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "response": "a", "chosen": "yes", "rejected": "no", "p_chosen": 0.8} for i in range(6)]
    for row in rows if stage == "train-rm" else ():
        row |= {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (mine / "metrics.jsonl").touch()
    reward = ["--reward-model", str(mine / "rm")] if stage == "ppo" else []
    (mine / "rm").mkdir()
    begin = [stage, str(mine / "rows.jsonl"), "--model", "fake", *reward]
    done = rlaif(*begin, "-o", str(mine), "--overwrite")
    assert done.returncode == 2 and "the output would replace an input" in done.stderr
    done = rlaif(stage, str(mine / "*.jsonl"), "--model", "fake", *reward, "-o", str(mine), "--overwrite")
    assert done.returncode == 2 and "the output would replace an input" in done.stderr
    if stage == "ppo":  # text that no file can be named by
        done = rlaif(*begin, "--system", "x" * 9000, "-o", str(tmp_path), "--overwrite", "--dry-run")
        assert done.returncode == 2 and "the output would replace an input" in done.stderr
    other = tmp_path / "other"
    done = rlaif("data", "shard", str(mine / "rows.jsonl"), "--rows", "3", "-o", str(other))
    assert done.returncode == 0, done.stderr
    if stage != "ppo":
        done = rlaif(*begin, "-o", str(other), "--overwrite")
        assert done.returncode == 2 and f"no {stage} run made" in done.stderr
    assert list(other.glob("*-of-*")) and len(rows_of(mine / "rows.jsonl")) == 6


def test_divergence_is_told_as_what_it_is(train_rm: Any, ppo: Any) -> None:
    for run in (train_rm, ppo):
        with pytest.raises(DivergedError, match=r"training diverged: .*(norm|rewards)"):
            run(f"diverged {run}"[:20], lr=1e30, precision="fp32")


def test_a_reward_model_that_prefers_nothing_is_warned_of(train_rm: Any) -> None:
    answer = preference(0)["chosen"]
    rows = [preference(i, prompt="Same?") | {"chosen": answer, "rejected": answer} for i in range(4)]
    with pytest.warns(RlaifWarning, match="prefers nothing"):
        collapsed = train_rm("collapsed", rows=rows)
    with pytest.warns(RlaifWarning, match="prefers nothing"):
        stored_scale(collapsed)


def test_checkpoints_are_made_by_the_clock_where_nothing_is_said(ppo: Any, train_rm: Any, monkeypatch: Any) -> None:
    runs = {
        "policy": lambda name, **more: ppo(name, steps=4, **more),
        "rm": lambda name, **more: train_rm(name, **more),
    }
    for kind, run in runs.items():
        whole = run(f"{kind}, whole")
        run(f"{kind}, too soon", stop=2)
        assert not (whole.parent / f"{kind}, too soon" / "state").exists()
        with monkeypatch.context() as clock:
            clock.setattr(checkpoint, "_SAVE_INTERVAL", 0.0)
            run(f"{kind}, cut", stop=2)
        assert (whole.parent / f"{kind}, cut" / "state").exists()
        assert_same_run(whole, run(f"{kind}, cut"))


def test_too_large_a_kl_stops_before_the_update(ppo: Any) -> None:
    options = {"prompts_per_step": 8, "n": 4, "lr": 2e-3, "kl_coef": 0.0, "advantage": "rloo"}
    folder = ppo("stopped", steps=30, max_kl=0.5, **options)
    rows = log_of(folder)
    assert 1 < len(rows) < 30
    assert rows[-1]["kl"] > 0.5 >= max(row["kl"] for row in rows[:-1])
    assert "policy_loss" in rows[-2] and "policy_loss" not in rows[-1]
    assert json.loads((folder / "manifest.json").read_text())["results"]["stopped_by_kl"]


def test_the_policy_with_the_best_win_rate_is_kept(ppo: Any) -> None:
    """A judge that wants half of the letters lowercase: the reward, which wants all, is then climbed for too long."""

    def compare(texts: Any) -> list[float]:
        return [float(abs(_lowercase(a) - 0.5) < abs(_lowercase(b) - 0.5)) for _, a, b in texts]

    options: dict[str, Any] = {"steps": 24, "prompts_per_step": 8, "n": 4, "lr": 2e-3, "kl_coef": 0.0}
    options |= {"advantage": "rloo", "eval_judge": "fake", "eval_every": 3, "eval_fraction": 0.4, "compare": compare}
    folder = ppo("chosen", save_every=4, **options)
    rows, results = log_of(folder), json.loads((folder / "manifest.json").read_text())["results"]
    rates = {row["step"]: row["win_rate"] for row in rows if "win_rate" in row}
    assert list(rates) == list(range(3, 25, 3))
    kept, highest = results["weights"], max(rates, key=lambda s: rates[s])
    assert kept["step"] == highest < 24 and rates[highest] > rates[24]
    assert (kept["highest_win_rate"], kept["looks"]) == (round(rates[highest], 4), 8)
    assert kept["prompts"] == 2 and kept["win_rate"]["n"] == 8 == kept["highest_win_rate_n"]
    trained_on = {row["prompt"][0]["content"] for row in rows_of(folder / "samples.jsonl")}
    held_out = {item["id"] for item in rows_of(folder / "evaluations.items.jsonl")}
    assert len(held_out) == 4 and not {f"Say {name[1:]}" for name in held_out} & trained_on
    ppo("cut", stop=10, save_every=4, **options)
    assert_same_run(folder, ppo("cut", save_every=4, **options))


def test_scores_are_shaped_as_asked(tiny: Path) -> None:
    raw = torch.tensor([1.0, 2.0])
    responses = [Completion("", [5, 6], [0.0, 0.0], "stop"), Completion("", [5, 6, 7], [0.0] * 3, "length")]
    assert shaped_scores(ppo_config(tiny), raw, responses).tolist() == [1, 2]
    assert shaped_scores(ppo_config(tiny, missing_eos_penalty=-1), raw, responses).tolist() == [1, -1]
    assert shaped_scores(ppo_config(tiny, length_penalty=0.5), raw, responses).tolist() == [0, 0.5]
    assert shaped_scores(ppo_config(tiny, n=2, length_control=True), raw, responses).tolist() == [1.5, 1.5]
    with pytest.raises(ValueError, match="give only one of them"):
        ppo_config(tiny, length_control=True, length_penalty=0.5)


def test_the_convex_form_weighs_the_score(tiny: Path) -> None:
    """Lee et al.: (1 - beta) score - beta KL."""
    advantages = {}
    for form in ("plain", "convex"):
        trainer = Trainer(ppo_config(tiny, advantage="rloo", kl_form=form, kl_coef=0.25), tiny, None)
        with torch.no_grad():
            rollouts = make_rollouts(trainer.policy)
        advantages[form] = trainer.experience(rollouts, torch.arange(8.0)).advantages
    # The policy is still the reference, so there is no KL and the score is all.
    torch.testing.assert_close(advantages["convex"], 0.75 * advantages["plain"], atol=1e-4, rtol=1e-4)


def test_reinforce_compares_what_is_still_to_come() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    found = batch_advantages(torch.tensor([[1.0, 2.0], [6.0, 9.0]]), mask, gamma=0.5)
    to_come = torch.tensor([2.0, 2.0, 6.0])  # 1 + 2 / 2, 2, 6; the last place is padding
    want = (to_come - to_come.mean()) / to_come.std()
    torch.testing.assert_close(found[mask], want, atol=1e-4, rtol=1e-4)
    assert found[1, 1] == 0


def test_several_reward_models_give_their_mean(tiny: Path, train_rm: Any) -> None:
    folders = [str(train_rm("one")), str(train_rm("other", seed=5))]
    arguments = [PromptRow("p", [Message(role="user", content="q")])], [["good", "bad!"]]

    def score(*reward_models: str) -> torch.Tensor:
        config = ppo_config(tiny, judge=None, constitution=None, reward_model=reward_models)
        return reward_source(config, EnginePool()).score(*arguments)

    torch.testing.assert_close(score(*folders), (score(folders[0]) + score(folders[1])) / 2)
    assert (score(folders[0]) - score(folders[1])).abs().max() > 1e-2


def test_an_interrupted_ppo_run_goes_on_where_it_was(ppo: Any) -> None:
    options = {"steps": 5, "save_every": 2, "kl_target": 1.0}
    whole = ppo("whole", **options)
    ppo("cut", stop=3, **options)
    assert (whole.parent / "cut" / "state").is_dir()
    assert_same_run(whole, ppo("cut", **options))


def test_an_interrupted_ppo_run_writes_every_sample_once(ppo: Any) -> None:
    options = {"steps": 4, "save_every": 2, "samples_every": 1}
    ppo("cut", stop=3, **options)
    steps = [row["step"] for row in rows_of(ppo("cut", **options) / "samples.jsonl")]
    assert steps == sorted(steps) and len(steps) == 4 * PPO_DEFAULTS["prompts_per_step"]


def test_one_process_trains_into_a_folder(tmp_path: Path) -> None:
    (tmp_path / "rm").mkdir()
    with _claimed(tmp_path / "rm"), pytest.raises(UsageError, match="another process"), _claimed(tmp_path / "rm"):
        pass
    with _claimed(tmp_path / "rm"):
        pass


def test_a_trainer_says_which_lines_it_left_out(tiny: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q{i}", "chosen": "yes", "rejected": "no", "p_chosen": 0.9} if i else {"prompt": "q"}
        for i in range(6)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["train-rm", "p.jsonl", "--model", str(tiny), "-o", "rm", "--skip-invalid", "--batch-size", "8"]
    for _ in range(2):  # the second run finds it complete
        done = rlaif(*command, cwd=tmp_path)
        assert done.returncode == 3 and "1 row could not be used; see rm.rejected.jsonl" in done.stderr
