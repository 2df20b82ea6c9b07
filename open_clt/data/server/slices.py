"""Slices: some tokens of a dataset, cut out of its shards and sent as one safetensors file.

The tensors are those of a shard, as they are stored. Tokens are counted in the order of the shards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial

from torch import Tensor

from open_clt import files
from open_clt.data.dataset.encoding import tensor_forms
from open_clt.data.dataset.manifest import Shard
from open_clt.data.dataset.shards import open_shard
from open_clt.data.server.datasets import Dataset, shown
from open_clt.data.server.refusal import Refusal
from open_clt.errors import CheckpointError

LARGEST_SLICE = 2**30
"""Largest number of bytes of activations in one slice; files have no such limit."""
_CHUNK = 2**20
"""Number of bytes of a tensor that are in memory at once."""


def slice_of(dataset: Dataset, begin: int, end: int) -> tuple[int, Iterator[bytes]]:
    """The number of bytes of a safetensors file with the tokens from ``begin`` up to ``end``, and its bytes.

    Refuses a range that does not lie in the dataset or is too large, and shards that are damaged.
    """
    manifest, harvested, name = dataset.manifest, dataset.manifest.harvested, shown(dataset.name)
    if not 0 <= begin < end <= manifest.tokens:
        given = f"{shown(str(begin))} to {shown(str(end))}"
        raise Refusal(416, f"The tokens {given} are not a range of the {manifest.tokens} tokens of {name!r}.")
    if (end - begin) * harvested.bytes_per_token > LARGEST_SLICE:
        most = LARGEST_SLICE // harvested.bytes_per_token
        raise Refusal(413, f"A slice of {name!r} holds at most {most} tokens; ask for several slices, or for files.")
    parts = list(_rows(manifest.shards, begin, end))
    for shard, _ in parts:
        try:
            open_shard(dataset.directory, shard, harvested)
        except CheckpointError as error:
            raise Refusal(500, f"{shard.file} of {name!r} is missing or damaged on the server.") from error
    forms = tensor_forms(harvested.dtype, end - begin, harvested.n_layers, harvested.d_model)
    tensors = {
        tensor: files.TensorBlocks(form.shape, form.dtype, partial(_blocks, dataset, tensor, parts))
        for tensor, form in forms.items()
    }
    return files.stream_blocks(tensors)


def _rows(shards: Iterable[Shard], begin: int, end: int) -> Iterator[tuple[Shard, range]]:
    """The shards that hold tokens of a range, and the rows of each."""
    for shard in shards:
        rows = range(max(0, begin), min(shard.tokens, end))
        if rows:
            yield shard, rows
        begin, end = begin - shard.tokens, end - shard.tokens


def _blocks(dataset: Dataset, name: str, parts: Iterable[tuple[Shard, range]]) -> Iterator[Tensor]:
    """Read a tensor of several shards, of which one at a time is open."""
    for shard, rows in parts:
        tensor = open_shard(dataset.directory, shard, dataset.manifest.harvested)[name]
        step = max(1, _CHUNK // (math.prod(tensor.shape[1:]) * tensor.dtype.itemsize))
        for first in range(rows.start, rows.stop, step):
            yield tensor[first : min(first + step, rows.stop)].read()
