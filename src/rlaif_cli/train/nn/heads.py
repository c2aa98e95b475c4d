"""Causal LMs, and reward and value models on top of them: loaded, checked by a short trial, and made ready to train."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rlaif_cli.config.train import TrainConfig
from rlaif_cli.errors import ModelError
from rlaif_cli.models.load import load, load_config
from rlaif_cli.models.metadata import check_reward_model, stored_tensors
from rlaif_cli.train.nn import lora, selftest
from rlaif_cli.train.nn.forward import hidden_states, packs, response_logprobs, rewards, values
from rlaif_cli.train.nn.lora import Adapted

__all__ = [
    "device",
    "economical",
    "hidden_states",
    "load_policy",
    "load_reward_model",
    "new_reward_model",
    "packs",
    "response_logprobs",
    "rewards",
    "trainable",
    "trained_parameters",
    "values",
]

# What makes two passes over the same tokens differ: rollout and update must see the same network.
_RANDOM = re.compile(r".*(drop(out|_?path|_?rate|$)|pdrop|layerdrop|jitter).*")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_policy(path: Path, dtype: torch.dtype = torch.float32, place: torch.device | None = None) -> Any:
    """A causal LM; float32 weights where it will be trained (autocast computes in bf16).

    Raises:
        ModelError: it cannot be loaded, or is of a kind that cannot be trained here (see `selftest`).
    """
    from transformers import AutoModelForCausalLM

    config = _without_randomness(load_config(path))
    return _ready(load(AutoModelForCausalLM, path, config=config, dtype=dtype), path, place)


def new_reward_model(
    path: Path, seed: int, dtype: torch.dtype = torch.float32, place: torch.device | None = None
) -> Any:
    """A reward model with a fresh head on the checkpoint's body: N(0, 1/(d+1)), in fp32 (arXiv 2403.17031).

    Raises:
        ModelError: see `load_policy`; or transformers has no reward models with such a body.
    """
    model = _with_head(path, frozenset({"score.weight"}), dtype, num_labels=1)
    weight = model.score.float().weight
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        fresh = torch.randn(weight.shape, generator=generator) / (weight.shape[1] + 1) ** 0.5
        weight.copy_(fresh.to(weight))
    return _ready(model, path, place)


def load_reward_model(path: Path, dtype: torch.dtype = torch.float32, place: torch.device | None = None) -> Any:
    """A trained reward model, its head in fp32.

    Raises:
        ModelError: the folder is no one-label sequence-classification checkpoint with a trained head. transformers
            would make a random head without an error, and every reward would be noise.
    """
    check_reward_model(path)
    model = _with_head(path, frozenset(), dtype)
    if dtype != torch.float32:  # loading has rounded it
        stored = stored_tensors(path, "score.")
        model.score.float().load_state_dict({name.removeprefix("score."): tensor for name, tensor in stored.items()})
    return _ready(model, path, place)


def _with_head(path: Path, fresh: frozenset[str], dtype: torch.dtype, **options: Any) -> Any:
    from transformers import AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as known

    config = _without_randomness(load_config(path, **options))
    hint = "docs/models.md lists the kinds of models that can be trained"
    if type(config) not in known:
        raise ModelError(
            f"transformers has no reward models of this kind ({config.model_type})",
            where=str(path),
            hint=f"a reward model on another base; ppo without a value model: --advantage rloo ({hint})",
        )
    with torch.device("meta"):
        head = getattr(AutoModelForSequenceClassification.from_config(config), "score", None)
    if not isinstance(head, nn.Linear):
        what = f"the head of this kind of model ({config.model_type}) is not one linear layer on the last token"
        raise ModelError(what, where=str(path), hint=hint)
    return load(AutoModelForSequenceClassification, path, new_weights=fresh, config=config, dtype=dtype)


def _without_randomness(config: Any) -> Any:
    """The config, and those inside it, with every dropout and jitter at 0.

    Before the model is built: many hold the number in a layer, and apply it by a function and not by a module.
    """
    for part in selftest.configs(config):
        for name, value in part.to_dict().items():
            if isinstance(value, float) and value and _RANDOM.fullmatch(name):
                setattr(part, name, 0.0)
        part.use_cache = False
        if getattr(part, "output_router_logits", False):
            part.output_router_logits = False  # only for a loss that is not trained on
    return config


def _ready(model: Any, path: Path, place: torch.device | None) -> Any:
    """On its device (or `place`), with no randomness, and the attention that `selftest` finds right for it."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    model = model.to(place or device())
    selftest.admit(model, str(path))
    return model


# ------------------------------------------------------------------------------------------------ what is trained


def trainable(model: Any, config: TrainConfig) -> Any:
    """Ready for training: all of its weights, or its head and new adapters on the rest."""
    if config.lora_rank:
        lora.add(model, "trained", config)
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
