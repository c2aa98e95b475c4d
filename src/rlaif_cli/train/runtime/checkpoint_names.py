"""A model's weights as its checkpoint has them: the one place that knows how transformers renames them on loading.

Since transformers 5 some weights lie in a model in another form than in its files (the experts of a layer stacked into
one tensor, say). What loads files, vLLM, knows the files' names alone.
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
    """(name, tensor) as `save_pretrained` writes them, of (name, tensor) in the order of the model's own parameters.

    Layer by layer, so that no more than one of a sharded model is whole at a time: no conversion reaches over two.
    """
    for _, layer in itertools.groupby(weights, key=lambda weight: _layer_of(weight[0])):
        yield from revert_weight_conversion(model, dict(layer)).items()


def _layer_of(name: str) -> str:
    match = _LAYER.match(name)
    return match[0] if match else ""
