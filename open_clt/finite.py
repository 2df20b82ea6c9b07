"""Finite numbers: the one place that finds NaN and infinity in tensors, and says where they are.

NaN loses every comparison, so a number that is computed from it can look right: a feature whose pre-activation is NaN
is merely not active. Numbers are therefore checked where they enter: weights, activations, losses, and the values of
interventions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from open_clt.errors import NotFiniteError, OpenCLTError

_CHUNK = 2**20
"""Number of entries that are searched at once, so that the search needs little memory."""


class NotFinite(NamedTuple):
    """An entry of a tensor that is NaN or infinite, or too large for float32."""

    value: float
    place: tuple[int, ...]
    """Index of the entry along each axis."""

    @property
    def type_words(self) -> str:
        """The type in which the entry is not finite, in words, if it is finite in its own."""
        return " in float32" if math.isfinite(self.value) else ""

    def describe(self, axes: Sequence[str] = (), layers: Sequence[int] | None = None) -> str:
        """Describe the entry, such as ``nan at layer 2, index [5, 3]``; ``axes`` are names of the first axes.

        ``layers`` are the language model's layers along the axis ``layer``, if they are not all layers.
        """
        named, others = list(self.place[: len(axes)]), list(self.place[len(axes) :])
        if layers is not None and "layer" in axes:
            named[axes.index("layer")] = layers[named[axes.index("layer")]]
        places = [f"{axis} {number}" for axis, number in zip(axes, named, strict=False)]
        places += [f"index {others}"] if others else []
        return f"{self.value} at {', '.join(places)}" if places else str(self.value)


def is_finite(*tensors: Tensor) -> bool:
    """Whether all numbers of tensors on one device are finite in float32; one value is copied from the device.

    The extremes of a tensor are NaN if any entry is, and are found without a copy of the tensor.
    """
    extremes = [torch.stack(torch.aminmax(tensor.detach())).float() for tensor in tensors if tensor.numel()]
    return not extremes or bool(torch.stack(extremes).isfinite().all())


def find_not_finite(tensor: Tensor) -> NotFinite | None:
    """The first entry of a tensor that is not finite in float32; None if there is none."""
    if is_finite(tensor):
        return None
    flat = tensor.detach().flatten()
    for start in range(0, flat.numel(), _CHUNK):
        wrong = ~flat[start : start + _CHUNK].float().isfinite()
        if bool(wrong.any()):
            position = start + wrong.int().argmax()
            return NotFinite(float(flat[position]), tuple(map(int, torch.unravel_index(position, tensor.shape))))
    return None


def check_finite(
    tensor: Tensor,
    name: str,
    *,
    axes: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    error: type[OpenCLTError] = NotFiniteError,
    advice: str = "",
) -> None:
    """Raise ``error``, which names the tensor and the entry, unless all numbers of a tensor are finite.

    ``axes`` are names of the tensor's first axes, ``layers`` the language model's layers along the axis ``layer``, and
    ``advice`` is the end of the message.
    """
    if (wrong := find_not_finite(tensor)) is not None:
        ending = f"; {advice}." if advice else "."
        raise error(f"{name} must be finite{wrong.type_words}, and not {wrong.describe(axes, layers)}{ending}")


def nested_tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors in nested dicts, lists and tuples, with names such as ``optimizer.state.0.step``."""
    match value:
        case Tensor():
            if value.is_floating_point():
                yield name, value
        case dict():
            for key, item in cast(dict[Any, Any], value).items():
                yield from nested_tensors(item, f"{name}.{key}")
        case list() | tuple():
            for index, item in enumerate(cast(Sequence[Any], value)):
                yield from nested_tensors(item, f"{name}.{index}")
        case _:
            return


def layer_axis(name: str, tensor: Tensor, n_layers: int) -> tuple[str, ...]:
    """The name of a weight's first axis, if it is the layer; tensors of one layer have its number in their ``name``."""
    is_stacked = tensor.ndim > 0 and tensor.shape[0] == n_layers and not name[-1:].isdigit()
    return ("layer",) if is_stacked else ()
