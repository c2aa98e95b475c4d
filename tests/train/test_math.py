"""rlaif_cli.train.math against golden numbers, hand-worked numbers and invariances."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import ROOT
from rlaif_cli.judge.constitution import Principle
from rlaif_cli.judge.score import expected_score, reward_of_scores
from rlaif_cli.train import math as ops
from rlaif_cli.train.math import logprobs as logprobs_module
from rlaif_cli.train.math import masked as masked_module

GOLDEN: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "ops.json").read_text())
GARBAGE = [0.0, 1e30, -1e30, math.inf, -math.inf, math.nan]


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def close(actual: Any, expected: Any, atol: float = 1e-4) -> None:
    torch.testing.assert_close(torch.as_tensor(actual).float(), tensor(expected), rtol=0, atol=atol)


def same(actual: Any, expected: Any, atol: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=atol)


def random_batch(seed: int = 0, rows: int = 3, length: int = 7) -> dict[str, Tensor]:
    """Tensors [B, T] and a mask with holes and at least two real tokens a row."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(rows, length, generator=generator) < 0.6).long()
    mask[:, [1, 4]] = 1
    names = (
        "logprobs",
        "old_logprobs",
        "advantages",
        "values",
        "old_values",
        "returns",
        "rewards",
        "weights",
    )
    return {"mask": mask} | {name: torch.randn(rows, length, generator=generator) for name in names}


# --- golden numbers -----------------------------------------------------------------------------------------


def test_every_golden_function_exists_with_its_argument_names() -> None:
    for entry, text in GOLDEN["functions"].items():
        without_shapes = re.sub(r"\[.*?\]", "", f"{entry}: {text}")
        found = re.findall(r"([.\w]+)(?:: )?\((.*?)\)", without_shapes)  # name: (a, b=1) and .name(a, b)
        assert found
        for name, arguments in found:
            owner = ops.AdaptiveKLController(0.1, 1, 10) if name.startswith(".") else ops
            wanted = [argument.split("=")[0].strip() for argument in arguments.split(",")]
            actual = list(inspect.signature(getattr(owner, name.lstrip("."))).parameters)
            assert actual[: len(wanted)] == wanted, name


@pytest.mark.parametrize("case", GOLDEN["masked_var"])
def test_golden_masked_var(case: dict[str, Any]) -> None:
    for dtype in (torch.float32, torch.int64, torch.bfloat16):
        x = torch.tensor(case["x"], dtype=dtype)
        close(ops.masked_var(x, torch.tensor(case["mask"]), unbiased=case["unbiased"]), case["expect"])


@pytest.mark.parametrize("case", GOLDEN["gae"])
def test_golden_gae(case: dict[str, Any]) -> None:
    rewards, values, mask = (torch.tensor(case[name]) for name in ("rewards", "values", "mask"))
    advantages, returns = ops.gae(rewards, values, mask, case["gamma"], case["lam"])
    if "advantages" in case:
        close(advantages, case["advantages"])
    if "returns" in case:
        close(returns, case["returns"])


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_golden_kl(kind: str) -> None:
    for case in GOLDEN["kl"]:
        close(ops.kl_estimate(tensor(case["logprobs"]), tensor(case["ref_logprobs"]), kind), case[kind])


@pytest.mark.parametrize("case", GOLDEN["ppo_policy_loss"])
def test_golden_ppo_policy_loss(case: dict[str, Any]) -> None:
    logprobs = tensor([case["ratio"]]).log()
    loss, stats = ops.ppo_policy_loss(
        logprobs, torch.zeros(1, 3), tensor([case["advantages"]]), torch.ones(1, 3), case["clip"]
    )
    close(loss, case["expect"])
    close(stats["clip_fraction"], 1 / 3)  # the last alone: the first is outside, but with A > 0 not clipped
    close(stats["ratio_mean"], 1.0)
    close(stats["approx_kl"], sum(r - 1 - math.log(r) for r in case["ratio"]) / 3)


@pytest.mark.parametrize("case", [case for case in GOLDEN["soft_pairwise_loss"] if "expect" in case])
def test_golden_soft_pairwise_loss(case: dict[str, Any]) -> None:
    inputs = [tensor(case[name]) for name in ("chosen", "rejected", "p_chosen")]
    close(ops.soft_pairwise_loss(*inputs), case["expect"], atol=1e-6)


@pytest.mark.parametrize("case", GOLDEN["leave_one_out_baseline"])
def test_golden_leave_one_out_baseline(case: dict[str, Any]) -> None:
    close(ops.leave_one_out_baseline(torch.tensor(case["rewards"])), case["expect"])


@pytest.mark.parametrize("case", GOLDEN["adaptive_kl"])
def test_golden_adaptive_kl(case: dict[str, Any]) -> None:
    controller = ops.AdaptiveKLController(case["kl_coef"], case["target"], case["horizon"])
    controller.update(case["kl"], case["n"])
    assert controller.value == pytest.approx(case["expect"], abs=1e-9)


@pytest.mark.parametrize("case", GOLDEN["direct_reward"])
def test_golden_direct_reward(case: dict[str, Any]) -> None:
    score = ops.expected_score(tensor(case["p"]))
    close(score, case["score"])
    close(ops.direct_reward(score), case["reward"])
    assert expected_score(case["p"]) == pytest.approx(case["score"], abs=1e-4)
    assert reward_of_scores(Principle(id="p", text="Be kind."), case["p"]) == pytest.approx(case["reward"], abs=1e-4)


# --- masked statistics --------------------------------------------------------------------------------------


def test_masked_mean_by_hand() -> None:
    x, mask = tensor([[1, 2, 9], [3, 9, 9]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    close(ops.masked_mean(x, mask), 2.0)
    close(ops.masked_mean(x, mask, dim=1), [1.5, 3.0])
    close(ops.masked_mean(x[:, :2], mask[:, :2], dim=0), [2.0, 2.0])


def test_masked_mean_of_bf16_adds_in_fp32() -> None:
    ones = torch.ones(1, 4097, dtype=torch.bfloat16)  # a bf16 sum stops at 256
    assert ops.masked_mean(ones, torch.ones(1, 4097)) == 1.0


def test_masked_var_biased_and_unbiased() -> None:
    x, mask = tensor([[1, 2, 3, 77]]), torch.tensor([[1, 1, 1, 0]])
    close(ops.masked_var(x, mask), 1.0)
    close(ops.masked_var(x, mask, unbiased=False), 2 / 3)


def test_masked_whiten() -> None:
    batch = random_batch()
    x, mask = batch["rewards"] * 5 + 3, batch["mask"]
    white = ops.masked_whiten(x, mask)
    close(white[mask.bool()].mean(), 0.0)
    close(white[mask.bool()].std(), 1.0)
    assert (white[mask == 0] == 0).all()
    kept = ops.masked_whiten(x, mask, shift_mean=False)
    close(kept[mask.bool()].mean(), float(x[mask.bool()].mean()))
    assert (kept[mask == 0] == 0).all()


def test_explained_variance() -> None:
    returns, mask = tensor([[1, 2, 3, 4, 50]]), torch.tensor([[1, 1, 1, 1, 0]])
    close(ops.explained_variance(returns, returns, mask), 1.0)
    close(ops.explained_variance(torch.full_like(returns, 7), returns, mask), 0.0)
    close(ops.explained_variance(returns + 3, returns, mask), 1.0)  # of the variance, not of the mean
    close(ops.explained_variance(-returns, returns, mask), -3.0)  # 1 - Var(2 R) / Var(R)
    constant = torch.full((1, 7), 0.1)  # whose mean is not 0.1 in fp32
    assert ops.explained_variance(torch.randn(1, 7), constant, torch.ones(1, 7)).isnan()


# --- invariances --------------------------------------------------------------------------------------------

Loss = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]


def policy(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    logprobs, old, advantages, mask = (batch[n] for n in ("logprobs", "old_logprobs", "advantages", "mask"))
    loss, stats = ops.ppo_policy_loss(logprobs, old, advantages, mask, 0.2, weights=batch["weights"].exp())
    return loss, *stats.values()


def value(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    values, old, returns, mask = (batch[n] for n in ("values", "old_values", "returns", "mask"))
    loss, stats = ops.ppo_value_loss(values, old, returns, mask, 0.2)
    return loss, *stats.values()


def statistics(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    x, mask = batch["rewards"], batch["mask"]
    return ops.masked_mean(x, mask), ops.masked_mean(x, mask, dim=1), ops.masked_var(x, mask)


SCALARS = [policy, value, statistics]

PER_TOKEN: list[Loss] = [
    lambda b: ops.gae(b["rewards"], b["values"], b["mask"], 0.9, 0.8),
    lambda b: (ops.masked_whiten(b["advantages"], b["mask"]),),
    lambda b: (ops.masked_whiten(b["advantages"], b["mask"], shift_mean=False),),
    lambda b: (ops.truncated_importance_weights(b["logprobs"], b["old_logprobs"], b["mask"]),),
    lambda b: (ops.truncated_importance_weights(b["logprobs"], b["old_logprobs"], b["mask"], level="sequence"),),
]


def padded(batch: dict[str, Tensor], garbage: float, left: bool) -> dict[str, Tensor]:
    """Two masked columns of garbage on one side, and garbage in the masked holes."""
    result = {}
    for name, x in batch.items():
        fill = 0 if name == "mask" else garbage
        x = x if name == "mask" else x.masked_fill(batch["mask"] == 0, garbage)
        column = torch.full((x.shape[0], 2), fill, dtype=x.dtype)
        result[name] = torch.cat([column, x] if left else [x, column], dim=1)
    return result


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_padding_changes_nothing(garbage: float, left: bool) -> None:
    batch = random_batch()
    longer = padded(batch, garbage, left)
    for scalar in SCALARS:
        for expected, actual in zip(scalar(batch), scalar(longer), strict=True):
            same(actual, expected)
    inner = slice(2, None) if left else slice(None, -2)
    outer = slice(None, 2) if left else slice(-2, None)
    for function in PER_TOKEN:
        for expected, actual in zip(function(batch), function(longer), strict=True):
            same(actual[:, inner], expected)
            assert (actual[:, outer] == 0).all()


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name", ["policy", "value"])
def test_padding_changes_no_gradient(garbage: float, name: str) -> None:
    function, leaf = {"policy": (policy, "logprobs"), "value": (value, "values")}[name]
    batch = random_batch()
    gradients = []
    for candidate in (batch, padded(batch, garbage, left=False)):
        candidate[leaf].requires_grad_()
        function(candidate)[0].backward()
        gradients.append(candidate[leaf].grad)
    assert gradients[0] is not None and gradients[1] is not None
    same(gradients[1][:, :-2], gradients[0])
    assert gradients[0].abs().sum() > 0
    assert (gradients[1][:, -2:] == 0).all()


def test_whitening_and_variance_have_clean_gradients() -> None:
    x = tensor([[1.0, 2.0, 4.0, math.nan]]).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 0]])
    (ops.masked_whiten(x, mask) * tensor([[1.0, 0.0, 0.0, 5.0]])).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad[0, 3] == 0 and x.grad.abs().sum() > 0


@pytest.mark.parametrize("mask_type", [torch.bool, torch.int32, torch.float32, torch.bfloat16])
def test_the_type_of_the_mask_does_not_matter(mask_type: torch.dtype) -> None:
    batch = random_batch()
    other = batch | {"mask": batch["mask"].to(mask_type)}
    for function in [*SCALARS, *PER_TOKEN]:
        for expected, actual in zip(function(batch), function(other), strict=True):
            same(actual, expected)


@pytest.mark.parametrize("function", [policy, value])
def test_batch_split_weighs_by_real_tokens(function: Loss) -> None:
    batch = random_batch(rows=4)
    total = batch["mask"].sum()
    parts = [{name: x[rows] for name, x in batch.items()} for rows in (slice(0, 1), slice(1, 4))]
    same(sum(function(part)[0] * part["mask"].sum() / total for part in parts), function(batch)[0])


def test_gae_and_importance_weights_treat_rows_alone() -> None:
    batch = random_batch(rows=4)
    row = {name: x[2:3] for name, x in batch.items()}
    for function in (PER_TOKEN[0], PER_TOKEN[3], PER_TOKEN[4]):
        for whole, alone in zip(function(batch), function(row), strict=True):
            same(whole[2:3], alone)


# --- gae ----------------------------------------------------------------------------------------------------


def test_gae_equals_the_sequence_without_its_masked_steps() -> None:
    batch = random_batch(rows=1, length=12)
    real = batch["mask"][0].bool()
    dense = {name: x[:, real] for name, x in batch.items()}
    for holed, compact in zip(PER_TOKEN[0](batch), PER_TOKEN[0](dense), strict=True):
        same(holed[:, real], compact)


def test_gae_with_lambda_1_is_the_discounted_sum_of_rewards() -> None:
    rewards, mask = tensor([[1, 2, 4]]), torch.ones(1, 3)
    _, returns = ops.gae(rewards, tensor([[5, -3, 8]]), mask, gamma=0.5, lam=1.0)
    close(returns, [[1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4]])


def test_gae_of_an_empty_row_is_zero_and_carries_no_gradient() -> None:
    values = torch.ones(1, 2, requires_grad=True)
    advantages, returns = ops.gae(torch.ones(1, 2), values, torch.zeros(1, 2), 1.0, 0.95)
    assert not advantages.any() and not returns.any() and not returns.requires_grad


# --- log-probabilities --------------------------------------------------------------------------------------


@pytest.fixture(params=[1, 40, 1 << 22], ids=["block 1 token", "block 3 tokens", "one block"])
def block_elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(logprobs_module, "_BLOCK_ELEMENTS", request.param)
    return int(request.param)


def logits_and_labels(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(3, 6, 13, generator=generator) * 4).to(dtype)
    return logits, torch.randint(13, (3, 5), generator=generator)


@pytest.mark.usefixtures("block_elements")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gather_logprobs_equals_log_softmax_with_its_gradient(temperature: float) -> None:
    logits, labels = logits_and_labels()
    upstream = torch.randn(labels.shape, generator=torch.Generator().manual_seed(2))
    results = []
    for function in (
        lambda x: ops.gather_logprobs(x, labels, temperature),
        lambda x: torch.log_softmax(x / temperature, -1).gather(-1, labels[..., None])[..., 0],
    ):
        leaf = logits.clone().requires_grad_()
        logprobs = function(leaf[:, :-1])  # the usual shift: a view that cannot be flattened
        (logprobs * upstream).sum().backward()
        results.append((logprobs.detach(), leaf.grad))
    same(results[0], results[1])
    same(logits, logits_and_labels()[0], atol=0)  # the input is not written to


@pytest.mark.usefixtures("block_elements")
def test_gather_logprobs_passes_gradcheck() -> None:
    logits, labels = logits_and_labels(torch.float64)
    leaf = logits[:2, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.gather_logprobs(x, labels[:2, :3], 0.9), leaf)


def test_gather_logprobs_in_bf16_is_fp32_arithmetic_on_bf16_numbers() -> None:
    logits, labels = logits_and_labels(torch.bfloat16)
    leaf, exact = logits[:, :-1].clone().requires_grad_(), logits[:, :-1].float().requires_grad_()
    logprobs = ops.gather_logprobs(leaf, labels)
    expected = torch.log_softmax(exact, -1).gather(-1, labels[..., None])[..., 0]
    same(logprobs, expected)
    logprobs.sum().backward()
    expected.sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == torch.bfloat16 and exact.grad is not None
    same(leaf.grad, exact.grad.bfloat16(), atol=0)


def test_gather_logprobs_never_holds_all_logits_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs_module, "_BLOCK_ELEMENTS", 40)
    sizes: list[int] = []
    original = masked_module.at_least_fp32

    def recording(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return original(x)

    monkeypatch.setattr(logprobs_module, "at_least_fp32", recording)
    logits, labels = logits_and_labels(torch.bfloat16)
    ops.gather_logprobs(logits[:, :-1].requires_grad_(), labels).sum().backward()
    assert len(sizes) > 10 and max(sizes) <= 40


def test_gather_logprobs_of_flat_rows() -> None:
    logits, labels = logits_and_labels()
    rows = logits[:, :-1].reshape(-1, 13)
    same(ops.gather_logprobs(rows, labels.flatten()), ops.gather_logprobs(logits[:, :-1], labels).flatten())


def test_last_token_index_for_left_right_and_no_padding() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 1, 0, 1, 0]])
    for kind in (torch.int64, torch.bool, torch.float32):
        assert ops.last_token_index(mask.to(kind)).tolist() == [2, 4, 4, 0, 3]


# --- KL -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(-60, 0), st.floats(-60, 0)), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_k2_and_k3_are_never_negative(pairs: list[tuple[float, float]]) -> None:
    logprobs, reference = tensor(pairs).unbind(1)
    assert (ops.kl_estimate(logprobs, reference, "k2") >= 0).all()
    assert (ops.kl_estimate(logprobs, reference, "k3") >= 0).all()


def test_k3_is_not_negative_for_nearly_equal_logprobs() -> None:
    logprobs = torch.linspace(-2e-3, 2e-3, 4001)
    k3 = ops.kl_estimate(logprobs, torch.zeros(4001), "k3")
    assert (k3 >= 0).all()
    same(k3, logprobs.square() / 2, atol=1e-8)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_kl_estimators_are_unbiased_under_the_policy(kind: str) -> None:
    p, q = tensor([0.5, 0.3, 0.2]), tensor([0.2, 0.2, 0.6])
    close((p * ops.kl_estimate(p.log(), q.log(), kind)).sum(), float((p * (p / q).log()).sum()), atol=1e-6)


def test_kl_clamp_bounds_the_log_ratio_on_both_sides() -> None:
    logprobs, reference = tensor([-1, -30, -1]), tensor([-30, -1, -2])
    close(ops.kl_estimate(logprobs, reference, "k1", clamp=20), [20, -20, 1])
    close(ops.kl_estimate(logprobs, reference, "k2", clamp=20), [200, 200, 0.5])
    close(ops.kl_estimate(logprobs, reference, "k3", clamp=2), [1 + math.exp(-2), math.exp(2) - 3, math.exp(-1)])


def test_adaptive_controller() -> None:
    controller = ops.AdaptiveKLController(0.1, target=6.0, horizon=1000)
    controller.update(6.0, 100)
    assert controller.value == 0.1  # on target
    controller.update(0.0, 100)
    assert controller.value == pytest.approx(0.1 * (1 - 0.2 * 0.1))  # error clipped at -0.2
    controller.update(6.6, 100)
    assert controller.value == pytest.approx(0.1 * 0.98 * (1 + 0.1 * 0.1))  # error 0.1, not clipped
    resumed = ops.AdaptiveKLController(0.5, target=6.0, horizon=1000)
    resumed.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    for each in (controller, resumed):
        each.update(9.0, 64)
    assert resumed.value == controller.value


def test_fixed_controller_stays() -> None:
    controller = ops.FixedKLController(0.05)
    controller.update(100.0, 256)
    assert controller.value == 0.05
    other = ops.FixedKLController(0.0)
    other.load_state_dict(controller.state_dict())
    assert other.value == 0.05


# --- PPO ----------------------------------------------------------------------------------------------------


def test_policy_loss_has_no_gradient_where_clipped_for_the_worse() -> None:
    logprobs = tensor([[0.5, 1.5, 1.0, 0.5, 1.5]]).log().requires_grad_()
    advantages = tensor([[-1, 1, 1, 1, -1]])
    loss, stats = ops.ppo_policy_loss(logprobs, torch.zeros(1, 5), advantages, torch.ones(1, 5), 0.2)
    loss.backward()
    assert logprobs.grad is not None
    close(logprobs.grad, [[0, 0, -1 / 5, -0.5 / 5, 1.5 / 5]])  # -A ratio / n where the clip is not active
    close(stats["clip_fraction"], 2 / 5)
    assert not any(stat.requires_grad for stat in stats.values())


def test_policy_loss_weights_multiply_the_loss_of_each_token() -> None:
    arguments = (torch.zeros(1, 2), torch.zeros(1, 2), tensor([[1, 3]]), torch.ones(1, 2), 0.2)
    close(ops.ppo_policy_loss(*arguments)[0], -2.0)
    close(ops.ppo_policy_loss(*arguments, weights=tensor([[2.0, 0.5]]))[0], -(2 * 1 + 0.5 * 3) / 2)


def test_value_loss_by_hand() -> None:
    values, old, returns = tensor([[2.0, 1.1, 0.0]]), tensor([[1.0, 1.0, 1.0]]), tensor([[3.0, 1.0, 1.0]])
    loss, stats = ops.ppo_value_loss(values, old, returns, torch.ones(1, 3), clip=0.2)
    # unclipped errors: 1, 0.01, 1; the clipped values 1.2, 1.1, 0.8 err by 3.24, 0.01, 0.04
    close(loss, 0.5 * (3.24 + 0.01 + 1.0) / 3)
    close(stats["value_clip_fraction"], 1 / 3)
    close(stats["explained_variance"], float(1 - (returns - values).var() / returns.var()))


def test_importance_weights() -> None:
    logprobs, rollout = tensor([[2.0, 0.5, 0.25, 9.0]]).log(), torch.zeros(1, 4)
    mask = torch.tensor([[1, 1, 1, 0]])
    close(ops.truncated_importance_weights(logprobs, rollout, mask, cap=1.5), [[1.5, 0.5, 0.25, 0]])
    sequence = ops.truncated_importance_weights(logprobs, rollout, mask, level="sequence")
    close(sequence, [[0.25, 0.25, 0.25, 0]])  # 2 * 0.5 * 0.25
    capped = ops.truncated_importance_weights(logprobs * 3, rollout, torch.tensor([[1, 0, 0, 1]]), level="sequence")
    close(capped, [[2, 0, 0, 2]])


def test_importance_weights_are_capped_finite_and_detached() -> None:
    logprobs = tensor([[500.0, -500.0, 0.0]]).requires_grad_()
    for level in ("token", "sequence"):
        weights = ops.truncated_importance_weights(logprobs, torch.zeros(1, 3), torch.ones(1, 3), 2.0, level)
        assert weights.isfinite().all() and weights.max() <= 2.0 and not weights.requires_grad


def test_leave_one_out_advantages_sum_to_zero() -> None:
    rewards = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    close((rewards - ops.leave_one_out_baseline(rewards)).sum(1), [0.0] * 5)


def test_group_normalized_advantage() -> None:
    rewards = tensor([[1, 2, 3], [1.7, 1.7, 1.7], [0, 0, 30]])  # the mean of three 1.7 is not 1.7 in fp32
    close(ops.group_normalized_advantage(rewards, scale_by_std=False), [[-1, 0, 1], [0, 0, 0], [-10, -10, 20]])
    root = math.sqrt(300.0)
    close(ops.group_normalized_advantage(rewards), [[-1, 0, 1], [0, 0, 0], [-10 / root, -10 / root, 20 / root]])


# --- reward model -------------------------------------------------------------------------------------------


def test_swapping_the_pair_and_the_label_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, p = torch.randn(9, generator=generator), torch.randn(9, generator=generator), torch.rand(9)
    same(ops.soft_pairwise_loss(a, b, p), ops.soft_pairwise_loss(b, a, 1 - p))
    same(ops.soft_pairwise_loss(a, b, p, margin=0.5), ops.soft_pairwise_loss(b, a, 1 - p, margin=-0.5))
    same(ops.soft_pairwise_loss(a + 100, b + 100, p), ops.soft_pairwise_loss(a, b, p), atol=1e-4)


@pytest.mark.parametrize("p", [0.5, 0.7, 0.9, 0.999])
def test_the_minimum_of_the_soft_loss_is_the_entropy_at_the_logit(p: float) -> None:
    difference = torch.logit(torch.tensor([p], dtype=torch.float64)).requires_grad_()
    label = torch.full_like(difference, p)
    loss = ops.soft_pairwise_loss(difference, torch.zeros_like(difference), label)
    loss.backward()
    assert difference.grad is not None
    close(difference.grad, [0.0], atol=1e-9)
    close(loss.detach(), float(ops.binary_entropy(label)), atol=1e-7)
    for step in (-0.1, 0.1):
        assert ops.soft_pairwise_loss(difference + step, torch.zeros_like(label), label) > loss


def test_margin_is_subtracted_and_may_differ_by_pair() -> None:
    ones, zeros = torch.ones(2), torch.zeros(2)
    close(ops.soft_pairwise_loss(ones, zeros, ones, margin=1.0), math.log(2))
    expected = (math.log(2) + math.log1p(math.exp(-1))) / 2
    close(ops.soft_pairwise_loss(ones, zeros, ones, margin=tensor([1, 0])), expected)


def test_soft_loss_is_finite_for_large_differences() -> None:
    close(ops.soft_pairwise_loss(tensor([1e4]), tensor([0.0]), tensor([0.0])), 1e4, atol=1e-2)
    close(ops.soft_pairwise_loss(tensor([1e4]), tensor([0.0]), tensor([1.0])), 0.0)


def test_binary_entropy() -> None:
    assert ops.binary_entropy(tensor([0.0, 1.0])).tolist() == [0.0, 0.0]
    close(ops.binary_entropy(tensor([0.5, 0.7, 0.3])), [math.log(2), 0.610864, 0.610864], atol=1e-6)


def test_expected_score_keeps_leading_dimensions() -> None:
    p = torch.zeros(2, 3, 10)
    p[..., 3] = 0.5
    p[..., 5] = 0.5
    close(ops.expected_score(p), [[5.0] * 3] * 2)


# --- refusals -----------------------------------------------------------------------------------------------

X, ONES, ZEROS = torch.randn(2, 3), torch.ones(2, 3), torch.zeros(2, 3)
REFUSED: dict[str, Callable[[], Any]] = {
    "mean of nothing": lambda: ops.masked_mean(X, ZEROS),
    "mean of one empty row": lambda: ops.masked_mean(X, torch.tensor([[1, 1, 1], [0, 0, 0]]), dim=1),
    "mask of another shape": lambda: ops.masked_mean(X, torch.ones(2, 1)),
    "variance of nothing": lambda: ops.masked_var(X, ZEROS),
    "unbiased variance of one": lambda: ops.masked_var(X[:1, :1], ONES[:1, :1]),
    "whiten nothing": lambda: ops.masked_whiten(X, ZEROS),
    "explain nothing": lambda: ops.explained_variance(X, X, ZEROS),
    "policy loss of nothing": lambda: ops.ppo_policy_loss(X, X, X, ZEROS, 0.2),
    "policy clip of 0": lambda: ops.ppo_policy_loss(X, X, X, ONES, 0.0),
    "policy weights of another shape": lambda: ops.ppo_policy_loss(X, X, X, ONES, 0.2, weights=torch.ones(2, 1)),
    "value loss of nothing": lambda: ops.ppo_value_loss(X, X, X, ZEROS, 0.2),
    "value clip of 0": lambda: ops.ppo_value_loss(X, X, X, ONES, 0.0),
    "gae of another shape": lambda: ops.gae(X, X[:, :2], ONES, 1, 1),
    "gae of one dimension": lambda: ops.gae(X[0], X[0], ONES[0], 1, 1),
    "gae with gamma 2": lambda: ops.gae(X, X, ONES, 2, 1),
    "KL kind": lambda: ops.kl_estimate(X, X, "k4"),
    "KL clamp": lambda: ops.kl_estimate(X, X, "k1", clamp=-1.0),
    "KL shapes": lambda: ops.kl_estimate(X, X[:1], "k1"),
    "weights level": lambda: ops.truncated_importance_weights(X, X, ONES, 2.0, "word"),
    "weights cap": lambda: ops.truncated_importance_weights(X, X, ONES, 0.0),
    "baseline of one": lambda: ops.leave_one_out_baseline(torch.ones(2, 1)),
    "group of one": lambda: ops.group_normalized_advantage(torch.ones(2, 1)),
    "empty batch of pairs": lambda: ops.soft_pairwise_loss(X[0, :0], X[0, :0], X[0, :0]),
    "pairs of other shapes": lambda: ops.soft_pairwise_loss(X[0], X[0, :1], X[0]),
    "margin of another shape": lambda: ops.soft_pairwise_loss(X[0], X[0], X[0], margin=torch.ones(1)),
    "nine scores": lambda: ops.expected_score(torch.full((9,), 1 / 9)),
    "scores that do not sum to 1": lambda: ops.expected_score(torch.ones(10)),
    "scores that are not numbers": lambda: ops.expected_score(torch.full((10,), math.nan)),
    "labels of another shape": lambda: ops.gather_logprobs(torch.zeros(1, 3, 5), torch.zeros(1, 2).long()),
    "temperature of 0": lambda: ops.gather_logprobs(torch.zeros(1, 3, 5), torch.zeros(1, 3).long(), 0.0),
    "last token of an empty row": lambda: ops.last_token_index(torch.tensor([[1, 0], [0, 0]])),
    "last token of no columns": lambda: ops.last_token_index(torch.ones(2, 0)),
    "last token of one dimension": lambda: ops.last_token_index(torch.ones(3)),
    "negative coefficient": lambda: ops.FixedKLController(-0.1),
    "adaptive coefficient from 0": lambda: ops.AdaptiveKLController(0.0, 6, 100),
    "KL of NaN": lambda: ops.AdaptiveKLController(0.1, 6, 100).update(math.nan, 1),
    "horizon too short": lambda: ops.AdaptiveKLController(0.1, 6, 100).update(0.0, 500),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    with pytest.raises(ValueError):
        REFUSED[name]()


def test_without_length_nothing_is_left_for_length_to_explain() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (60,), generator=generator).double()
    scores = 0.3 * lengths + torch.randn(60, generator=generator, dtype=torch.float64)
    scores[7] = torch.nan

    left = ops.remove_length_effect(scores, lengths, 4)

    known = left.isfinite()
    assert known.tolist() == scores.isfinite().tolist()
    by_prompt = [(left[i : i + 4][k], lengths[i : i + 4][k]) for i in range(0, 60, 4) for k in [known[i : i + 4]]]
    covariance = sum(float(((y - y.mean()) * (x - x.mean())).sum()) for y, x in by_prompt)
    assert covariance == pytest.approx(0, abs=1e-9)
    means = [(scores[i : i + 4].nanmean(), left[i : i + 4].nanmean()) for i in range(0, 60, 4)]
    assert all(before == pytest.approx(after) for before, after in means)  # each prompt's mean is kept


def test_without_length_where_length_says_nothing() -> None:
    scores = torch.tensor([1.0, 2.0, 4.0, 0.0])
    assert ops.remove_length_effect(scores, torch.full((4,), 9.0), 2).equal(scores)  # all are as long
    assert ops.remove_length_effect(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]), 1).tolist() == [
        2,
        2,
        2,
    ]
    assert ops.remove_length_effect(scores, torch.tensor([3.0, 3.0, 1.0, 2.0]), 2).tolist() == [1, 2, 2, 2]
