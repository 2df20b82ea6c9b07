"""Encoding: the tensors of a shard, and the types in which inputs and targets are stored.

``float32`` keeps every bit; ``bfloat16`` and ``float16`` round to the nearest number. ``int8`` has one scale for each
token and layer, the largest absolute value divided by 127, and rounds to the nearest of 255 multiples of the scale. So
the error of a number is at most 0.5001 of its scale: half a step, and the rounding of float32. That is 0.4% of the
largest absolute value of the token and layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor

from open_clt.data.harvest import ActivationBatch
from open_clt.errors import NotFiniteError
from open_clt.finite import find_not_finite
from open_clt.short_repr import short_repr

StorageType: TypeAlias = Literal["bfloat16", "float16", "float32", "int8"]
"""Name of the type of inputs and targets in a shard."""
STORAGE_TYPES: tuple[StorageType, ...] = get_args(StorageType)
_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "int8": torch.int8}
KINDS = ("inputs", "targets")
"""The tensors of activations in a shard."""
LARGEST_INT8 = 127
"""Largest absolute value of a stored number of the type int8."""
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
_ID_BYTES = 4
"""Number of bytes of a token id, and of a position."""


class TensorForm(NamedTuple):
    """Type and shape of a tensor in a shard; the first axis is the token."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    __repr__ = short_repr


def tensor_forms(dtype: StorageType, tokens: int, n_layers: int, d_model: int) -> dict[str, TensorForm]:
    """The tensors of a shard of ``tokens`` tokens, by name."""
    forms = {kind: TensorForm(_TYPES[dtype], (tokens, n_layers, d_model)) for kind in KINDS}
    if dtype == "int8":
        forms |= {f"{kind}_scale": TensorForm(torch.float32, (tokens, n_layers)) for kind in KINDS}
    return {**forms, **{name: TensorForm(torch.int32, (tokens,)) for name in ("tokens", "positions")}}


def bytes_per_token(dtype: StorageType, n_layers: int, d_model: int) -> int:
    """Number of bytes that a token takes in a shard."""
    numbers = 2 * n_layers * d_model * _TYPES[dtype].itemsize
    scales = 2 * n_layers * torch.float32.itemsize if dtype == "int8" else 0
    return numbers + scales + 2 * _ID_BYTES


def buffer_type(dtype: StorageType) -> torch.dtype:
    """The type of activations in memory before they are encoded; that of the shards, unless it needs a scale."""
    return torch.float32 if dtype == "int8" else _TYPES[dtype]


def check_range(batch: ActivationBatch, dtype: StorageType) -> None:
    """Raise NotFiniteError, which names layer, token and position, if an activation is too large for the type."""
    largest = torch.finfo(buffer_type(dtype)).max
    for kind, activations in zip(KINDS, (batch.inputs, batch.targets), strict=True):
        if activations.numel() and float(activations.abs().max()) > largest:
            wrong = find_not_finite(torch.where(activations.abs() > largest, torch.inf, activations))
            assert wrong is not None, "an activation is too large"
            row, layer, _ = wrong.place
            raise NotFiniteError(
                f"The {kind} of layer {layer} are {float(activations[wrong.place])} for token {int(batch.tokens[row])} "
                f"at position {int(batch.positions[row])} of its context, more than {dtype} holds ({largest}); choose "
                "bfloat16 or float32."
            )


def encode(batch: ActivationBatch, dtype: StorageType) -> dict[str, Tensor]:
    """The tensors of a shard, from activations that are finite and in the range of the type."""
    tensors: dict[str, Tensor] = {}
    for kind, activations in zip(KINDS, (batch.inputs, batch.targets), strict=True):
        if dtype == "int8":
            tensors[kind], tensors[f"{kind}_scale"] = _to_int8(activations.float())
        else:
            tensors[kind] = activations.to(_TYPES[dtype]).contiguous()
    ids = {"tokens": batch.tokens.int(), "positions": batch.positions.int()}
    return tensors | ids


def decode(tensors: Mapping[str, Tensor]) -> ActivationBatch:
    """Activations from some rows of the tensors of a shard, in the type of the shard; int8 becomes float32."""
    activations: list[Tensor] = []
    for kind in KINDS:
        numbers, scale = tensors[kind], tensors.get(f"{kind}_scale")
        if scale is not None:
            numbers = room_for(tuple(numbers.shape), torch.float32).copy_(numbers).mul_(scale[..., None])
        activations.append(numbers)
    inputs, targets = activations
    return ActivationBatch(inputs, targets, tensors["tokens"].long(), tensors["positions"].long())


def room_for(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An unwritten tensor in memory of NumPy, which the system makes of large pages in less time than of small ones."""
    room = np.empty((shape[0], math.prod(shape[1:]) * dtype.itemsize), dtype=np.uint8)
    return torch.from_numpy(room).view(dtype).view(shape)


def _to_int8(
    activations: Float[Tensor, "batch layer d_model"],
) -> tuple[Int8[Tensor, "batch layer d_model"], Float[Tensor, "batch layer"]]:
    """Rounded multiples of a scale, and the scale, which is a normal number, so that dividing by it is exact enough."""
    scale = torch.linalg.vector_norm(activations, ord=torch.inf, dim=2).div_(LARGEST_INT8).clamp_(min=_SMALLEST_SCALE)
    return (activations / scale[..., None]).round_().clamp_(-LARGEST_INT8, LARGEST_INT8).to(torch.int8), scale
