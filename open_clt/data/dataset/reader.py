"""The reader of datasets: the manifest, the statistics, and the shards, which are mapped into memory.

A dataset is a directory, or the address of one on a server; then ``remote`` fetches its files into the cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, final

from open_clt import files
from open_clt.config.arguments import checked_arguments
from open_clt.data.dataset.manifest import DatasetManifest, Shard, read_manifest
from open_clt.data.dataset.shards import in_order, open_shard
from open_clt.data.dataset.statistics import STATISTICS, DatasetStatistics, read_statistics
from open_clt.data.harvest import ActivationBatch
from open_clt.data.prefetch import Ahead
from open_clt.errors import CheckpointError

if TYPE_CHECKING:
    from open_clt.data.dataset.remote.folder import RemoteFolder


_ADDRESS = re.compile("https?://", re.IGNORECASE)

Tensors: TypeAlias = dict[str, files.StoredTensor]
"""The tensors of a shard, which stay in their file."""


@final
class ActivationDataset:
    """A dataset of activations, whose numbers stay in their files until they are read.

    ``len`` counts tokens. Iterating yields the tokens in the order of the shards; ``read`` in ``batches.py`` yields
    them in random order. What is read is checked: types, shapes, and whether all numbers are finite. ``verify``
    compares every byte with the manifest.
    """

    @checked_arguments
    def __init__(self, source: str | Path) -> None:
        """Read the manifest of a dataset in a directory, or at an address such as ``http://127.0.0.1:8000/NAME/``.

        Raises CheckpointError if it is missing, damaged, or that of an unfinished dataset. For an address, raises
        ServiceError if the server does not answer, and ConfigError if the address or the cache cannot be used.
        """
        self._remote = _remote_folder(source) if isinstance(source, str) and _ADDRESS.match(source) else None
        self.directory = Path(source) if self._remote is None else self._remote.directory
        """The directory, or the one in the cache."""
        self.source: str = str(source)
        """The directory or the address, for messages."""
        self.manifest: DatasetManifest = self._remote.manifest if self._remote else read_manifest(self.directory)

    def __repr__(self) -> str:
        harvested = self.manifest.harvested
        shape = f"{harvested.n_layers} layers, d_model={harvested.d_model}, {harvested.dtype}"
        return f"{type(self).__name__}({self.source!r}, {len(self)} tokens, {shape})"

    def __len__(self) -> int:
        return self.manifest.tokens

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return self.manifest.tokens

    @cached_property
    def statistics(self) -> DatasetStatistics:
        """Mean and variance of every layer and dimension; raises CheckpointError if their file is damaged."""
        harvested = self.manifest.harvested
        path = self._path(None)
        with self._named():
            statistics = read_statistics(path, harvested.n_layers, harvested.d_model)
            if statistics.tokens != len(self):
                raise CheckpointError(
                    f"{path} describes {statistics.tokens} tokens, but the dataset has {len(self)}; harvest it again."
                )
        return statistics

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self.batches()

    def batches(self, layers: Sequence[int] | None = None) -> Iterator[ActivationBatch]:
        """The tokens in the order of the shards; ``layers`` chooses layers, and no others are read."""
        return (batch for tensors in self.opened(self.manifest.shards) for batch in in_order(tensors, layers))

    def check(self) -> int:
        """Look at every shard, and return the number of their bytes.

        Raises CheckpointError, which names the first shard that is missing or has another size.

        Only sizes, types and shapes are compared; ``verify`` reads everything. Of shards on a server only the sizes are
        asked for.
        """
        if self._remote is not None:
            return self._remote.check()
        for shard in self.manifest.shards:
            self.tensors(shard)
        return sum(self._path(shard).stat().st_size for shard in self.manifest.shards)

    def verify(self) -> None:
        """Compare every file with its SHA-256; raises CheckpointError, which names the first file that differs."""
        for shard in self.manifest.shards:
            self._compare(self._path(shard), shard.sha256)
        self._compare(self._path(None), self.manifest.statistics_sha256)

    def tensors(self, shard: Shard, is_stopped: Callable[[], bool] = lambda: False) -> Tensors:
        """Open a shard, which is fetched first if it is on a server; that ends soon after ``is_stopped`` returns True.

        Raises CheckpointError if the shard is missing, or if a tensor has another type or shape.
        """
        self._path(shard, is_stopped)
        with self._named():
            return open_shard(self.directory, shard, self.manifest.harvested)

    def opened(self, shards: Iterable[Shard], is_stopped: Callable[[], bool] = lambda: False) -> Generator[Tensors]:
        """Open shards one after another; while one is used, a thread fetches the next one from its server."""
        if self._remote is None:
            yield from map(self.tensors, shards)
            return
        ahead = Ahead(lambda stop: (self.tensors(shard, lambda: stop.is_set() or is_stopped()) for shard in shards))
        try:
            yield from ahead
        finally:
            ahead.close()

    def _path(self, shard: Shard | None, is_stopped: Callable[[], bool] = lambda: False) -> Path:
        """The path of a shard, or of the statistics; the file is fetched first if it is on a server."""
        if self._remote is None:
            return files.inside(self.directory, shard.file if shard else STATISTICS)
        return self._remote.shard(shard, is_stopped) if shard else self._remote.statistics()

    def _compare(self, path: Path, digest: str) -> None:
        with self._named():
            if files.file_sha256(path) != digest:
                raise CheckpointError(f"{path} does not have the SHA-256 that the manifest states; harvest it again.")

    def _named(self) -> AbstractContextManager[None]:
        """Let errors name the files of a server by their addresses."""
        return nullcontext() if self._remote is None else self._remote.named()


def _remote_folder(address: str) -> RemoteFolder:
    """The folder of a server; its module is imported only here, because local datasets need no HTTP."""
    from open_clt.data.dataset.remote.folder import RemoteFolder

    return RemoteFolder(address)
