"""Load a checkpoint with transformers: no remote code, no missing weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from rlaif_cli.errors import ModelError
from rlaif_cli.models.gguf import pad_token
from rlaif_cli.ui import messages

# Explicit: otherwise transformers asks on the terminal, and a "y" on stdin would run the code.
NO_REMOTE_CODE = {"trust_remote_code": False}


def load_error(what: str, path: Path | str, error: Exception) -> ModelError:
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{what} needs code that comes with the model, which rlaif never runs",
            where=str(path),
            hint="use a model of a kind that transformers supports without it",
        )
    return ModelError(f"{what} cannot be loaded: {type(error).__name__}: {error}", where=str(path))


def load_config(path: Path, **options: Any) -> Any:
    """The config of a checkpoint folder, as transformers reads it.

    Args:
        options: fields to override.

    Raises:
        ModelError: transformers does not support such a model.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, **NO_REMOTE_CODE, **options)
    except Exception as error:  # each config validates its fields in its own way
        raise load_error("the model's config", path, error) from error


def exact_attention(config: Any) -> str | None:
    """The attention implementation that computes a model exactly; None: the default does.

    Gemma 2 caps its attention scores, which torch's fused kernel, the default, silently omits.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def load(kind: Any, path: Path, *, new_weights: frozenset[str] = frozenset(), **options: Any) -> Any:
    """A model of a transformers auto class, with every weight from the checkpoint.

    Args:
        kind: `AutoModelForCausalLM` or another.
        new_weights: weights that may be missing from the checkpoint. transformers initialises any missing weight
            at random with only a warning, and the output of such a model is noise.
        options: of `from_pretrained`.

    Raises:
        ModelError: it cannot be loaded, or lacks weights.
    """
    from safetensors import SafetensorError

    try:
        # With these options it reports mismatched shapes, which are refused below.
        reporting = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = kind.from_pretrained(path, use_safetensors=True, **NO_REMOTE_CODE, **reporting, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise load_error("the model", path, error) from error
    check_loading(info, path, new_weights)
    return model


def check_loading(info: Any, path: Path, new_weights: frozenset[str]) -> None:
    """Raises: ModelError: by transformers' loading info, weights are missing or have the wrong shape."""
    for problem, keys in (
        ("the checkpoint lacks weights", info["missing_keys"]),
        ("weights of the checkpoint do not have the shape that its config says", info["mismatched_keys"]),
    ):
        if names := sorted({key if isinstance(key, str) else key[0] for key in keys} - new_weights):
            raise ModelError(f"{problem}: {', '.join(names[:5])}", where=str(path))


def set_pad_token(model: Any, tokenizer: Any, ends: Collection[int]) -> None:
    """Give a reward model and its tokenizer a pad token that does not end a turn, if they have none.

    transformers reads the reward at the last non-pad token: if padding and the end of a turn are the same token, at the
    one before. Without a candidate the model gets no pad token, and transformers reads the very last token.

    Args:
        ends: the tokens that end a turn.
    """
    if pad := pad_token(tokenizer, ends):
        tokenizer.pad_token = pad
    config, pad_id = model.config.get_text_config(), tokenizer.pad_token_id
    if pad_id in {None, tokenizer.eos_token_id, *ends}:
        messages.warn(
            "the tokenizer has no pad token other than the end of a turn: the model is saved without a pad token, so "
            "other tools can only score one text at a time with it, not a padded batch"
        )
        pad_id = None
    config.pad_token_id = model.config.pad_token_id = pad_id
