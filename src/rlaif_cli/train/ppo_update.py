"""PPO's models (policy, reference and value model), the experience of a step, its advantages, and the update.

The KL to the reference is in the reward (k1) or in the loss (k2). Differences from the papers: a fresh value head
starts at zero, and rewards are normalised by the mean and std stored with the reward model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.models.tokenizer import ChatTokenizer
from rlaif_cli.train.math.advantages import (
    gae,
    group_normalized_advantage,
    leave_one_out_baseline,
    truncated_importance_weights,
)
from rlaif_cli.train.math.kl import AdaptiveKLController, FixedKLController, kl_estimate
from rlaif_cli.train.math.losses import ppo_policy_loss, ppo_value_loss
from rlaif_cli.train.math.masked import last_token_index, masked_mean, masked_var, masked_whiten
from rlaif_cli.train.nn import lora
from rlaif_cli.train.nn.batching import micro_batches
from rlaif_cli.train.nn.heads import (
    device,
    load_policy,
    load_reward_model,
    new_reward_model,
    response_logprobs,
    trainable,
    values,
    with_checkpointing_and_compile,
)
from rlaif_cli.train.nn.lora import Adapted
from rlaif_cli.train.nn.packing import Packed, pack
from rlaif_cli.train.nn.precision import autocast, frozen_dtype
from rlaif_cli.train.parallel.distributed import all_reduce, all_reduce_numbers
from rlaif_cli.train.reward_model import MIN_REWARD_STD
from rlaif_cli.train.reward_source import stored_scale
from rlaif_cli.train.rollout import Rollout
from rlaif_cli.train.runtime.optim import clip_and_step, loading_device, make_optimizer, sharded


@dataclass
class Experience:
    """A step's rollouts and everything the update needs. S = prompts x n sequences, R = longest response.

    Attributes:
        scores: [S]; NaN for unscored responses, which are left out of the update.
        mask: [S, R] bool, real tokens of the scored responses.
        rollout_logprobs, old_logprobs, ref_logprobs, advantages: [S, R].
        weights: [S, R], truncated importance weights between engine and trainer.
        old_values, returns: [S, R]; None without a value model.
    """

    rollouts: list[Rollout]
    scores: Tensor
    mask: Tensor
    rollout_logprobs: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    old_values: Tensor | None = None
    returns: Tensor | None = None


class Trainer:
    """Policy, reference and (for GAE) value model, and the optimizer of the trained ones."""

    def __init__(self, config: PPOConfig, base: Path, reward_path: Path | None) -> None:
        self.config, self.base = config, base
        frozen = frozen_dtype(config.precision)
        self._shared = load_policy(base, frozen) if config.lora_rank else None
        if self._shared is not None:
            with_checkpointing_and_compile(self._shared, config).train()
            lora.add(self._shared, "policy", config)
            self.policy, self.reference = Adapted(self._shared, "policy"), Adapted(self._shared, None)
        else:
            policy = load_policy(base, target=loading_device(config))
            self.policy = sharded(trainable(policy, config), config)
            reference = load_policy(base, frozen, loading_device(config))
            self.reference = sharded(reference.eval().requires_grad_(False), config)
        trained = [(self.policy, config.lr)]
        self.value_model = self._value_model(reward_path) if config.advantage == "gae" else None
        if self.value_model is not None:
            trained.append((self.value_model, config.value_lr or config.lr))
        self.optimizer = make_optimizer(trained, config)
        self.kl = (
            AdaptiveKLController(config.kl_coef, config.kl_target, horizon=10_000)
            if config.kl_target
            else FixedKLController(config.kl_coef)
        )

    @property
    def models(self) -> dict[str, Any]:
        return {"policy": self.policy} | ({"value": self.value_model} if self.value_model is not None else {})

    def load_adapter(self, reward_path: Path) -> Adapted | None:
        """Load a reward model as an adapter on the policy's body; None if it is not an adapter on the same body."""
        folder = lora.adapter_of_base(reward_path, self.base) if self._shared is not None else None
        if folder is None:
            return None
        name = f"reward {folder}".replace(".", "_")  # it becomes part of parameter names
        return self._adapted(name, lora.load(self._shared, name, folder))

    def _adapted(self, name: str, head: dict[str, Tensor]) -> Adapted:
        score = nn.Linear(head["weight"].shape[1], 1, bias="bias" in head).to(device())
        score.load_state_dict(head)
        return Adapted(self._shared, name, score)

    def _value_model(self, reward_path: Path | None) -> Any:
        """Start from the reward model if it has the policy's vocabulary, otherwise from the policy with a fresh head.

        The reward's normalisation is folded into the head, so that values start on the scale of the scores. A fresh
        head predicts 0: a random one adds noise to the first advantages (with it, the explained variance was -2 to -4
        over the first ten steps).
        """
        mean, std = stored_scale(reward_path) if reward_path else (0.0, 1.0)
        if self._shared is not None:
            folder = lora.adapter_of_base(reward_path, self.base) if reward_path else None
            if folder is None:
                lora.add(self._shared, "value", self.config)
                return self._adapted("value", {"weight": torch.zeros(1, self._shared.config.hidden_size)})
            weight = lora.load(self._shared, "value", folder)["weight"]
            return self._adapted("value", {"weight": weight / std, "bias": torch.tensor([-mean / std])})
        source = reward_path if reward_path and _same_vocabulary(self.base, reward_path) else None
        target = loading_device(self.config)
        seed = self.config.seed
        model = load_reward_model(source, target=target) if source else new_reward_model(self.base, seed, target=target)
        weight = model.score.weight if source else torch.zeros_like(model.score.weight)
        model.score = nn.Linear(weight.shape[1], 1).to(weight)
        with torch.no_grad():
            model.score.weight.copy_(weight / std if source else weight)
            model.score.bias.fill_(-mean / std if source else 0.0)
        return sharded(with_checkpointing_and_compile(model, self.config).train(), self.config)

    @torch.no_grad()
    def experience(self, rollouts: list[Rollout], scores: Tensor) -> Experience:
        """Log-probs, values, token rewards and advantages of a step's rollouts.

        Args:
            rollouts: each prompt needs at least one scored response, or two if they are compared within a prompt.
            scores: [S]; NaN for unscored responses, which are in no mean, deviation, baseline or loss.
        """
        config = self.config
        mask = response_mask(rollouts)
        old, ref, value = self._forward(rollouts, mask, with_values=self.value_model is not None)
        sampled = torch.zeros(mask.shape)
        for row, completion in enumerate(c for r in rollouts for c in r.completions):
            sampled[row, : len(completion.logprobs)] = torch.tensor(completion.logprobs)
        mask &= scores.isfinite()[:, None]
        weights = truncated_importance_weights(old, sampled, mask, cap=config.importance_cap)
        advantages, returns = self._advantages(scores, old, ref, value, mask)
        values_of = (value, returns) if self.value_model is not None else (None, None)
        return Experience(rollouts, scores, mask, sampled, old, ref, advantages, weights, *values_of)

    @torch.no_grad()
    def response_kl(self, rollouts: list[Rollout]) -> Tensor:
        """Each response's estimate of the KL to the reference, [S]; see the function `response_kl`."""
        mask = response_mask(rollouts)
        policy, reference, _ = self._forward(rollouts, mask, with_values=False)
        return response_kl(policy, reference, mask)

    def _forward(self, rollouts: list[Rollout], mask: Tensor, *, with_values: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(policy log-probs, reference log-probs, values), each [S, R]; values are 0 unless `with_values`."""
        found = torch.zeros(3, *mask.shape)
        policy, reference, value = found.unbind()
        with autocast(self.config.precision):
            for rows, packed, weight in self._micro_batches(rollouts):
                width = packed.response_ids.shape[-1]
                policy[rows, :width] += weight * self._logprobs(self.policy, packed)
                reference[rows, :width] += weight * self._logprobs(self.reference, packed)
                if with_values:
                    value[rows, :width] += weight * values(self.value_model, packed).flatten(0, 1).cpu()
        all_reduce(found)
        return policy, reference, value

    def _advantages(
        self, scores: Tensor, old: Tensor, ref: Tensor, value: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Advantages and, with a value model, returns, both [S, R]; `scores`: [S], NaN if unscored."""
        config = self.config
        kl_coef = self.kl.value if config.kl_in == "reward" else 0.0
        weight = 1 - self.kl.value if config.kl_form == "convex" else 1.0
        scored, known = scores.isfinite(), scores.nan_to_num(0.0)
        if config.advantage == "grpo":
            # Divide by the deviation of the scores without the KL: for tied scores it would be that of the KL's noise.
            rewards = token_rewards(known, old, ref, mask, 0.0)
            relative = group_advantages(rewards, mask, config.n, "grpo", scored)
            return weight * relative - kl_coef * kl_estimate(old, ref, "k1") * mask, None
        rewards = token_rewards(weight * known, old, ref, mask, kl_coef)
        if config.advantage == "rloo":
            return group_advantages(rewards, mask, config.n, "rloo", scored), None
        tied = all_tied(scores)
        if config.advantage == "reinforce":
            return batch_advantages(rewards, mask, config.gamma, tied), None
        advantages, returns = gae(rewards, value, mask, config.gamma, config.lam)
        return whiten_advantages(advantages, mask, tied), returns

    def update(self, experience: Experience, step: int) -> dict[str, float]:
        """Make `epochs` passes over the rollouts, in `minibatches` optimizer steps each; returns their mean metrics."""
        config, count = self.config, len(experience.rollouts)
        logged: list[dict[str, float]] = []
        for epoch in range(config.epochs):
            # The order depends only on the seed and the step, so that a resumed run has the same.
            order = np.random.default_rng([config.seed, step, epoch]).permutation(count)
            for chosen in np.array_split(order, min(config.minibatches, count)):
                logged.append(self._optimizer_step(experience, chosen.tolist()))
        return {name: sum(row[name] for row in logged) / len(logged) for name in logged[0]}

    def _optimizer_step(self, experience: Experience, chosen: list[int]) -> dict[str, float]:
        """One minibatch of prompts, in micro-batches weighted by their tokens."""
        n, mask = self.config.n, experience.mask  # on the CPU: counting on a GPU would synchronise it
        total = int(mask.view(-1, n, mask.shape[-1])[chosen].sum())
        sums: dict[str, Any] = {}
        with autocast(self.config.precision):
            for rows, packed, weight in self._micro_batches([experience.rollouts[i] for i in chosen], chosen):
                share = weight * int(mask[rows].sum()) / total
                # Backward of the first loss before the forward of the second, to free its memory.
                losses = (self._policy_loss, self._value_loss) if self.value_model is not None else (self._policy_loss,)
                for loss_of in losses:
                    loss, numbers = loss_of(experience, rows, packed)
                    (share * loss).backward()
                    for name, value in numbers.items():
                        sums[name] = sums.get(name, 0.0) + share * value
        logged = all_reduce_numbers({name: float(value) for name, value in sums.items()})
        logged["grad_norm"] = clip_and_step(self.optimizer, self.config.max_grad_norm)
        return logged

    def _policy_loss(self, experience: Experience, rows: list[int], packed: Packed) -> tuple[Tensor, dict[str, Any]]:
        config = self.config
        of = select_rows(rows, packed)
        mask = of(experience.mask)
        logprobs = response_logprobs(self.policy, packed, config.temperature).flatten(0, 1)
        loss, numbers = ppo_policy_loss(
            logprobs, of(experience.old_logprobs), of(experience.advantages), mask, config.clip, of(experience.weights)
        )
        logged = {"policy_loss": loss.detach()} | {name: numbers[name] for name in ("clip_fraction", "approx_kl")}
        if config.kl_in == "loss":
            # k2: its gradient is that of the KL; k3 as a loss is biased (arXiv 2510.01555).
            kl = masked_mean(kl_estimate(logprobs, of(experience.ref_logprobs), "k2"), mask)
            loss = loss + self.kl.value * kl
        return loss, logged

    def _value_loss(self, experience: Experience, rows: list[int], packed: Packed) -> tuple[Tensor, dict[str, Any]]:
        assert experience.old_values is not None and experience.returns is not None
        of = select_rows(rows, packed)
        loss, numbers = ppo_value_loss(
            values(self.value_model, packed).flatten(0, 1),
            of(experience.old_values),
            of(experience.returns),
            of(experience.mask),
            self.config.value_clip,
        )
        logged = {"value_loss": loss.detach(), "value_clip_fraction": numbers["value_clip_fraction"]}
        return self.config.value_coef * loss, logged

    def _logprobs(self, model: Any, packed: Packed) -> Tensor:
        return response_logprobs(model, packed, self.config.temperature).flatten(0, 1).float().cpu()

    def _micro_batches(
        self, rollouts: Sequence[Rollout], indices_in_step: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Packed, float]]:
        """This process's (rows of the step's [S, R] tensors, packed sequences, weight).

        Args:
            indices_in_step: the rollouts' indices within the step; None if these are all of them.
        """
        groups, n = [rollout.group for rollout in rollouts], self.config.n
        for indices, weight in micro_batches(groups, self.config.tokens_per_batch):
            in_step = [indices_in_step[i] if indices_in_step is not None else i for i in indices]
            rows = [index * n + k for index in in_step for k in range(n)]
            yield rows, pack([groups[i] for i in indices]).to(device()), weight


def response_mask(rollouts: Sequence[Rollout]) -> Tensor:
    """[S, R] bool, real tokens of the responses."""
    lengths = torch.tensor([len(c.token_ids) for rollout in rollouts for c in rollout.completions])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def response_kl(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log p - log p_ref summed over a response's tokens (k1), nats per response. [S, R] -> [S].

    Its expectation over samples of the policy is the KL to the reference.
    """
    return (kl_estimate(logprobs, ref_logprobs, "k1") * mask).sum(1)


def select_rows(rows: list[int], packed: Packed) -> Callable[[Tensor], Tensor]:
    """Returns a function that selects the packed sequences' rows of a step's [S, R] tensor."""
    return lambda tensor: tensor[rows, : packed.response_ids.shape[-1]].to(packed.input_ids.device)


def token_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """-kl_coef * (log p - log p_ref) on every token, and the score on the last one. [S], [S, R] -> [S, R].

    A row without a real token stays 0.
    """
    rewards = -kl_coef * kl_estimate(logprobs, ref_logprobs, "k1") * mask
    real = mask.any(1).nonzero()[:, 0]
    rewards[real, last_token_index(mask[real])] += scores[real].to(rewards)
    return rewards


def group_advantages(rewards: Tensor, mask: Tensor, n: int, kind: str, scored: Tensor | None = None) -> Tensor:
    """Each response's total reward relative to its group, the same on all its tokens. [S, R] -> [S, R].

    rloo: R_i - mean of the others' R (arXiv 2402.14740). R is the score minus the KL, if the KL is in the reward.

    grpo: (s_i - mean s) / (std s + 1e-6), where s are the scores without the KL (arXiv 2402.03300). With the KL in the
    reward, the trainer then subtracts kl_coef * (log p - log p_ref) from each token. At the start of an update (ratio
    1), its gradient equals that of kl_coef times the k2 loss, d/dx x^2 / 2 = x (arXiv 2510.01555): `--kl-in reward`
    and `--kl-in loss` differ only in how the ratio clip affects the KL later in the update.

    Args:
        kind: "rloo" or "grpo".
        scored: [S], False for responses to leave out of their group; None for none.
    """
    total = rewards.sum(1).view(-1, n)
    in_group = None if scored is None else scored.view(-1, n)
    if kind == "rloo":
        advantages = total - leave_one_out_baseline(total, in_group)
    else:
        advantages = group_normalized_advantage(total, mask=in_group)
    return advantages.flatten()[:, None] * mask


def batch_advantages(rewards: Tensor, mask: Tensor, gamma: float, tied: bool = False) -> Tensor:
    """REINFORCE: the reward-to-go, whitened over the whole step. [S, R] -> [S, R].

    Args:
        tied: see `whiten_advantages`.
    """
    reward_to_go, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)
    return whiten_advantages(reward_to_go, mask, tied)


def whiten_advantages(advantages: Tensor, mask: Tensor, tied: bool) -> Tensor:
    """Normalise to mean 0 and deviation 1 over the step's tokens (arXiv 2403.17031). [S, R] -> [S, R].

    Args:
        tied: all scores are equal, so that the only variation is the KL's noise and the value model's error. A
            deviation below 1 is then kept: dividing by it would amplify the noise.
    """
    white = masked_whiten(advantages, mask)
    return white * masked_var(advantages, mask).sqrt().clamp(max=1) if tied else white


def all_tied(scores: Tensor) -> bool:
    """Whether there are several scores and all are equal. [S], NaN if unscored."""
    known = scores[scores.isfinite()]
    return len(known) > 1 and float(known.max() - known.min()) < MIN_REWARD_STD


def _same_vocabulary(a: Path, b: Path) -> bool:
    vocabulary, other = (ChatTokenizer(path).hf.get_vocab() for path in (a, b))
    return bool(vocabulary == other)
