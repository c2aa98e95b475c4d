"""LoRA (Hu et al. 2021, arXiv 2106.09685), by peft: low-rank adapters on a body that stays as it was.

In PPO the policy and the value model are adapters on one body, the reference is that body without one, and a reward
model that was trained on the same body is one more adapter: all together they need about one model's memory.
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

from rlaif_cli.config.train import TrainConfig
from rlaif_cli.errors import ModelError, RlaifError
from rlaif_cli.models.metadata import checkpoint_hash
from rlaif_cli.models.resolve import resolve_model

ADAPTER = "adapter"  # the folder beside the merged weights
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of peft's files


def add(model: Any, name: str, config: TrainConfig) -> None:
    """Freeze `model`; give the linear layers of its body a new adapter, which changes nothing before it is trained."""
    _inject(model, name, _lora(model, config.lora_rank, config.lora_alpha or 2 * config.lora_rank))


def _lora(model: Any, rank: int, alpha: int) -> LoraConfig:
    body = getattr(model, model.base_model_prefix)
    adapted = [path for path, _ in _layers(body)]
    linear = adapted or [path for path, module in body.named_modules() if isinstance(module, nn.Linear)]
    targets = sorted({path.rpartition(".")[2] for path in linear})
    if not targets:
        raise ModelError("LoRA needs linear layers, and the model's body has none", hint="train without --lora-rank")
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)


def _inject(model: Any, name: str, lora: LoraConfig) -> None:
    model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several on one body: that is the point
        inject_adapter_in_model(lora, model, adapter_name=name)
    for parameter in _own(model, name).values():
        parameter.data = parameter.data.float()  # trained, so fp32 as all that is trained
        parameter.requires_grad_(True)


def _own(model: Any, name: str) -> dict[str, nn.Parameter]:
    """The adapter's parameters."""
    return {key: p for key, p in model.named_parameters() if ".lora_" in key and f".{name}." in key}


def _layers(model: Any) -> Iterator[tuple[str, LoraLayer]]:
    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoraLayer))


@dataclass(frozen=True)
class Adapted:
    """A model that shares its body with others: the body with one adapter, and perhaps a head of its own.

    Attributes:
        shared: the model whose linear layers hold the adapters.
        adapter: its name; None: the body as it was.
        score: a reward or value head.
    """

    shared: Any
    adapter: str | None
    score: nn.Linear | None = None

    def activate(self) -> Any:
        """The shared model, ready to compute as this one; its backward pass comes before another model's turn."""
        for _, layer in _layers(self.shared):
            layer.enable_adapters(self.adapter is not None)
            if self.adapter is not None:
                layer.set_adapter(self.adapter)
        return self.shared

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        own = _own(self.shared, self.adapter) if self.adapter is not None else {}
        return own | ({f"score.{name}": p for name, p in self.score.named_parameters()} if self.score else {})

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the whole model as if there were no adapters: each one's product added to its layer."""
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
    """A plain model: the adapter added to the weights. What shared the body with it is gone."""
    shared, name, _ = _parts(model)
    for path, layer in list(_layers(shared)):
        plain = layer.get_base_layer().float()
        layer.merge(adapter_names=[name])
        shared.set_submodule(path, plain)
    return shared


def save(model: Any, base_name: str, folder: Path) -> None:
    """The adapter, and a head that was trained with it, in peft's own format, for tools that load such.

    Args:
        base_name: the model that it belongs to, as the user called it.
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
    """Give `model` the adapter of a folder that `save` wrote; returns its head's tensors, by name."""
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
    """The adapter that a checkpoint was merged from, where it belongs to `base`: the same weights by their hash."""
    folder = checkpoint / ADAPTER
    if not (folder / _CONFIG).is_file():
        return None
    try:
        theirs = resolve_model(str(LoraConfig.from_pretrained(str(folder)).base_model_name_or_path))
        same = theirs == base or checkpoint_hash(theirs) == checkpoint_hash(base)
    except RlaifError:  # the base is not there any more under that name
        return None
    return folder if same else None


def _parts(model: Any) -> tuple[Any, str, nn.Linear | None]:
    """The module with the adapters, the adapter's name, the head."""
    if isinstance(model, Adapted):
        return model.shared, str(model.adapter), model.score
    return model, next(_layers(model))[1].active_adapters[0], getattr(model, "score", None)
