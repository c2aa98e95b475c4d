"""Validate the inputs of statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def as_vector(name: str, values: ArrayLike) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"{name} must be a non-empty list of numbers, found shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} must be finite numbers, found {vector[~np.isfinite(vector)][0]} among them")
    return vector


def as_probabilities(name: str, values: ArrayLike) -> Floats:
    vector = as_vector(name, values)
    outside = vector[(vector < 0) | (vector > 1)]
    if outside.size:
        raise ValueError(f"{name} must be in [0, 1], found {outside[0]:g}")
    return vector


def as_lengths(name: str, values: ArrayLike) -> Floats:
    vector = as_vector(name, values)
    if (vector < 0).any():
        raise ValueError(f"{name} must be lengths of at least 0, found {vector.min():g}")
    return vector


def check_same_length(**named: Sequence[Any] | NDArray[Any]) -> None:
    sizes = {name: len(values) for name, values in named.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError("lengths differ: " + ", ".join(f"{name} has {size}" for name, size in sizes.items()))


def sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(x / 2))  # tanh saturates where exp would overflow
