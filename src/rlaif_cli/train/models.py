"""Causal LMs, and reward and value models on top of them: loading, heads, and the one forward pass they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rlaif_cli import models as checkpoints
from rlaif_cli.config import TrainConfig
from rlaif_cli.errors import ModelError
from rlaif_cli.train import adapters, attention, distributed
from rlaif_cli.train.adapters import Adapted
from rlaif_cli.train.ops import gather_logprobs
from rlaif_cli.train.packing import Packed


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_policy(path: Path, dtype: torch.dtype = torch.float32, place: torch.device | None = None) -> Any:
    """A causal LM; float32 weights where it will be trained (autocast computes in bf16)."""
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, path, place, dtype=dtype)


def new_reward_model(
    path: Path, seed: int, dtype: torch.dtype = torch.float32, place: torch.device | None = None
) -> Any:
    """A reward model with a fresh head on the checkpoint's body: N(0, 1/(d+1)), dropout off (RESEARCH section 4)."""
    from transformers import AutoModelForSequenceClassification

    head = frozenset({"score.weight"})
    model = _load(AutoModelForSequenceClassification, path, place, fresh=head, dtype=dtype, num_labels=1)
    weight = model.score.float().weight
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        fresh = torch.randn(weight.shape, generator=generator) / (weight.shape[1] + 1) ** 0.5
        weight.copy_(fresh.to(weight))
    return model


def load_reward_model(path: Path, dtype: torch.dtype = torch.float32, place: torch.device | None = None) -> Any:
    """A trained reward model.

    Raises:
        ModelError: the folder is no one-label sequence-classification checkpoint with a trained head. transformers
            would make a random head without an error, and every reward would be noise.
    """
    from transformers import AutoModelForSequenceClassification

    checkpoints.check_reward_model(path)
    model = _load(AutoModelForSequenceClassification, path, place, dtype=dtype)
    if model.config.num_labels != 1:
        raise ModelError(f"a reward model has one label, this has {model.config.num_labels}", where=str(path))
    return model


def _load(kind: Any, path: Path, place: torch.device | None, **options: Any) -> Any:
    """On its device (or `place`), with every dropout off: rollout and update must see the same network."""
    model = checkpoints.load(kind, path, attn_implementation=attention.register(), **options)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout"):
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    model.config.use_cache = False
    return model.to(place or device())


# ------------------------------------------------------------------------------------------------ what is trained


def trainable(model: Any, config: TrainConfig) -> Any:
    """Ready for training: all of its weights, or its head and new adapters on the rest."""
    if config.lora_rank:
        adapters.add(model, "trained", config)
        if hasattr(model, "score"):
            model.score.requires_grad_(True)
    return economical(model, config).train()


def economical(model: Any, config: TrainConfig) -> Any:
    """With gradient checkpointing and compiled layers, where they are asked for."""
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise ModelError("--compile does not find the layers of this model", hint="train without it")
        for layer in layers:  # all are one program, compiled once, for any number of tokens
            layer.compile(dynamic=True)
    return model


def trained_parameters(model: Any) -> dict[str, nn.Parameter]:
    """By name; a tied one stands once (`named_parameters` skips repeats)."""
    if isinstance(model, Adapted):
        return model.trained_parameters()
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


# ------------------------------------------------------------------------------------------------ the forward pass


def hidden_states(model: Any, batch: Packed) -> Tensor:
    """[T, d]: the body's last hidden states."""
    body = model.activate() if isinstance(model, Adapted) else getattr(model, model.base_model_prefix)
    output = body(
        input_ids=batch.input_ids,
        attention_mask=attention.no_mask(batch.input_ids.device),
        position_ids=batch.position_ids,
        layout=batch.layout,
        use_cache=False,
    )
    states: Tensor = output.last_hidden_state[0]
    return states


@distributed.computing
def response_logprobs(model: Any, batch: Packed, temperature: float) -> Tensor:
    """log p of every response token, [B, n, R], nats; 0 at padding. Logits are made at real response tokens only."""
    mask = batch.response_mask
    logits = model.get_output_embeddings()(hidden_states(model, batch)[batch.predictor[mask]])
    found = gather_logprobs(logits, batch.response_ids[mask], temperature)
    return found.new_zeros(mask.shape).masked_scatter(mask, found)


@distributed.computing
def rewards(model: Any, batch: Packed) -> Tensor:
    """The reward of every branch, [B, n]: the head at its last token, found from its place, not from a pad id."""
    reward: Tensor = model.score(hidden_states(model, batch)[batch.last])[..., 0].float()
    return reward


@distributed.computing
def values(model: Any, batch: Packed) -> Tensor:
    """The value before each response token, [B, n, R]."""
    value: Tensor = model.score(hidden_states(model, batch)[batch.predictor])[..., 0].float()
    return value
