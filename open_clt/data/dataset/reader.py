"""The reader of datasets: the manifest, the statistics, and the shards, which are mapped into memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import final

from open_clt import files
from open_clt.config.arguments import checked_arguments
from open_clt.data.dataset.manifest import DatasetManifest, Shard, read_manifest
from open_clt.data.dataset.shards import in_order, open_shard
from open_clt.data.dataset.statistics import STATISTICS, DatasetStatistics, read_statistics
from open_clt.data.harvest import ActivationBatch
from open_clt.errors import CheckpointError


@final
class ActivationDataset:
    """A dataset of activations in a directory, whose numbers stay in their files until they are read.

    ``len`` counts tokens. Iterating yields the tokens in the order of the shards; ``read`` in ``batches.py`` yields
    them in random order. What is read is checked: types, shapes, and whether all numbers are finite. ``verify``
    compares every byte with the manifest.
    """

    @checked_arguments
    def __init__(self, directory: str | Path) -> None:
        """Read the manifest; raises CheckpointError if it is missing, damaged, or that of an unfinished dataset."""
        self.directory = Path(directory)
        self.manifest: DatasetManifest = read_manifest(self.directory)

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
        return (batch for shard in self.manifest.shards for batch in in_order(self.tensors(shard)))

    def verify(self) -> None:
        """Compare every file with its SHA-256; raises CheckpointError, which names the first file that differs."""
        expected = {shard.file: shard.sha256 for shard in self.manifest.shards}
        for name, digest in {**expected, STATISTICS: self.manifest.statistics_sha256}.items():
            path = files.inside(self.directory, name)
            if files.file_sha256(path) != digest:
                raise CheckpointError(f"{path} does not have the SHA-256 that the manifest states; harvest it again.")

    def tensors(self, shard: Shard) -> dict[str, files.StoredTensor]:
        """Open a shard; raises CheckpointError if it is missing, or if a tensor has another type or shape."""
        return open_shard(self.directory, shard, self.manifest.harvested)
