"""The private names of transformers that rlaif uses: here, and in no other file.

Seen in transformers 5.19. Each function says what happens where a later version no longer has the name.
"""

from __future__ import annotations

from typing import Any


def attention_name(config: Any) -> str:
    """The attention that a model of this config computes with. There is no public way to ask.

    Raises:
        AttributeError: the name is gone. A guess could train packed sequences with an attention that mixes them up.
    """
    return str(config._attn_implementation)


def can_set_attention(model: Any) -> bool:
    """Whether the model's attention can be replaced. Without the name: True; `set_attn_implementation` then decides."""
    can_set = getattr(model, "_can_set_attn_implementation", None)
    return can_set is None or bool(can_set())


def compiles_whole(model: Any) -> bool:
    """Whether transformers considers the forward pass free of graph breaks.

    Without the name: False, so that sampling uses transformers' own loop, which is slower.
    """
    return bool(getattr(model, "_can_compile_fullgraph", False))


def block_classes(model: Any) -> set[str]:
    """The names of the classes of a model's blocks.

    Without the name: none, so that a sharded model is gathered whole to compute, which takes more memory.
    """
    return set(getattr(model, "_no_split_modules", None) or ())


def copy_weight_conversions(source: Any, target: Any) -> None:
    """Let `target` be saved under the names that the weights of `source` had in its checkpoint.

    Without the name nothing is copied: the model is saved under the names it has in memory, which few models change.
    """
    if hasattr(source, "_weight_conversions"):
        target._weight_conversions = source._weight_conversions
