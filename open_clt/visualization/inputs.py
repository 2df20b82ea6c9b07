"""Inputs of figures: the arrays and the labels that a user gives, checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from open_clt.errors import ConfigError, short_value
from open_clt.visualization.style import numbers


def array(name: str, values: object, *axes: str) -> npt.NDArray[Any]:
    """Return the values as a NumPy array; raise ConfigError if they are not an array of these axes, or it is empty."""
    if not isinstance(values, np.ndarray | torch.Tensor):
        raise ConfigError(
            f"{name} is of type {type(values).__name__}; give an array, or an object that holds a language model and "
            "its transcoder, such as an OpenCrossLayerTranscoder."
        )
    if len(values.shape) != len(axes) or 0 in values.shape:
        raise ConfigError(
            f"{name} has the shape {tuple(values.shape)}; give an array ({', '.join(axes)}) that is not empty."
        )
    checked = numbers(values)
    if wrong := np.argwhere(~np.isfinite(checked)).tolist():
        raise ConfigError(f"{name} must be finite, but it holds {checked[tuple(wrong[0])]} at index {wrong[0]}.")
    return checked


def layer_numbers(layers: Any, count: int) -> npt.NDArray[Any]:
    """Return the layer of each of ``count`` vectors; raise ConfigError if ``layers`` does not hold that."""
    if layers is None or isinstance(layers, str) or any(isinstance(layer, str) for layer in layers):
        raise ConfigError(
            f"layers is {short_value(layers)}, but vectors is an array; give the layer number of each vector."
        )
    layer_of_point = np.asarray(layers, dtype=int)
    if layer_of_point.shape != (count,) or layer_of_point.min() < 0:
        raise ConfigError(
            f"layers has {layer_of_point.size} numbers; give the layer number of each of {count} vectors."
        )
    return layer_of_point


def strings(parameter: str, names: str | Sequence[str] | None, count: int) -> Sequence[str]:
    """Return the names of an axis; raise ConfigError unless there are ``count`` of them."""
    if isinstance(names, str):
        raise ConfigError(f"{parameter} is the single text {names!r}; the array needs a list of {count} strings.")
    if names is None or len(names) != count:
        given = "missing" if names is None else f"a list of {len(names)} strings"
        raise ConfigError(f"{parameter} is {given}; the array needs a list of {count} strings.")
    return names
