"""LoRA (Hu et al. 2021, arXiv 2106.09685), with peft: low-rank adapters on a frozen body.

In PPO the policy and the value model are adapters on one shared body, the reference is that body without an adapter,
and a reward model that was trained on the same body is another adapter. Together they need about one model's memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlaif_cli.config.naming import option
from rlaif_cli.config.train import TrainConfig
from rlaif_cli.errors import ModelError, RlaifError
from rlaif_cli.models.metadata import checkpoint_hash
from rlaif_cli.models.resolve import resolve_model

ADAPTER = "adapter"  # subfolder of the checkpoint with the merged weights
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # in peft's files


def add(model: Any, name: str, config: TrainConfig) -> None:
    """Freeze `model` and add a new adapter to the linear layers of its body; untrained, it changes nothing."""
    _inject(model, name, _lora(model, config.lora_rank, config.lora_alpha or 2 * config.lora_rank))


def _lora(model: Any, rank: int, alpha: int) -> LoraConfig:
    body = getattr(model, model.base_model_prefix)
    adapted = [path for path, _ in _layers(body)]
    linear = adapted or [path for path, module in body.named_modules() if isinstance(module, nn.Linear)]
    targets = sorted({path.rpartition(".")[2] for path in linear})
    if not targets:
        raise ModelError(
            "LoRA needs linear layers, but the model's body has none", hint=f"train without {option('lora_rank')}"
        )
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)


def _inject(model: Any, name: str, lora: LoraConfig) -> None:
    model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters on one body are intended
        inject_adapter_in_model(lora, model, adapter_name=name)
    for parameter in _own(model, name).values():
        parameter.data = parameter.data.float()  # all trained weights are fp32
        parameter.requires_grad_(True)


def _own(model: Any, name: str) -> dict[str, nn.Parameter]:
    """The adapter's parameters."""
    return {key: p for key, p in model.named_parameters() if ".lora_" in key and f".{name}." in key}


def _layers(model: Any) -> Iterator[tuple[str, LoraLayer]]:
    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoraLayer))


@dataclass(frozen=True)
class Adapted:
    """A model that shares its body with others: the body with one adapter, and optionally its own head.

    Attributes:
        shared: the model whose linear layers hold the adapters.
        adapter: its name; None for the body without an adapter.
        score: a reward or value head, or None.
    """

    shared: Any
    adapter: str | None
    score: nn.Linear | None = None

    def activate(self) -> Any:
        """Switch the shared model to this adapter. Run the backward pass before activating another one."""
        for _, layer in _layers(self.shared):
            layer.enable_adapters(self.adapter is not None)
            if self.adapter is not None:
                layer.set_adapter(self.adapter)
        return self.shared

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        own = _own(self.shared, self.adapter) if self.adapter is not None else {}
        return own | ({f"score.{name}": p for name, p in self.score.named_parameters()} if self.score else {})

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the whole model with the adapter merged into its layers."""
        layers = dict(_layers(self.shared))
        for key, parameter in self.shared.named_parameters():
            name = key.replace(".base_layer.", ".")
            layer = layers.get(name.rpartition(".")[0])
            if ".lora_" not in key:
                adapted = layer is not None and name.endswith(".weight") and self.adapter is not None
                weight = parameter.detach()
                yield name, weight.float() + layer.get_delta_weight(self.adapter) if adapted else weight  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------ files


def merge(model: Any) -> Any:
    """Merge the adapter into the weights and return the model without adapters; others on the same body are lost."""
    shared, name, _ = _parts(model)
    for path, layer in list(_layers(shared)):
        base = layer.get_base_layer().float()
        layer.merge(adapter_names=[name])
        shared.set_submodule(path, base)
    return shared


def save(model: Any, base_name: str, folder: Path) -> None:
    """Save the adapter, and the head trained with it if any, in peft's format.

    Args:
        base_name: the base model, as the user named it.
    """
    shared, name, head = _parts(model)
    layer = next(_layers(shared))[1]
    lora = _lora(shared, layer.r[name], layer.lora_alpha[name])
    lora.base_model_name_or_path = base_name
    lora.modules_to_save = ["score"] if head else None
    tensors = {key.replace(f".{name}.", "."): parameter for key, parameter in _own(shared, name).items()}
    tensors |= {f"score.{key}": parameter for key, parameter in head.named_parameters()} if head else {}
    folder.mkdir(parents=True, exist_ok=True)
    lora.save_pretrained(str(folder))
    save_file({_PREFIX + key: tensor.detach().contiguous() for key, tensor in tensors.items()}, folder / _WEIGHTS)


def load(model: Any, name: str, folder: Path) -> dict[str, Tensor]:
    """Add the adapter that `save` wrote to `model`; returns its head's tensors by name."""
    _inject(model, name, LoraConfig.from_pretrained(str(folder)))
    own, head = _own(model, name), {}
    for key, tensor in load_file(folder / _WEIGHTS).items():
        key = key.removeprefix(_PREFIX)
        if key.startswith("score."):
            head[key.removeprefix("score.")] = tensor
        else:
            path, _, last = key.rpartition(".")  # …lora_A.weight here, …lora_A.NAME.weight in the model
            own[f"{path}.{name}.{last}"].data.copy_(tensor)
    return head


def adapter_of_base(checkpoint: Path, base: Path) -> Path | None:
    """The adapter folder of a checkpoint, if it was trained on `base` (compared by the hash of the weights)."""
    folder = checkpoint / ADAPTER
    if not (folder / _CONFIG).is_file():
        return None
    try:
        theirs = resolve_model(str(LoraConfig.from_pretrained(str(folder)).base_model_name_or_path))
        same = theirs == base or checkpoint_hash(theirs) == checkpoint_hash(base)
    except RlaifError:  # the base no longer exists under that name
        return None
    return folder if same else None


def _parts(model: Any) -> tuple[Any, str, nn.Linear | None]:
    """(the module with the adapters, the adapter's name, the head)."""
    if isinstance(model, Adapted):
        return model.shared, str(model.adapter), model.score
    return model, next(_layers(model))[1].active_adapters[0], getattr(model, "score", None)
