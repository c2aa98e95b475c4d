"""Train a reward model on soft preferences: L = -[p log s(d) + (1-p) log s(-d)], d = r_chosen - r_rejected.

The loss cannot fall below the labels' own entropy; this floor is logged beside it. Unlike Lee et al. (arXiv
2309.00267), the head starts at N(0, 1/(d+1)) and dropout is off (arXiv 2403.17031).
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlaif_cli.config.naming import option
from rlaif_cli.config.train import RewardModelConfig
from rlaif_cli.data.messages import prompt_text
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import Preference
from rlaif_cli.errors import DivergedError, InputError
from rlaif_cli.models.resolve import resolve_model
from rlaif_cli.models.tokenizer import ChatTokenizer
from rlaif_cli.stats.agreement import agreement_items
from rlaif_cli.stats.calibration import calibration, entropy
from rlaif_cli.stats.intervals import rate_estimate
from rlaif_cli.train.dataset import checked_rows, held_out
from rlaif_cli.train.epochs import run_epochs, selection_and_report
from rlaif_cli.train.math.losses import binary_entropy, soft_pairwise_loss
from rlaif_cli.train.nn.batching import micro_batches
from rlaif_cli.train.nn.heads import device, new_reward_model, rewards, trainable
from rlaif_cli.train.nn.packing import Group, distribute, pack
from rlaif_cli.train.nn.precision import autocast, frozen_dtype
from rlaif_cli.train.parallel.distributed import all_reduce, all_reduce_numbers
from rlaif_cli.train.runtime.export import save_trained_model
from rlaif_cli.train.runtime.optim import clip_and_step, loading_device, sharded
from rlaif_cli.train.runtime.run_folder import run_in_folder
from rlaif_cli.ui import console
from rlaif_cli.ui.progress import ProgressCallback, no_progress

SCALE_PAIRS = 128  # at most this many pairs for the reward's mean and std: enough to know the std within 5 %
MIN_REWARD_STD = 1e-6  # rewards with a lower standard deviation count as all the same


@dataclass(frozen=True)
class Pair:
    """One preference, tokenized: the group's responses are (chosen, rejected)."""

    group: Group
    p_chosen: float
    prompt: str


def train_reward_model(config: RewardModelConfig, *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """Run the stage; see `RewardModelConfig`. Returns the summary's numbers.

    Raises:
        InputError: the preferences are invalid, or a pair is longer than `max_length`.
        ModelError: the model cannot be found or loaded.
    """
    base = resolve_model(config.model)
    tokenizer = ChatTokenizer(base)
    source, pairs = _pairs(config, tokenizer, config.preferences, "rejected")
    human, human_pairs = _pairs(config, tokenizer, config.human, "human.rejected") if config.human else (None, [])
    if config.dry_run:
        return {"pairs": len(source)}

    def train(settings: dict[str, Any]) -> dict[str, Any]:
        found = _train(config, settings, base, pairs, human_pairs, progress)
        return found | {"rejected": source.rejected, "human_rejected": human.rejected if human else 0}

    inputs = {"input_sha256": source.sha256, "human_sha256": human.sha256 if human else None}
    return run_in_folder(config, "train-rm", base, train, **inputs)


def _train(
    config: RewardModelConfig,
    settings: dict[str, Any],
    base: Path,
    pairs: Sequence[Pair],
    human_pairs: list[Pair],
    progress: ProgressCallback,
) -> dict[str, Any]:
    train, test = split(pairs, config)
    train, ties = without_ties(train, config)
    choosing, reported = selection_and_report(test, lambda pair: pair.prompt, config)
    model = untrained(base, config)

    def step(optimizer: torch.optim.Optimizer, batch: list[int]) -> dict[str, float]:
        return train_step(model, optimizer, [train[i] for i in batch], config)

    def held_out_loss() -> float:
        return float(measure(model, choosing, config)["loss"])

    measured = held_out_loss if choosing else None
    weights = run_epochs(config, settings, model, len(train), step, measured, progress)
    found: dict[str, Any] = {"weights": weights, "ties": ties, "ties_dropped": ties if config.ties == "drop" else 0}
    if config.patience and choosing:
        found["chosen_on"] = {"pairs": len(choosing), "prompts": len({pair.prompt for pair in choosing})}
        found["chosen_on"]["also_reported"] = choosing is reported
    return found | _finish(config, model, base, train, reported, human_pairs)


def untrained(base: Path, config: RewardModelConfig) -> Any:
    """A new reward model to train: all weights in fp32, or with LoRA adapters on a frozen body."""
    dtype = frozen_dtype(config.precision) if config.lora_rank else torch.float32
    model = new_reward_model(base, config.seed, dtype, loading_device(config))
    return sharded(trainable(model, config), config)


def _pairs(
    config: RewardModelConfig, tokenizer: ChatTokenizer, path: str, rejected: str
) -> tuple[Source[Preference], list[Pair]]:
    def convert(record: Preference) -> Pair | str:
        pair = tokenize(record, tokenizer)
        return too_long(pair.group, config.max_length) or pair

    return checked_rows(config, path, Preference, convert, rejected)


def too_long(group: Group, max_length: int) -> str | None:
    """Why a pair is too long, or None if it is not."""
    longest = len(group.prompt) + max(map(len, group.responses))
    return None if longest <= max_length else f"{longest} tokens; {option('max_length')} is {max_length}"


def tokenize(record: Preference, tokenizer: ChatTokenizer) -> Pair:
    responses = (tokenizer.response(record.chosen_text), tokenizer.response(record.rejected_text))
    return Pair(Group(tokenizer.chat(record.prompt), responses), record.p_chosen, prompt_text(record.prompt))


def split(pairs: Sequence[Pair], config: RewardModelConfig) -> tuple[list[Pair], list[Pair]]:
    """Split pairs into (train, held out) by prompt: no prompt is on both sides."""
    held_out_prompts = held_out((pair.prompt for pair in pairs), config.eval_fraction, config.seed)
    return [p for p in pairs if p.prompt not in held_out_prompts], [p for p in pairs if p.prompt in held_out_prompts]


def without_ties(pairs: list[Pair], config: RewardModelConfig) -> tuple[list[Pair], int]:
    """(the pairs to train on, the number of ties among `pairs`).

    Raises:
        InputError: ties are dropped, and no other pairs remain.
    """
    decided = [pair for pair in pairs if pair.p_chosen != 0.5]
    ties = len(pairs) - len(decided)
    if config.ties == "keep":
        return pairs, ties
    if not decided:
        raise InputError("every pair to train on is a tie", where=config.preferences, hint=f"{option('ties')} keep")
    return decided, ties


def hardened(labels: torch.Tensor) -> torch.Tensor:
    """[n] probabilities rounded to 0 or 1; a tie stays 0.5, since it prefers neither."""
    return torch.where(labels == 0.5, labels, labels.round())


def train_step(
    model: Any, optimizer: torch.optim.Optimizer, pairs: Sequence[Pair], config: RewardModelConfig
) -> dict[str, float]:
    """One optimizer step over a batch, in micro-batches; the result equals that of the whole batch at once."""
    started = time.monotonic()
    groups = [pair.group for pair in pairs]
    labels = torch.tensor([pair.p_chosen for pair in pairs], device=device())
    labels = hardened(labels) if config.hard_labels else labels
    loss_sum, margins = torch.zeros((), device=device()), torch.zeros(len(pairs), device=device())
    with autocast(config.precision):
        for indices, weight in micro_batches(groups, config.tokens_per_batch):
            r = rewards(model, pack([groups[i] for i in indices]).to(device()))  # [b, 2]
            share = weight * len(indices) / len(pairs)
            loss = soft_pairwise_loss(r[:, 0], r[:, 1], labels[indices], margin=config.margin)
            centering = config.centering * (r.sum(1) ** 2).mean()
            (share * (loss + centering)).backward()
            loss_sum += share * loss.detach()
            margins[indices] += weight * (r[:, 0] - r[:, 1]).detach()
    norm = clip_and_step(optimizer, config.max_grad_norm)
    all_reduce(margins)
    seconds = time.monotonic() - started
    return {
        **all_reduce_numbers({"loss": float(loss_sum)}),
        "entropy_floor": float(binary_entropy(labels).mean()),
        "accuracy": float(((margins > 0).float() + 0.5 * (margins == 0)).mean()),
        "margin": float(margins.mean()),
        "grad_norm": norm,
        "pairs_per_second": len(pairs) / seconds,
        "tokens_per_second": sum(group.tokens for group in groups) / seconds,
    }


@torch.no_grad()
def score_groups(
    model: Any, groups: Sequence[Group], precision: str, token_budget: int, *, together: bool = False
) -> np.ndarray[Any, Any]:
    """The reward of every response, [groups, n]; independent of batching and padding.

    Args:
        together: all processes pass the same groups, and each computes its share.
    """
    scores = torch.zeros(len(groups), len(groups[0].responses), dtype=torch.float64)
    batches = micro_batches(groups, token_budget) if together else distribute(groups, token_budget, 1)[0]
    with autocast(precision):
        for indices, weight in batches:
            packed = pack([groups[i] for i in indices]).to(device())
            scores[indices] += weight * rewards(model, packed).double().cpu()
    return np.asarray((all_reduce(scores) if together else scores).numpy())


def measure(model: Any, pairs: Sequence[Pair], config: RewardModelConfig) -> dict[str, Any]:
    """How well the model predicts the labels of pairs."""
    p_chosen = np.array([pair.p_chosen for pair in pairs])
    return evaluate(_scores(model, pairs, config), p_chosen, [pair.prompt for pair in pairs])


def _scores(model: Any, pairs: Sequence[Pair], config: RewardModelConfig) -> np.ndarray[Any, Any]:
    groups = [pair.group for pair in pairs]
    scores = score_groups(model, groups, config.precision, config.tokens_per_batch, together=True)
    if not np.isfinite(scores).all():
        raise DivergedError("rewards are not finite")
    return scores


def evaluate(scores: np.ndarray[Any, Any], p_chosen: np.ndarray[Any, Any], prompts: Sequence[str]) -> dict[str, Any]:
    """How well reward margins predict soft labels; the interval of `accuracy` is over prompts.

    Args:
        scores: [pairs, 2] (chosen, rejected).
        p_chosen: [pairs].
        prompts: [pairs], each pair's prompt.
    """
    predicted = probability(scores)
    decided = p_chosen != 0.5
    found: dict[str, Any] = {"pairs": len(scores), "prompts": len(set(prompts)), "ties": int((~decided).sum())}
    if decided.any():  # else there is no preference to agree with
        agrees = agreement_items(predicted[decided], p_chosen[decided])
        agreement = rate_estimate(agrees, [prompt for prompt, kept in zip(prompts, decided, strict=True) if kept])
        found["accuracy"] = round(agreement.value, 4)
        found["accuracy_interval"] = [round(agreement.low, 4), round(agreement.high, 4)]
    return found | {
        "loss": round(log_loss(predicted, p_chosen), 4),
        "entropy_floor": round(float(entropy(p_chosen).mean()), 4),
        **calibration(predicted, p_chosen),
    }


def probability(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[pairs, 2] rewards -> [pairs] P(the first is better), by the Bradley-Terry model."""
    return np.asarray(1 / (1 + np.exp(scores[:, 1] - scores[:, 0])))


def log_loss(predicted: np.ndarray[Any, Any], p: np.ndarray[Any, Any]) -> float:
    """Mean cross-entropy of predictions against soft labels, nats."""
    return float(-(p * np.log(predicted + 1e-12) + (1 - p) * np.log(1 - predicted + 1e-12)).mean())


def _finish(
    config: RewardModelConfig,
    model: Any,
    base: Path,
    train: list[Pair],
    test: list[Pair],
    human_pairs: list[Pair],
) -> dict[str, Any]:
    """Evaluate, store the reward's mean and std in the checkpoint's config, and save."""
    model.eval()
    seen = _scores(model, random.Random(config.seed).sample(train, min(SCALE_PAIRS, len(train))), config)
    mean, std = float(seen.mean()), float(seen.std())
    if std < MIN_REWARD_STD:
        console.warn("the reward is the same for all training responses: this model prefers nothing (try a lower --lr)")
    results: dict[str, Any] = {
        "train_pairs": len(train),
        "reward_mean": round(mean, 6),
        "reward_std": round(std, 6),
    }
    if any(pair.p_chosen != 0.5 for pair in test):
        results["held_out"] = measure(model, test, config)
    trained_on = {pair.prompt for pair in train}
    if unseen := [pair for pair in human_pairs if pair.prompt not in trained_on]:
        results["human"] = measure(model, unseen, config)
    model.config.rlaif = {"reward_mean": mean, "reward_std": std}
    save_trained_model(config, model, base)
    return results
