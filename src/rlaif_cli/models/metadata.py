"""Read a checkpoint's metadata without loading its weights."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rlaif_cli.data.atomic import read_json
from rlaif_cli.errors import ModelError
from rlaif_cli.models.cache import file_sha256
from rlaif_cli.models.gguf import log
from rlaif_cli.models.load import NO_REMOTE_CODE, check_loading

# The files of a checkpoint; anything else in its folder (a README, optimizer state) is ignored.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)


def check_reward_model(folder: Path) -> None:
    """Check that a checkpoint is a reward model: one output, at the last token of a text.

    Raises:
        ModelError: it is not a sequence-classification checkpoint, has several labels, or is not causal.
    """
    if not (folder / "config.json").is_file():
        raise ModelError("there is no reward model in this folder", where=str(folder))
    config = read_json(folder / "config.json", error=ModelError)
    if not any("SequenceClassification" in str(name) for name in config.get("architectures") or []):
        raise ModelError(
            "this is not a reward model: its head would be newly initialised, and every reward would be noise",
            where=str(folder),
            hint="use a folder made by `rlaif train-rm`",
        )
    labels = len(config.get("id2label") or ()) or config.get("num_labels") or 2  # transformers' default
    if labels != 1:
        raise ModelError(
            f"a reward model has one label, but this one has {labels}",
            where=str(folder),
            hint="a classifier's logits are not a reward: use a model that was trained on preferences",
        )
    if not _is_decoder(config):
        raise ModelError(
            f"this kind of model ({config.get('model_type')}) reads text in both directions; a reward is read at the "
            "last token of a causal model",
            where=str(folder),
            hint="docs/models.md lists the supported kinds of models",
        )


def _is_decoder(config: dict[str, Any]) -> bool:
    """Whether a kind of model is causal, as far as its config shows (`train.nn.selftest` tests it)."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        return True  # loading reports it
    causal, masked = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return kind in causal and (kind not in masked or bool(config.get("is_decoder")))


def checkpoint_hash(path: str | Path) -> str:
    """sha256 over the names and contents of a checkpoint's weights, config and tokenizer."""
    files = sorted(f for f in Path(path).iterdir() if any(fnmatch(f.name, p) for p in MODEL_FILES))
    if not files:
        raise ModelError("no model files to hash", where=str(path))
    return hashlib.sha256("".join(f"{f.name} {file_sha256(f)}\n" for f in files).encode()).hexdigest()


def context_length(path: str | Path) -> int:
    """The context length in tokens (prompt and response together) of the checkpoint in folder `path`."""
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx")
    length = _configured(Path(path), *names)
    if length is None:
        raise ModelError("the config does not give the context length", where=str(Path(path) / "config.json"))
    return length


def vocabulary_size(path: str | Path) -> int | None:
    """The size of the embedding table of the checkpoint in folder `path`; None if unknown."""
    return _configured(Path(path), "vocab_size") if (Path(path) / "config.json").is_file() else None


def _configured(folder: Path, *names: str) -> int | None:
    config = read_json(folder / "config.json", error=ModelError)
    inner = config.get("text_config")
    places = (config, inner if isinstance(inner, dict) else {})
    return next((place[name] for place in places for name in names if isinstance(place.get(name), int)), None)


def check_weights(path: Path) -> None:
    """Check that a causal LM's checkpoint has all weights of its config: names and shapes, no tensor is read.

    For engines that would compute with uninitialised memory. Kinds of models that transformers does not know are left
    to the engine.

    Raises:
        ModelError: weights are missing or have the wrong shape.
    """
    from transformers import AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM
    try:
        _, info = kind.from_pretrained(
            path,
            device_map="meta",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **NO_REMOTE_CODE,
        )
    except Exception as error:  # the engine may still support what transformers cannot load
        log.debug("the weights of %s cannot be checked: %s", path, error)
        return
    check_loading(info, path, frozenset())


def stored_tensors(path: Path, prefix: str) -> dict[str, Any]:
    """The tensors of a checkpoint whose names begin with `prefix`, in their saved precision."""
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys() if name.startswith(prefix)}  # noqa: SIM118
    return found


def stored_dtype(path: Path) -> str:
    """The dtype that a checkpoint was saved in, as torch names it ("bfloat16"): by its config, else its weights."""
    config = read_json(path / "config.json", error=ModelError)
    for place in (config, config.get("text_config") or {}):
        named = place.get("dtype") or place.get("torch_dtype")  # the latter up to transformers 4
        if isinstance(named, str) and named != "auto":
            return named.removeprefix("torch.")
    return _dtype_of_weights(path)


def _dtype_of_weights(path: Path) -> str:
    from safetensors import safe_open

    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    with safe_open(next(path.glob("*.safetensors")), framework="np") as file:
        name = next(iter(file.keys()))
        return names.get(file.get_slice(name).get_dtype(), "float32")
