"""Shards: the files of activations of a dataset, written whole, opened as mapped memory, and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt import files
from open_clt.data.dataset.encoding import LARGEST_INT8, decode, encode, tensor_forms
from open_clt.data.dataset.manifest import Harvested, Shard, shard_name
from open_clt.data.dataset.statistics import DatasetStatistics, updated
from open_clt.data.harvest import ActivationBatch
from open_clt.errors import CheckpointError

_CHUNK = 1024
"""Number of tokens that are read at once to check a shard, or to count its statistics."""

_LARGEST = torch.finfo(torch.float32).max


def write_shard(directory: Path, index: int, batch: ActivationBatch, harvested: Harvested) -> Shard:
    """Write activations, which are finite and in the range of the type, as the shard of this index."""
    path = directory / shard_name(index)
    files.write_tensors(path, encode(batch, harvested.dtype))
    return Shard(file=path.name, tokens=batch.size, sha256=files.file_sha256(path))


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
        least, most = _legal(name, tensor.dtype)
        for begin in range(0, len(tensor), _CHUNK):
            rows = _rows(tensor, slice(begin, begin + _CHUNK))
            smallest, largest = (float(extreme) for extreme in torch.aminmax(rows))
            if least <= smallest and largest <= most:
                continue
            numbers = rows.float().view(len(rows), -1)
            wrong = ~((numbers >= least) & (numbers <= most))
            row = int(wrong.any(1).int().argmax())
            number = float(numbers[row][wrong[row]][0])
            raise CheckpointError(
                f"The tensor {name!r} of {tensor.place} holds {number:g} in row {begin + row}; its numbers must be "
                f"between {least:g} and {most:g}; harvest it again."
            )


def _legal(name: str, dtype: torch.dtype) -> tuple[int | float, int | float]:
    """The smallest and the largest legal number of a tensor."""
    if name.endswith("_scale"):
        return 0, _LARGEST / (LARGEST_INT8 + 1)
    if dtype == torch.int8:
        return -LARGEST_INT8, LARGEST_INT8
    return (-_LARGEST, _LARGEST) if dtype.is_floating_point else (0, torch.iinfo(dtype).max)


def rows_of(tensors: Mapping[str, files.StoredTensor], index: Int[Tensor, "chosen"] | slice) -> ActivationBatch:
    """Read some rows of a shard, as float32."""
    return decode({name: _rows(tensor, index) for name, tensor in tensors.items()})


def with_shard(statistics: DatasetStatistics, tensors: Mapping[str, files.StoredTensor]) -> DatasetStatistics:
    """Add the numbers of a shard, as it stores them, to the statistics of a dataset."""
    for begin in range(0, len(tensors["tokens"]), _CHUNK):
        statistics = updated(statistics, rows_of(tensors, slice(begin, begin + _CHUNK)))
    return statistics


def _rows(tensor: files.StoredTensor, index: Int[Tensor, "chosen"] | slice) -> Tensor:
    return tensor[index].read() if isinstance(index, slice) else tensor.rows(index)
