"""Shards: the files of activations of a dataset, written whole, opened as mapped memory, and checked once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt import files
from open_clt.data.dataset.encoding import KINDS, LARGEST_INT8, decode, encode, room_for, tensor_forms
from open_clt.data.dataset.manifest import Harvested, Shard, shard_name
from open_clt.data.dataset.statistics import DatasetStatistics, updated
from open_clt.data.harvest import ActivationBatch
from open_clt.errors import CheckpointError
from open_clt.short_repr import short_repr

_CHUNK = 1024
"""Number of tokens that are read at once where the caller does not choose a number."""

_LARGEST = torch.finfo(torch.float32).max


def write_shard(directory: Path, index: int, batch: ActivationBatch, harvested: Harvested) -> Shard:
    """Write activations, which are finite and in the range of the type, as the shard of this index."""
    return store_shard(directory / shard_name(index), encode(batch, harvested.dtype))


def store_shard(path: Path, tensors: Mapping[str, Tensor]) -> Shard:
    """Write the tensors of a shard, as they are encoded, to a file."""
    files.write_tensors(path, tensors)
    return Shard(file=path.name, tokens=len(tensors["tokens"]), sha256=files.file_sha256(path))


def open_shard(directory: Path, shard: Shard, harvested: Harvested) -> dict[str, files.StoredTensor]:
    """Open a shard and check types and shapes; the numbers stay in the file until they are read.

    Raises CheckpointError, which names the file and the tensor, if a tensor is missing or has another type or shape.
    """
    path = files.inside(directory, shard.file)
    tensors = files.open_tensors(path)
    forms = tensor_forms(harvested.dtype, shard.tokens, harvested.n_layers, harvested.d_model)
    for name, form in forms.items():
        if name not in tensors:
            raise CheckpointError(f"{path} has no tensor {name!r}; harvest it again.")
        tensor = tensors[name]
        if (tensor.dtype, tuple(tensor.shape)) != tuple(form):
            raise CheckpointError(
                f"The tensor {name!r} of {path} has the type {tensor.dtype} and the shape {tuple(tensor.shape)}, but "
                f"the manifest says {form.dtype} and {form.shape}; harvest it again."
            )
    return {name: tensors[name] for name in forms}


def check_numbers(tensors: Mapping[str, files.StoredTensor]) -> None:
    """Raise CheckpointError, which names file and tensor, if a number of a shard is not finite or not legal."""
    for name, tensor in tensors.items():
        for begin in range(0, len(tensor), _CHUNK):
            rows = tensor[begin : begin + _CHUNK].read()
            if not are_legal(name, rows):
                least, most = _legal(name, rows.dtype)
                numbers = rows.float().view(len(rows), -1)
                wrong = ~((numbers >= least) & (numbers <= most))
                row = int(wrong.any(1).int().argmax())
                number = float(numbers[row][wrong[row]][0])
                raise CheckpointError(
                    f"The tensor {name!r} of {tensor.place} holds {number:g} in row {begin + row}; its numbers must be "
                    f"between {least:g} and {most:g}; harvest it again."
                )


def are_legal(name: str, rows: Tensor) -> bool:
    """Whether all numbers of some rows of a tensor of a shard are finite and legal; there must be at least one."""
    least, most = _legal(name, rows.dtype)
    smallest, largest = (float(extreme) for extreme in torch.aminmax(rows))
    return least <= smallest and largest <= most


def _legal(name: str, dtype: torch.dtype) -> tuple[int | float, int | float]:
    """The smallest and the largest legal number of a tensor."""
    if name.endswith("_scale"):
        return 0, _LARGEST / (LARGEST_INT8 + 1)
    if dtype == torch.int8:
        return -LARGEST_INT8, LARGEST_INT8
    return (-_LARGEST, _LARGEST) if dtype.is_floating_point else (0, torch.iinfo(dtype).max)


class Rows(NamedTuple):
    """Some rows of a shard."""

    tensors: Mapping[str, files.StoredTensor]
    rows: Int[Tensor, "chosen"] | slice
    size: int
    """Number of rows."""

    __repr__ = short_repr


def batch_of(parts: Sequence[Rows], layers: Sequence[int] | None = None) -> ActivationBatch:
    """Copy rows of shards into one batch, in the type of the shards; int8 becomes float32.

    ``layers`` are the layers of the dataset that are read, in the order of the batch; None is all of them.
    Raises CheckpointError, which names the file, the tensor and the row, if a number is not finite or not legal.
    """
    size = sum(part.size for part in parts)
    batch: dict[str, Tensor] = {}
    for name, tensor in parts[0].tensors.items():
        shape = tensor.shape[1:] if layers is None or not _has_layers(name) else (len(layers), *tensor.shape[2:])
        batch[name] = room_for((size, *shape), tensor.dtype)
    begin = 0
    for part in parts:
        for name, tensor in part.tensors.items():
            rows = batch[name][begin : begin + part.size]
            if layers is None or not _has_layers(name):
                tensor.copy_rows(part.rows, rows)
            else:
                for place, layer in enumerate(layers):
                    tensor[:, layer].copy_rows(part.rows, rows[:, place])
            if not are_legal(name, rows):
                check_numbers(part.tensors)
        begin += part.size
    return decode(batch)


def _has_layers(name: str) -> bool:
    """Whether a tensor of a shard has an axis of layers, after that of tokens; ids and positions do not."""
    return name.startswith(KINDS)


def with_shard(statistics: DatasetStatistics, tensors: Mapping[str, files.StoredTensor]) -> DatasetStatistics:
    """Add the numbers of a shard, as it stores them, to the statistics of a dataset."""
    for batch in in_order(tensors):
        statistics = updated(statistics, batch)
    return statistics


def in_order(
    tensors: Mapping[str, files.StoredTensor], layers: Sequence[int] | None = None
) -> Iterator[ActivationBatch]:
    """Read a shard, or some of its layers, in the order of its rows."""
    tokens = len(tensors["tokens"])
    for begin in range(0, tokens, _CHUNK):
        end = min(begin + _CHUNK, tokens)
        yield batch_of([Rows(tensors, slice(begin, end), end - begin)], layers)
