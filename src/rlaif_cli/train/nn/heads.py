"""Load causal LMs, and reward and value models built on them, check them with `selftest`, and prepare them to train."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rlaif_cli.config.naming import option
from rlaif_cli.config.train import TrainConfig
from rlaif_cli.errors import ModelError
from rlaif_cli.models.load import load, load_config
from rlaif_cli.models.metadata import check_reward_model, stored_tensors
from rlaif_cli.train.nn import lora, selftest
from rlaif_cli.train.nn.forward import hidden_states, packs, response_logprobs, rewards, values
from rlaif_cli.train.nn.lora import Adapted

__all__ = [
    "device",
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
    "with_checkpointing_and_compile",
]

# Settings that make two passes over the same tokens differ: rollout and update must see the same network.
_RANDOM = re.compile(r".*(drop(out|_?path|_?rate|$)|pdrop|layerdrop|jitter).*")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_policy(path: Path, dtype: torch.dtype = torch.float32, target: torch.device | None = None) -> Any:
    """Load a causal LM. Use float32 weights for training (autocast computes in bf16).

    Raises:
        ModelError: it cannot be loaded, or its architecture cannot be trained (see `selftest`).
    """
    from transformers import AutoModelForCausalLM

    config = _without_randomness(load_config(path))
    return _prepare(load(AutoModelForCausalLM, path, config=config, dtype=dtype), path, target)


def new_reward_model(
    path: Path, seed: int, dtype: torch.dtype = torch.float32, target: torch.device | None = None
) -> Any:
    """A reward model with a fresh head on the checkpoint's body: N(0, 1/(d+1)), in fp32 (arXiv 2403.17031).

    Raises:
        ModelError: see `load_policy`; or transformers has no reward model of this architecture.
    """
    model = _with_head(path, frozenset({"score.weight"}), dtype, num_labels=1)
    weight = model.score.float().weight
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        fresh = torch.randn(weight.shape, generator=generator) / (weight.shape[1] + 1) ** 0.5
        weight.copy_(fresh.to(weight))
    return _prepare(model, path, target)


def load_reward_model(path: Path, dtype: torch.dtype = torch.float32, target: torch.device | None = None) -> Any:
    """Load a trained reward model, with its head in fp32.

    Raises:
        ModelError: the folder is not a one-label sequence-classification checkpoint with a trained head. transformers
            would silently initialise a random head, and every reward would be noise.
    """
    check_reward_model(path)
    model = _with_head(path, frozenset(), dtype)
    if dtype != torch.float32:  # loading rounded the head; restore its stored precision
        stored = stored_tensors(path, "score.")
        model.score.float().load_state_dict({name.removeprefix("score."): tensor for name, tensor in stored.items()})
    return _prepare(model, path, target)


def _with_head(path: Path, fresh: frozenset[str], dtype: torch.dtype, **options: Any) -> Any:
    from transformers import AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as known

    config = _without_randomness(load_config(path, **options))
    hint = "docs/models.md lists the kinds of models that can be trained"
    if type(config) not in known:
        raise ModelError(
            f"transformers has no reward model of this kind ({config.model_type})",
            where=str(path),
            hint=f"use another base for the reward model; `rlaif ppo --advantage rloo` needs no value model ({hint})",
        )
    with torch.device("meta"):
        head = getattr(AutoModelForSequenceClassification.from_config(config), "score", None)
    if not isinstance(head, nn.Linear):
        what = f"the head of this kind of model ({config.model_type}) is not a single linear layer on the last token"
        raise ModelError(what, where=str(path), hint=hint)
    return load(AutoModelForSequenceClassification, path, new_weights=fresh, config=config, dtype=dtype)


def _without_randomness(config: Any) -> Any:
    """Set every dropout and jitter in a config and its sub-configs to 0.

    Done before the model is built, because many layers store the rate and apply it with a function, not a module.
    """
    for part in selftest.configs(config):
        for name, value in part.to_dict().items():
            if isinstance(value, float) and value and _RANDOM.fullmatch(name):
                setattr(part, name, 0.0)
        part.use_cache = False
        if getattr(part, "output_router_logits", False):
            part.output_router_logits = False  # only for the load-balancing loss, which is not used here
    return config


def _prepare(model: Any, path: Path, target: torch.device | None) -> Any:
    """Move the model to `target` (default: `device()`), disable dropout, and select its attention with `selftest`."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    model = model.to(target or device())
    selftest.select_attention(model, str(path))
    return model


# ------------------------------------------------------------------------------------------------ training


def trainable(model: Any, config: TrainConfig) -> Any:
    """Prepare a model for training: all of its weights, or with LoRA new adapters and its head."""
    if config.lora_rank:
        lora.add(model, "trained", config)
        if hasattr(model, "score"):
            model.score.requires_grad_(True)
    return with_checkpointing_and_compile(model, config).train()


def with_checkpointing_and_compile(model: Any, config: TrainConfig) -> Any:
    """Enable gradient checkpointing and compile the layers, if the config says so."""
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise ModelError(
                f"{option('compile')} cannot find the layers of this model", hint=f"train without {option('compile')}"
            )
        for layer in layers:  # compiled once for all layers and any number of tokens
            layer.compile(dynamic=True)
    return model


def trained_parameters(model: Any) -> dict[str, nn.Parameter]:
    """Trained parameters by name; tied ones appear once (`named_parameters` skips repeats)."""
    if isinstance(model, Adapted):
        return model.trained_parameters()
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
