"""A model's weights under the names of its checkpoint: the only place that knows how transformers renames them.

Since transformers 5, a loaded model may hold weights in a different form from its files (for example, a layer's experts
stacked into one tensor). vLLM loads files and knows only the files' names.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

_LAYER = re.compile(r"^.*?\.\d+\.")


def checkpoint_names(model: Any, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Convert (name, tensor) pairs in the order of the model's parameters to those that `save_pretrained` writes.

    Converts layer by layer, so that only one layer of a sharded model is gathered at a time; no conversion spans two.
    """
    for _, layer in itertools.groupby(weights, key=lambda weight: _layer_of(weight[0])):
        yield from revert_weight_conversion(model, dict(layer)).items()


def _layer_of(name: str) -> str:
    match = _LAYER.match(name)
    return match[0] if match else ""
