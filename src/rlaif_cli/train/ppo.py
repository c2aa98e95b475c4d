"""PPO on token level: sample, score, estimate advantages, update, hand the weights back; then again.

Ziegler et al. 2019 and the N+ details (arXiv 2403.17031), as DESIGN section 5 lists them. The KL to the reference is
in the reward (k1). Where we depart: the entropy that is logged is the sampled estimate -mean log p(token), and the
reward is normalised by the reward model's own stored mean and std.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlaif_cli import models
from rlaif_cli.chat import ChatTokenizer, with_system
from rlaif_cli.config import PPOConfig
from rlaif_cli.console import ProgressCallback, no_progress
from rlaif_cli.engines.base import Completion, request_seed
from rlaif_cli.errors import EngineError
from rlaif_cli.jsonl import Source, read_rows
from rlaif_cli.records import PromptRecord, as_messages
from rlaif_cli.train import adapters, loop, ops, selection
from rlaif_cli.train.adapters import Adapted
from rlaif_cli.train.checkpoint import BestWeights, MetricsLog, TrainState, keep_through, remove_state
from rlaif_cli.train.models import (
    device,
    economical,
    load_policy,
    load_reward_model,
    new_reward_model,
    response_logprobs,
    trainable,
    values,
)
from rlaif_cli.train.packing import Packed, micro_batches, pack
from rlaif_cli.train.rewards import RewardSource, check_reward_source, stored_scale
from rlaif_cli.train.rollout import Prompt, Rollout, RolloutEngine
from rlaif_cli.train.selection import Compare, Selection

SAMPLES = "samples.jsonl"

# --------------------------------------------------------------------------------------------- what a step works on


@dataclass
class Experience:
    """A step's rollouts with all that the update needs. S = prompts x n sequences, R = the longest response.

    Attributes:
        scores: [S].
        mask: [S, R] bool, real response tokens.
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
    """Policy, reference and (for GAE) value model, and the optimizer over what is trained."""

    def __init__(self, config: PPOConfig, base: Path, reward_path: Path | None) -> None:
        self.config, self.base = config, base
        frozen = loop.frozen_dtype(config.precision)
        self._shared = load_policy(base, frozen) if config.lora_rank else None
        if self._shared is not None:
            economical(self._shared, config).train()
            adapters.add(self._shared, "policy", config)
            self.policy, self.reference = Adapted(self._shared, "policy"), Adapted(self._shared, None)
        else:
            self.policy = trainable(load_policy(base), config)
            self.reference = load_policy(base, frozen).eval().requires_grad_(False)
        trained = [(self.policy, config.lr)]
        self.value_model = self._value_model(reward_path) if config.advantage == "gae" else None
        if self.value_model is not None:
            trained.append((self.value_model, config.value_lr or config.lr))
        self.optimizer = loop.make_optimizer(trained, config)
        self.kl = (
            ops.AdaptiveKLController(config.kl_coef, config.kl_target, horizon=10_000)
            if config.kl_target
            else ops.FixedKLController(config.kl_coef)
        )

    @property
    def models(self) -> dict[str, Any]:
        return {"policy": self.policy} | ({"value": self.value_model} if self.value_model is not None else {})

    def on_body(self, reward_path: Path) -> Adapted | None:
        """A reward model as one more adapter on the policy's body, where it was trained as one on the same body."""
        folder = adapters.of_base(reward_path, self.base) if self._shared is not None else None
        if folder is None:
            return None
        name = f"reward {folder}".replace(".", "_")  # a part of parameters' names
        return self._adapted(name, adapters.load(self._shared, name, folder))

    def _adapted(self, name: str, head: dict[str, Tensor]) -> Adapted:
        score = nn.Linear(head["weight"].shape[1], 1, bias="bias" in head).to(device())
        score.load_state_dict(head)
        return Adapted(self._shared, name, score)

    def _value_model(self, reward_path: Path | None) -> Any:
        """The reward model, where it reads the policy's tokens; else the policy's body with a fresh head.

        The reward's normalisation is folded into the head, so that values start on the scale of the scores. A fresh
        head says 0: noise there would be noise in every first advantage (explained variance of -2 to -4 was seen over
        the first ten steps with a random one).
        """
        mean, std = stored_scale(reward_path) if reward_path else (0.0, 1.0)
        if self._shared is not None:
            folder = adapters.of_base(reward_path, self.base) if reward_path else None
            if folder is None:
                adapters.add(self._shared, "value", self.config)
                return self._adapted("value", {"weight": torch.zeros(1, self._shared.config.hidden_size)})
            weight = adapters.load(self._shared, "value", folder)["weight"]
            return self._adapted("value", {"weight": weight / std, "bias": torch.tensor([-mean / std])})
        known = reward_path if reward_path and _same_tokens(self.base, reward_path) else None
        model = load_reward_model(known) if known else new_reward_model(self.base, self.config.seed)
        weight = model.score.weight if known else torch.zeros_like(model.score.weight)
        model.score = nn.Linear(weight.shape[1], 1).to(weight)
        with torch.no_grad():
            model.score.weight.copy_(weight / std if known else weight)
            model.score.bias.fill_(-mean / std if known else 0.0)
        return economical(model, self.config).train()

    @torch.no_grad()
    def experience(self, rollouts: list[Rollout], scores: Tensor) -> Experience:
        """Log-probs, values, token rewards and advantages of a step's rollouts."""
        config = self.config
        shape = (len(rollouts) * config.n, max(len(c.token_ids) for r in rollouts for c in r.completions))
        old, ref, value = torch.zeros(3, *shape).unbind()
        mask = torch.zeros(shape, dtype=torch.bool)
        with loop.autocast(config.precision):
            for rows, packed in self._micro_batches(rollouts):
                width = packed.response_ids.shape[-1]
                mask[rows, :width] = packed.response_mask.flatten(0, 1).cpu()
                old[rows, :width] = self._logprobs(self.policy, packed)
                ref[rows, :width] = self._logprobs(self.reference, packed)
                if self.value_model is not None:
                    value[rows, :width] = values(self.value_model, packed).flatten(0, 1).cpu()
        sampled = torch.zeros(shape)
        for row, completion in enumerate(c for r in rollouts for c in r.completions):
            sampled[row, : len(completion.logprobs)] = torch.tensor(completion.logprobs)
        weights = ops.truncated_importance_weights(old, sampled, mask, cap=config.importance_cap)
        kl_coef = self.kl.value if config.kl_in == "reward" else 0.0
        weight = 1 - self.kl.value if config.kl_form == "convex" else 1.0
        rewards = token_rewards(weight * scores, old, ref, mask, kl_coef)
        if self.value_model is None:
            if config.advantage == "reinforce":
                advantages = batch_advantages(rewards, mask, config.gamma)
            else:
                advantages = group_advantages(rewards, mask, config.n, config.advantage)
            return Experience(rollouts, scores, mask, sampled, old, ref, advantages, weights)
        advantages, returns = ops.gae(rewards, value, mask, config.gamma, config.lam)
        advantages = ops.masked_whiten(advantages, mask)
        return Experience(rollouts, scores, mask, sampled, old, ref, advantages, weights, value, returns)

    def update(self, experience: Experience, step: int) -> dict[str, float]:
        """`epochs` passes over the rollout in `minibatches` optimizer steps each."""
        config, count = self.config, len(experience.rollouts)
        logged: list[dict[str, float]] = []
        for epoch in range(config.epochs):
            # The order depends on the seed and the step alone, so that a resumed run has the same.
            order = np.random.default_rng([config.seed, step, epoch]).permutation(count)
            for chosen in np.array_split(order, min(config.minibatches, count)):
                logged.append(self._optimizer_step(experience, chosen.tolist()))
        return {name: sum(row[name] for row in logged) / len(logged) for name in logged[0]}

    def _optimizer_step(self, experience: Experience, chosen: list[int]) -> dict[str, float]:
        """One minibatch of prompts, in micro-batches weighted by their tokens."""
        n = self.config.n
        total = int(experience.mask.view(-1, n, experience.mask.shape[-1])[chosen].sum())
        logged: dict[str, float] = {}
        with loop.autocast(self.config.precision):
            for rows, packed in self._micro_batches([experience.rollouts[i] for i in chosen], chosen):
                share = int(packed.response_mask.sum()) / total
                # One after the other, backward included: each one's memory is free for the next.
                losses = (self._policy_loss, self._value_loss) if self.value_model is not None else (self._policy_loss,)
                for loss_of in losses:
                    loss, numbers = loss_of(experience, rows, packed)
                    (share * loss).backward()
                    for name, value in numbers.items():
                        logged[name] = logged.get(name, 0.0) + share * float(value)
        logged["grad_norm"] = loop.clip_and_step(self.optimizer, self.config.max_grad_norm)
        return logged

    def _policy_loss(self, experience: Experience, rows: list[int], packed: Packed) -> tuple[Tensor, dict[str, Any]]:
        config = self.config
        of = part_of(rows, packed)
        mask = of(experience.mask)
        logprobs = response_logprobs(self.policy, packed, config.temperature).flatten(0, 1)
        loss, numbers = ops.ppo_policy_loss(
            logprobs, of(experience.old_logprobs), of(experience.advantages), mask, config.clip, of(experience.weights)
        )
        logged = {"policy_loss": loss.detach()} | {name: numbers[name] for name in ("clip_fraction", "approx_kl")}
        if config.kl_in == "loss":
            # k2, whose gradient is that of the KL; k3 as a loss is biased (arXiv 2510.01555).
            kl = ops.masked_mean(ops.kl_estimate(logprobs, of(experience.ref_logprobs), "k2"), mask)
            loss = loss + self.kl.value * kl
        return loss, logged

    def _value_loss(self, experience: Experience, rows: list[int], packed: Packed) -> tuple[Tensor, dict[str, Any]]:
        assert experience.old_values is not None and experience.returns is not None
        of = part_of(rows, packed)
        loss, numbers = ops.ppo_value_loss(
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
        self, rollouts: Sequence[Rollout], places: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Packed]]:
        """(rows of the step's [S, R] tensors, packed sequences); `places`: the rollouts' numbers within the step."""
        groups, n = [rollout.group for rollout in rollouts], self.config.n
        for indices in micro_batches(groups, self.config.tokens_per_batch):
            numbers = [places[i] if places is not None else i for i in indices]
            rows = [number * n + k for number in numbers for k in range(n)]
            yield rows, pack([groups[i] for i in indices]).to(device())


def part_of(rows: list[int], packed: Packed) -> Callable[[Tensor], Tensor]:
    """Cuts the packed sequences' part out of a step's [S, R] tensors."""
    return lambda tensor: tensor[rows, : packed.response_ids.shape[-1]].to(packed.input_ids.device)


def token_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """-kl_coef * (log p - log p_ref) on every token, and the score on the last one. [S], [S, R] -> [S, R]."""
    rewards = -kl_coef * ops.kl_estimate(logprobs, ref_logprobs, "k1") * mask
    last = ops.last_token_index(mask)
    rewards[torch.arange(len(rewards)), last] += scores.to(rewards)
    return rewards


def group_advantages(rewards: Tensor, mask: Tensor, n: int, kind: str) -> Tensor:
    """Each response's whole reward against those of its prompt's others, the same on all its tokens. [S, R] -> [S, R].

    Args:
        kind: "rloo" (minus the mean of the others) or "grpo" (minus the mean, over the deviation).
    """
    total = rewards.sum(1).view(-1, n)
    advantages = total - ops.leave_one_out_baseline(total) if kind == "rloo" else ops.group_normalized_advantage(total)
    return advantages.flatten()[:, None] * mask


def batch_advantages(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """REINFORCE: what is still to come, against the whole step's mean and deviation. [S, R] -> [S, R]."""
    to_come, _ = ops.gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)
    return ops.masked_whiten(to_come, mask)


def shaped_scores(config: PPOConfig, raw: Tensor, completions: Sequence[Completion]) -> Tensor:
    """[S] what is trained on: the reward with `missing_eos_penalty` in its place and `length_penalty` taken off."""
    ended = torch.tensor([c.finish_reason == "stop" for c in completions])
    scores = raw if config.missing_eos_penalty is None else raw.where(ended, config.missing_eos_penalty)
    return scores - config.length_penalty * torch.tensor([float(len(c.token_ids)) for c in completions])


def _same_tokens(a: Path, b: Path) -> bool:
    vocabulary, other = (ChatTokenizer(path).hf.get_vocab() for path in (a, b))
    return bool(vocabulary == other)


# --------------------------------------------------------------------------------------------- the run


def train_ppo(
    config: PPOConfig,
    make_reward: Callable[[Callable[[Path], Adapted | None]], RewardSource],
    compare: Compare | None = None,
    *,
    progress: ProgressCallback = no_progress,
) -> dict[str, Any]:
    """Run the stage; see `PPOConfig`. Returns the summary's numbers.

    Args:
        make_reward: called once, when compute begins, with what may put a reward model on the policy's body.
        compare: what `config.eval_judge` says of two responses.

    Raises:
        InputError: the prompts cannot be used, or one does not fit the model's context.
        ModelError: a model cannot be found or loaded.
        EngineError: the engine's log-probs do not follow the trainer's.
    """
    check_reward_source(config)
    base = models.resolve(config.model)
    reward_path = models.resolve(config.reward_model[0]) if config.reward_model else None
    source = _source(config, base)
    if config.dry_run:
        return {"prompts": len(source)}
    settings, done = loop.begin(config, input_sha256=source.sha256)
    if done is not None:
        return done
    folder = Path(config.output)
    prompts = _prompts(config, source, base)
    trainer = Trainer(config, base, reward_path)
    reward = make_reward(trainer.on_body)
    weights = _run(config, settings, folder, base, trainer, reward, prompts, compare, progress)
    loop.save_trained_model(config, trainer.policy, base)
    results = _results(config, folder) | ({"weights": weights} if weights else {})
    loop.write_manifest(folder, "ppo", settings, results=results)
    remove_state(folder)
    return results


def _source(config: PPOConfig, base: Path) -> Source[PromptRecord]:
    tokenizer, limit = ChatTokenizer(base), models.context_length(base)

    def fits(record: PromptRecord) -> str | None:
        need = len(tokenizer.chat(with_system(as_messages(record.prompt), config.system))) + config.max_tokens
        return None if need <= limit else f"prompt and response need {need} tokens, the model's context holds {limit}"

    return loop.checked_source(config, config.prompts, PromptRecord, fits)


def _prompts(config: PPOConfig, source: Source[PromptRecord], base: Path) -> list[Prompt]:
    tokenizer = ChatTokenizer(base)
    rows = ((record.id, with_system(as_messages(record.prompt), config.system)) for record in source)
    return [Prompt(name, messages, tokenizer.chat(messages)) for name, messages in rows]


def _run(
    config: PPOConfig,
    settings: dict[str, Any],
    folder: Path,
    base: Path,
    trainer: Trainer,
    reward: RewardSource,
    prompts: list[Prompt],
    compare: Compare | None,
    progress: ProgressCallback,
) -> dict[str, Any] | None:
    """All steps; what is known of the weights that are kept, where they were chosen."""
    state = TrainState(folder, settings, trainer.models, trainer.optimizer)
    position = state.load() or {"step": 0, "kl": trainer.kl.state_dict(), "best": None}
    trainer.kl.load_state_dict(position["kl"])
    log = MetricsLog(config, folder, keep_through_step=position["step"])
    keep_through(folder / SAMPLES, position["step"])
    engine = RolloutEngine(config, trainer.policy, base, max(len(p.token_ids) for p in prompts))
    prompts, held_out = selection.split(config, prompts)
    choice = Selection(config, folder, held_out, compare) if compare and held_out else None
    best = BestWeights(folder, trainer.policy, position["best"])
    try:
        if choice and not position["step"]:
            choice.remember_start(engine)
        for step in range(position["step"], config.steps):
            done = step + 1
            numbers = ppo_step(config, trainer, engine, reward, prompts, step, folder)
            stop = too_far(config, numbers)
            if choice and (done % config.eval_every == 0 or done == config.steps) and not stop:
                numbers["win_rate"] = choice.win_rate(engine)
                best.offer(-numbers["win_rate"], done)
            log.add(done, **numbers)
            if stop:
                break
            if config.save_every and done % config.save_every == 0 and done < config.steps:
                state.save({"step": done, "kl": trainer.kl.state_dict(), "best": best.found})
            progress(done, config.steps, f"reward {numbers['reward']:.3f}, KL {numbers['kl']:.2f}")
    finally:
        engine.close()
        log.close()
    if best.found is None:
        return None
    best.restore()
    return {"step": best.found["step"], "win_rate": round(-best.found["loss"], 4)}


def ppo_step(
    config: PPOConfig,
    trainer: Trainer,
    engine: RolloutEngine,
    reward: RewardSource,
    prompts: list[Prompt],
    step: int,
    folder: Path,
) -> dict[str, Any]:
    """One round of the algorithm; returns what is logged of it."""
    clock = Clock()
    lr = loop.set_learning_rate(trainer.optimizer, config, step, config.steps)
    with clock("sync"):
        engine.sync()
    with clock("rollout"):
        batch = step_prompts(prompts, config.prompts_per_step, config.seed, step)
        rollouts = engine.sample(batch, [request_seed(config.seed, step, prompt.id) for prompt in batch])
    with clock("reward"):
        texts = [[c.text for c in r.completions] for r in rollouts]
        raw = reward.score([r.prompt.messages for r in rollouts], texts).flatten()
        completions = [c for r in rollouts for c in r.completions]
        scores = shaped_scores(config, raw, completions)
    with clock("forward"):
        experience = trainer.experience(rollouts, scores)
    numbers = describe(experience, trainer.kl.value)
    check_mismatch(numbers["mismatch"], config.max_mismatch)
    if not too_far(config, numbers):
        with clock("update"):
            numbers |= trainer.update(experience, step)
    trainer.kl.update(numbers["kl"], len(scores))
    if config.samples_every and step % config.samples_every == 0:
        write_samples(folder, step + 1, rollouts, scores)
    samples_per_second = len(scores) / sum(clock.seconds.values())
    seconds = {f"seconds_{name}": value for name, value in clock.seconds.items()}
    return numbers | {
        "reward": float(raw.mean()),
        "ended": sum(c.finish_reason == "stop" for c in completions) / len(completions),
        "lr": lr,
        "samples_per_second": samples_per_second,
        **seconds,
    }


@torch.no_grad()
def describe(experience: Experience, kl_coef: float) -> dict[str, float]:
    """What is logged of a step's rollouts; docs/metrics.md explains each number."""
    e, mask = experience, experience.mask
    kl = (ops.kl_estimate(e.old_logprobs, e.ref_logprobs, "k1") * mask).sum(1)
    values = {}
    if e.old_values is not None and e.returns is not None:
        values["explained_variance"] = float(ops.explained_variance(e.old_values, e.returns, mask))
    return values | {
        "score": float(e.scores.mean()),
        "kl": float(kl.mean()),
        "kl_coef": kl_coef,
        "entropy": float(-ops.masked_mean(e.old_logprobs, mask)),
        "response_length": float(mask.sum(1).float().mean()),
        "mismatch": float(ops.masked_mean((e.rollout_logprobs - e.old_logprobs).abs(), mask)),
        "importance_weight": float(ops.masked_mean(e.weights, mask)),
    }


def check_mismatch(mismatch: float, bound: float) -> None:
    """Raises: EngineError: the engine's log-probs are not the trainer's; the rollouts come from other weights."""
    if not mismatch <= bound:
        raise EngineError(
            f"the engine's log-probs differ from the trainer's by {mismatch:.3f} nats a token on average "
            f"(bound {bound:g}): its weights were not synced",
            hint="report this with the model's name; --max-mismatch sets the bound",
        )


def too_far(config: PPOConfig, numbers: dict[str, Any]) -> bool:
    """The policy is further from the reference than `max_kl` allows."""
    return config.max_kl is not None and numbers["kl"] > config.max_kl


def step_prompts(prompts: list[Prompt], count: int, seed: int, step: int) -> list[Prompt]:
    """The prompts of a step: shuffled passes over all of them, known from the step alone."""
    chosen = []
    for place in range(step * count, (step + 1) * count):
        epoch, index = divmod(place, len(prompts))
        chosen.append(prompts[int(np.random.default_rng([seed, epoch]).permutation(len(prompts))[index])])
    return chosen


def write_samples(folder: Path, step: int, rollouts: Sequence[Rollout], scores: Tensor, count: int = 4) -> None:
    """The first sample of a few prompts, for people to read."""
    n = len(rollouts[0].completions)
    with open(folder / SAMPLES, "a", encoding="utf-8") as file:
        for index, rollout in enumerate(rollouts[:count]):
            row = {
                "step": step,
                "prompt": [message.model_dump() for message in rollout.prompt.messages],
                "response": rollout.completions[0].text,
                "score": round(float(scores[index * n]), 4),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - started


def _results(config: PPOConfig, folder: Path) -> dict[str, Any]:
    """First and last steps side by side, from the log."""
    rows = read_rows(folder / "metrics.jsonl")
    edge = max(1, len(rows) // 5)

    def mean(name: str, part: list[dict[str, Any]]) -> float:
        return round(sum(row[name] for row in part) / len(part), 4)

    return {
        "steps": len(rows),
        "stopped_by_kl": too_far(config, rows[-1]),
        "reward_first": mean("reward", rows[:edge]),
        "reward_last": mean("reward", rows[-edge:]),
        "kl_last": mean("kl", rows[-edge:]),
        "samples_per_second": mean("samples_per_second", rows),
    }
