"""The reader of datasets: activations from files that are mapped into memory, in order or in random batches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt import files
from open_clt.config.arguments import Count, NotNegative, Seed, checked_arguments
from open_clt.data.dataset.manifest import DatasetManifest, Shard, read_manifest
from open_clt.data.dataset.shards import check_numbers, open_shard, rows_of
from open_clt.data.dataset.statistics import STATISTICS, DatasetStatistics, read_statistics
from open_clt.data.harvest import ActivationBatch, concatenate
from open_clt.errors import CheckpointError

_CHUNK = 1024
"""Number of tokens of a batch where the caller does not choose one."""


@final
class ActivationDataset:
    """A dataset of activations in a directory, whose numbers stay in their files until they are read.

    ``len`` counts tokens. Iterating yields the tokens in the order of the shards, so that a dataset is a store of
    activations that training can read; ``batches`` yields them in random order. Inputs and targets are float32. A shard
    is checked when it is read for the first time: types, shapes, and whether all numbers are finite. ``verify``
    compares every byte with the manifest.
    """

    @checked_arguments
    def __init__(self, directory: str | Path) -> None:
        """Read the manifest; raises CheckpointError if it is missing, damaged, or that of an unfinished dataset."""
        self.directory = Path(directory)
        self.manifest: DatasetManifest = read_manifest(self.directory)
        self._checked: set[str] = set()

    def __repr__(self) -> str:
        harvested = self.manifest.harvested
        shape = f"{harvested.n_layers} layers, d_model={harvested.d_model}, {harvested.dtype}"
        return f"{type(self).__name__}({str(self.directory)!r}, {len(self)} tokens, {shape})"

    def __len__(self) -> int:
        return self.manifest.tokens

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return self.manifest.tokens

    @cached_property
    def statistics(self) -> DatasetStatistics:
        """Mean and variance of every layer and dimension; raises CheckpointError if their file is damaged."""
        harvested, path = self.manifest.harvested, self.directory / STATISTICS
        statistics = read_statistics(path, harvested.n_layers, harvested.d_model)
        if statistics.tokens != len(self):
            raise CheckpointError(
                f"{path} describes {statistics.tokens} tokens, but the dataset has {len(self)}; harvest it again."
            )
        return statistics

    def __iter__(self) -> Iterator[ActivationBatch]:
        for shard in self.manifest.shards:
            tensors = self._open(shard)
            for begin in range(0, shard.tokens, _CHUNK):
                yield rows_of(tensors, slice(begin, begin + _CHUNK))

    @checked_arguments
    def batches(self, batch_tokens: Count, *, seed: Seed = 0, epoch: NotNegative = 0) -> Iterator[ActivationBatch]:
        """Yield every token once, in batches of ``batch_tokens`` tokens, of which the last may be smaller.

        The order of the shards, and that of the rows in each shard, are a function of seed and epoch. A batch may join
        rows of several shards. Raises CheckpointError, which names the file and the tensor, if a shard is damaged.
        """
        return self._batches(batch_tokens, torch.Generator().manual_seed((seed << 20) + epoch + 1))

    def verify(self) -> None:
        """Compare every file with its SHA-256; raises CheckpointError, which names the first file that differs."""
        expected = {shard.file: shard.sha256 for shard in self.manifest.shards}
        for name, digest in {**expected, STATISTICS: self.manifest.statistics_sha256}.items():
            path = files.inside(self.directory, name)
            if files.file_sha256(path) != digest:
                raise CheckpointError(f"{path} does not have the SHA-256 that the manifest states; harvest it again.")

    def _batches(self, size: int, generator: torch.Generator) -> Iterator[ActivationBatch]:
        parts: list[ActivationBatch] = []
        room = size
        for tensors, order in self._in_random_order(generator):
            while len(order):
                rows, order = order[:room], order[room:]
                parts.append(rows_of(tensors, rows))
                room -= len(rows)
                if room == 0:
                    yield concatenate(parts)
                    parts, room = [], size
        if parts:
            yield concatenate(parts)

    def _in_random_order(
        self, generator: torch.Generator
    ) -> Iterator[tuple[dict[str, files.StoredTensor], Int[Tensor, "token"]]]:
        """Yield the tensors of each shard, and the order of its rows."""
        for index in torch.randperm(len(self.manifest.shards), generator=generator).tolist():
            shard = self.manifest.shards[index]
            yield self._open(shard), torch.randperm(shard.tokens, generator=generator)

    def _open(self, shard: Shard) -> dict[str, files.StoredTensor]:
        """Open a shard; its numbers are checked when it is opened for the first time."""
        tensors = open_shard(self.directory, shard, self.manifest.harvested)
        if shard.file not in self._checked:
            check_numbers(tensors)
            self._checked.add(shard.file)
        return tensors
