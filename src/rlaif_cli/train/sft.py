"""Supervised fine-tuning: the mean negative log-prob of the response tokens only, not the prompt's.

The first phase of Constitutional AI trains on revisions (Bai et al., arXiv 2212.08073); this stage also trains on
chosen responses, or any file of prompts and responses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlaif_cli.config.naming import option
from rlaif_cli.config.train import SftConfig
from rlaif_cli.data.messages import as_messages, prompt_text
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import Demonstration
from rlaif_cli.models.resolve import resolve_model
from rlaif_cli.models.tokenizer import ChatTokenizer
from rlaif_cli.train import dataset
from rlaif_cli.train.epochs import run_epochs, selection_and_report
from rlaif_cli.train.nn.batching import micro_batches
from rlaif_cli.train.nn.heads import device, load_policy, response_logprobs, trainable
from rlaif_cli.train.nn.packing import Group, pack
from rlaif_cli.train.nn.precision import autocast, frozen_dtype
from rlaif_cli.train.parallel.distributed import all_reduce_numbers
from rlaif_cli.train.runtime.export import save_trained_model
from rlaif_cli.train.runtime.optim import clip_and_step, loading_device, sharded
from rlaif_cli.train.runtime.run_folder import run_in_folder
from rlaif_cli.ui.progress import ProgressCallback, no_progress


def train_sft(config: SftConfig, *, progress: ProgressCallback = no_progress) -> dict[str, Any]:
    """Run the stage; see `SftConfig`. Returns the summary's numbers.

    Raises:
        InputError: the records are invalid, or one is longer than `max_length`.
        ModelError: the model cannot be found or loaded.
    """
    base = resolve_model(config.model)
    tokenizer = ChatTokenizer(base)
    source, rows = _rows(config, tokenizer)
    if config.dry_run:
        return {"records": len(source)}

    def train(settings: dict[str, Any]) -> dict[str, Any]:
        groups = [group for groups in rows for group in groups]
        return _train(config, settings, base, groups, progress) | {"rejected": source.rejected}

    return run_in_folder(config, "sft", base, train, input_sha256=source.sha256)


def _train(
    config: SftConfig,
    settings: dict[str, Any],
    base: Path,
    groups: Sequence[tuple[Group, str]],
    progress: ProgressCallback,
) -> dict[str, Any]:
    """groups: each with its prompt."""
    held_out_prompts = dataset.held_out((prompt for _, prompt in groups), config.eval_fraction, config.seed)
    train = [group for group, prompt in groups if prompt not in held_out_prompts]
    held_out = [each for each in groups if each[1] in held_out_prompts]
    halves = selection_and_report(held_out, lambda each: each[1], config)
    choosing, test = ([group for group, _ in half] for half in halves)
    dtype = frozen_dtype(config.precision) if config.lora_rank else torch.float32
    model = sharded(trainable(load_policy(base, dtype, loading_device(config)), config), config)

    def step(optimizer: torch.optim.Optimizer, batch: list[int]) -> dict[str, float]:
        return train_step(model, optimizer, [train[i] for i in batch], config)

    before = mean_loss(model, test, config) if test else None
    held_out_loss = (lambda: mean_loss(model, choosing, config)) if choosing else None
    results: dict[str, Any] = {"records": len(train)}
    results["weights"] = run_epochs(config, settings, model, len(train), step, held_out_loss, progress)
    if config.patience and choosing:
        results["chosen_on"] = {"records": len(choosing), "also_reported": halves[0] is halves[1]}
    if before is not None:
        after = mean_loss(model, test, config)
        results["held_out"] = {
            "records": len(test),
            "loss_before": round(before, 4),
            "loss": round(after, 4),
            "perplexity": round(math.exp(after), 3),
        }
    save_trained_model(config, model, base)
    return results


def _rows(config: SftConfig, tokenizer: ChatTokenizer) -> tuple[Source[Demonstration], list[list[tuple[Group, str]]]]:
    """The input, and for each record its groups with their prompt: one, or one for each round."""

    def convert(record: Demonstration) -> list[tuple[Group, str]] | str:
        if config.all_rounds and not _has_revisions(record):
            return f"'rounds' must be a list of objects with a 'revision', which {option('all_rounds')} trains on"
        groups = [(_tokenize(each, tokenizer), prompt_text(each.prompt)) for each in _expanded(record, config)]
        need = max(group.tokens for group, _ in groups)
        return groups if need <= config.max_length else f"{need} tokens; {option('max_length')} is {config.max_length}"

    return dataset.checked_rows(config, config.records, Demonstration, convert)


def _has_revisions(record: Demonstration) -> bool:
    """Whether the row's rounds, if any, have the format of `rlaif revise`."""
    rounds = record.meta.get("rounds") or []
    return isinstance(rounds, list) and all(
        isinstance(each, dict) and isinstance(each.get("revision"), str) and each["revision"] for each in rounds
    )


def _expanded(record: Demonstration, config: SftConfig) -> list[Demonstration]:
    """With `--all-rounds`, one record per round's revision, if the row has rounds; otherwise the record itself."""
    rounds = record.meta.get("rounds") if config.all_rounds else None
    if not rounds:
        return [record]
    return [record.model_copy(update={"response": each["revision"]}) for each in rounds]


def _tokenize(record: Demonstration, tokenizer: ChatTokenizer) -> Group:
    return Group(tokenizer.chat(as_messages(record.prompt)), [tokenizer.response(record.response)])


def train_step(
    model: Any, optimizer: torch.optim.Optimizer, groups: Sequence[Group], config: SftConfig
) -> dict[str, float]:
    """One optimizer step on the mean over the batch's response tokens, in micro-batches."""
    started = time.monotonic()
    total = sum(len(response) for group in groups for response in group.responses)
    loss_sum = torch.zeros((), device=device())
    with autocast(config.precision):
        for indices, weight in micro_batches(groups, config.tokens_per_batch):
            loss = weight * _summed_loss(model, [groups[i] for i in indices]) / total
            loss.backward()
            loss_sum += loss.detach()
    norm = clip_and_step(optimizer, config.max_grad_norm)
    seconds = time.monotonic() - started
    return {
        **all_reduce_numbers({"loss": float(loss_sum)}),
        "grad_norm": norm,
        "tokens_per_second": sum(group.tokens for group in groups) / seconds,
    }


@torch.no_grad()
def mean_loss(model: Any, groups: Sequence[Group], config: SftConfig) -> float:
    """Mean -log p per response token, nats, over all groups."""
    with autocast(config.precision):
        summed = sum(
            weight * float(_summed_loss(model, [groups[i] for i in indices]))
            for indices, weight in micro_batches(groups, config.tokens_per_batch)
        )
    total = all_reduce_numbers({"loss": summed})["loss"]
    return total / sum(len(response) for group in groups for response in group.responses)


def _summed_loss(model: Any, groups: Sequence[Group]) -> torch.Tensor:
    packed = pack(groups).to(device())
    return -(response_logprobs(model, packed, 1.0) * packed.response_mask).sum()
