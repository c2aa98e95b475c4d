"""PPO where something is missing, equal or doubled: tied scores, repeated prompts, a judge that does not answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlaif_cli.train import loop, ops
from rlaif_cli.train.ppo import sample_seeds, step_prompts
from rlaif_cli.train.rollout import Prompt
from rlaif_cli.train.trainer import Trainer, all_tie, group_advantages, whitened
from test_train import make_rollouts, ppo_config

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------------------- scores that tie


def gradient_norm(tiny: Path, scores: torch.Tensor, **options: Any) -> float:
    """Of one update whose reference is a little off the policy, as a bf16 copy of it is."""
    trainer = Trainer(ppo_config(tiny, n=2, lr=1e-9, **options), tiny, None)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        rollouts = make_rollouts(trainer.policy)
        for parameter in trainer.reference.parameters():
            parameter += 1e-3 * torch.randn(parameter.shape, generator=noise)
    return trainer.update(trainer.experience(rollouts, scores), step=0)["grad_norm"]


def test_scores_that_tie_teach_grpo_nothing_but_the_kl(tiny: Path) -> None:
    """As the KL in the loss does; it was 600 times that, the KL's noise divided by its own deviation."""
    tied, differing = torch.full((8,), 0.3), torch.arange(8.0)
    in_loss = gradient_norm(tiny, tied, advantage="grpo", kl_in="loss")
    assert gradient_norm(tiny, tied, advantage="grpo") == pytest.approx(in_loss, rel=1e-3)
    assert gradient_norm(tiny, tied, advantage="grpo", kl_coef=0) == 0
    assert gradient_norm(tiny, differing, advantage="grpo") > 50 * in_loss


@pytest.mark.parametrize("advantage", ["gae", "reinforce", "rloo"])
def test_scores_that_all_tie_are_never_a_reason_to_train_on_noise(tiny: Path, advantage: str) -> None:
    tied, differing = (
        gradient_norm(tiny, scores, advantage=advantage) for scores in (torch.zeros(8), torch.arange(8.0))
    )
    assert tied < 0.1 and differing > 1


def test_the_convex_form_weighs_the_normalized_scores(tiny: Path) -> None:
    found = {}
    for form in ("plain", "convex"):
        trainer = Trainer(ppo_config(tiny, advantage="grpo", kl_form=form, kl_coef=0.25), tiny, None)
        with torch.no_grad():
            rollouts = make_rollouts(trainer.policy)
        found[form] = trainer.experience(rollouts, torch.arange(8.0)).advantages
    torch.testing.assert_close(found["convex"], 0.75 * found["plain"], atol=1e-4, rtol=1e-4)


def test_whitening_makes_noise_no_larger_than_it_is() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    small, large = torch.arange(6.0).view(2, 3) * 1e-3, torch.arange(6.0).view(2, 3) * 1e3
    torch.testing.assert_close(whitened(small, mask, True), small - small.mean(), atol=1e-5, rtol=1e-2)
    for values, tied in ((large, True), (large, False), (small, False)):
        torch.testing.assert_close(whitened(values, mask, tied), ops.masked_whiten(values, mask))
    assert all_tie(torch.tensor([0.3, torch.nan, 0.3])) and not all_tie(torch.tensor([0.3, 0.4]))
    assert not all_tie(torch.tensor([0.3, torch.nan])), "one response alone ties with nothing"


# ------------------------------------------------------------------------------------------- responses without a score


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_a_response_without_a_score_is_no_part_of_its_group(kind: str) -> None:
    scores = torch.randn(30, 10, generator=torch.Generator().manual_seed(1))
    scored = torch.rand(30, 10, generator=torch.Generator().manual_seed(2)) > 0.3
    assert scored.sum(1).min() >= 2
    mask = torch.ones(300, 1, dtype=torch.bool)
    rewards = scores.masked_fill(~scored, 99.0).view(300, 1)
    found = group_advantages(rewards, mask & scored.view(300, 1), 10, kind, scored.flatten()).view(30, 10)
    assert (found[~scored] == 0).all()
    for row, row_scores, row_scored in zip(found, scores, scored, strict=True):
        rest = row_scores[row_scored].view(-1, 1)
        alone = group_advantages(rest, torch.ones_like(rest, dtype=torch.bool), len(rest), kind)
        torch.testing.assert_close(row[row_scored], alone[:, 0], atol=1e-5, rtol=1e-5)


def test_a_group_of_one_has_no_baseline() -> None:
    alone = torch.tensor([[True, False], [True, True]])
    for function in (ops.leave_one_out_baseline, ops.group_normalized_advantage):
        with pytest.raises(ValueError, match="fewer than two"):
            function(torch.zeros(2, 2), mask=alone)


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo", "reinforce"])
def test_an_update_without_a_score_is_the_update_without_the_response(tiny: Path, advantage: str) -> None:
    """Group, baseline, deviation, whitening, value targets and gradient: as if it had never been sampled."""
    weights = []
    for left_out in (False, True):
        n = 2 if left_out else 3
        trainer = Trainer(ppo_config(tiny, advantage=advantage, n=n, kl_coef=0.2), tiny, None)
        trained = [*trainer.policy.parameters(), *(trainer.value_model.parameters() if trainer.value_model else ())]
        trainer.optimizer = torch.optim.SGD(trained, lr=0.1)
        with torch.no_grad():
            rollouts = make_rollouts(trainer.policy)
        scores = torch.tensor([0.5, 1.0, 3.0, -1.0, 0.0, 2.0, 1.0, 1.5])
        if not left_out:  # a third response, in another place each time, that nobody scored
            for rollout, place in zip(rollouts, (0, 1, 2, 1), strict=True):
                rollout.completions.insert(place, rollout.completions[0])
            by_prompt = [row.tolist() for row in scores.view(4, 2)]
            for row, place in zip(by_prompt, (0, 1, 2, 1), strict=True):
                row.insert(place, float("nan"))
            scores = torch.tensor(by_prompt).flatten()
        trainer.update(trainer.experience(rollouts, scores), step=0)
        weights.append(dict(trainer.policy.named_parameters()))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=2e-5, rtol=1e-3)


# ------------------------------------------------------------------------------------------- which prompts, which seeds


def prompts_named(names: str) -> list[Prompt]:
    return [Prompt(name, [], [1]) for name in names]


def test_a_prompt_that_stands_twice_in_a_step_gets_other_seeds() -> None:
    twice, once = (sample_seeds(prompts_named(names), 0, 5) for names in ("abab", "ab"))
    assert len(set(twice)) == 4 and twice[:2] == once
    assert sample_seeds(prompts_named("ab"), 0, 6) != once != sample_seeds(prompts_named("ab"), 1, 5)


def test_the_prompts_of_a_step_are_shuffled_passes_known_from_the_step_alone() -> None:
    prompts = prompts_named("abcdefg")
    steps = [step_prompts(prompts, 5, 3, step) for step in range(7)]
    ids = [prompt.id for step in steps for prompt in step]
    passes = [ids[i : i + 7] for i in range(0, 35, 7)]
    assert all(sorted(each) == list("abcdefg") for each in passes) and len(set(map(tuple, passes))) > 3
    assert step_prompts(prompts, 5, 3, 4) == steps[4], "asked for alone, as a resumed run does"
    order = np.random.default_rng([3, 1]).permutation(7)
    assert passes[1] == ["abcdefg"[i] for i in order], "the order of runs begun by earlier versions"


def test_a_pass_is_shuffled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled = []
    real = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: shuffled.append(seed) or real(seed))
    loop.epoch_order.cache_clear()
    for step in range(30):
        step_prompts(prompts_named("abcdefghij") * 10, 8, 4321, step)
    assert shuffled == [[4321, epoch] for epoch in range(3)]


# ------------------------------------------------------------------------------------------- waiting for a GPU


def test_losses_do_not_wait_for_a_gpu() -> None:
    """A meta tensor has no values: whatever would have to be waited for on a GPU raises here."""
    numbers = [torch.zeros(2, 3, device="meta") for _ in range(4)]
    mask = torch.ones(2, 3, dtype=torch.bool, device="meta")
    ops.ppo_policy_loss(numbers[0], numbers[1], numbers[2], mask, 0.2, numbers[3])
    ops.ppo_value_loss(numbers[0], numbers[1], numbers[2], mask, 0.2)
    ops.masked_mean(ops.kl_estimate(numbers[0], numbers[1], "k2"), mask)
    ops.masked_whiten(numbers[0], mask)
    ops.last_token_index(mask)
    with pytest.raises(RuntimeError):
        bool(mask.any())
