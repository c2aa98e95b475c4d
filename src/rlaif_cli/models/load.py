"""Load a checkpoint with transformers: no programs from the hub, no missing weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from rlaif_cli.errors import ModelError
from rlaif_cli.models.gguf import pad_token
from rlaif_cli.ui import console

# Said outright: where it is left open, transformers asks on the terminal, and a "y" on stdin runs the program.
NO_PROGRAMS = {"trust_remote_code": False}


def not_loaded(what: str, path: Path | str, error: Exception) -> ModelError:
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{what} needs a program that comes with it, and rlaif runs none",
            where=str(path),
            hint="a model of a kind that transformers knows by itself",
        )
    return ModelError(f"{what} cannot be loaded: {type(error).__name__}: {error}", where=str(path))


def load_config(path: Path, **options: Any) -> Any:
    """The config of a checkpoint folder, as transformers reads it.

    Args:
        options: fields that are to differ.

    Raises:
        ModelError: transformers does not know such a model.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, **NO_PROGRAMS, **options)
    except Exception as error:  # a config checks its own fields, each in its own way
        raise not_loaded("the model's config", path, error) from error


def exact_attention(config: Any) -> str | None:
    """The attention of transformers that computes all of a model's; None: the default does.

    Gemma 2 caps its scores, which torch's fused kernel, the default, leaves out without a word.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def load(kind: Any, path: Path, *, fresh: frozenset[str] = frozenset(), **options: Any) -> Any:
    """A model of a transformers auto class, with every weight from the checkpoint.

    Args:
        kind: `AutoModelForCausalLM` or another.
        fresh: weights that the checkpoint need not hold. transformers makes any that is missing at random, with no
            more than a warning, and what such a model says is noise.
        options: of `from_pretrained`.

    Raises:
        ModelError: it cannot be loaded, or lacks weights.
    """
    from safetensors import SafetensorError

    try:
        # Told to go on where shapes differ, it says which; they are refused below.
        told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = kind.from_pretrained(path, use_safetensors=True, **NO_PROGRAMS, **told, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise not_loaded("the model", path, error) from error
    check_loading(info, path, fresh)
    return model


def check_loading(info: Any, path: Path, fresh: frozenset[str]) -> None:
    """Raises: ModelError: by transformers' account of how it loaded a checkpoint, weights are missing or misshapen."""
    for fault, keys in (
        ("the checkpoint lacks weights", info["missing_keys"]),
        ("weights of the checkpoint are of another shape than its config says", info["mismatched_keys"]),
    ):
        if names := sorted({key if isinstance(key, str) else key[0] for key in keys} - fresh):
            raise ModelError(f"{fault}: {', '.join(names[:5])}", where=str(path))


def set_pad_token(model: Any, tokenizer: Any, ends: Collection[int]) -> None:
    """Give a reward model and its tokenizer a pad token that ends no turn, where they have none.

    transformers reads the reward at the last token that is no pad: where padding and the end of a turn are one token,
    at the one before. With no token to spare the model gets none, and transformers reads the very last one.

    Args:
        ends: the tokens that end a turn.
    """
    if pad := pad_token(tokenizer, ends):
        tokenizer.pad_token = pad
    config, pad_id = model.config.get_text_config(), tokenizer.pad_token_id
    if pad_id in {None, tokenizer.eos_token_id, *ends}:
        console.warn(
            "the tokenizer has no token to pad with but the end of a turn: the model is saved with no pad token, and "
            "other tools can score one text at a time with it, not a padded batch"
        )
        pad_id = None
    config.pad_token_id = model.config.pad_token_id = pad_id
