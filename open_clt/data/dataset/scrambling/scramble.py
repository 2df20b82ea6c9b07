"""Scrambling: a dataset whose tokens are in random order over the whole dataset, with bounded memory.

A harvest mixes the tokens of a few shards. ``scramble`` writes the same tokens to another directory in an order in
which every token may stand anywhere. It sorts tokens by keys: the key of a token is a hash of the seed and of the
token's number in the source (``keys.py``), and no two tokens have the same key. So the order is a function of the seed
and of the order of the source alone. It depends neither on the sizes of shards nor on the memory.

The sort is external. A dataset that does not fit the memory is cut into runs, as many consecutive tokens as fit. Each
run is sorted in memory and written to the disk. A shard of the result then takes consecutive tokens of each run, so
that everything is read and written in long pieces. A dataset that fits is read where it is, without runs.

After each file, ``scrambling.json`` lists what is written, so the same call goes on after a stop, and its result is
the same, bit for bit. Every shard of the source is compared with its SHA-256 before its tokens are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, final

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt import files
from open_clt.config.arguments import Count, Seed, checked_arguments
from open_clt.data.dataset.encoding import tensor_forms
from open_clt.data.dataset.manifest import MANIFEST, DatasetManifest, Scrambled, Shard, shard_name, write_manifest
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.dataset.scrambling.keys import KeyOrder, keys
from open_clt.data.dataset.scrambling.state import (
    Scrambling,
    begun_scramble,
    remove_leftovers,
    run_name,
    write_scrambling,
)
from open_clt.data.dataset.shards import open_shard, store_shard
from open_clt.data.dataset.statistics import STATISTICS, copy_statistics
from open_clt.errors import CheckpointError
from open_clt.memory import available_memory, check_memory
from open_clt.short_repr import short_repr

_CHUNK = 4096
"""Number of tokens that are read at once."""
_PLACES_AT_ONCE = 1 << 21
"""Number of places of the new order that are looked up in one pass over all keys."""
_BYTES_OF_ORDER = 32
"""Number of bytes that a token of a run takes in memory besides its activations."""

OnTokens = Callable[[int, int], None]
"""Function of the number of tokens that are written so far, and of all tokens that will be; runs count, too."""


@checked_arguments
def scramble(
    source: str | Path,
    output: str | Path,
    *,
    seed: Seed = 0,
    shard_tokens: Count | None = None,
    memory_limit: Count | None = None,
    on_tokens: OnTokens = lambda done, total: None,
) -> DatasetManifest:
    """Write the tokens of a dataset to another directory in random order, or finish a scramble that was begun there.

    ``shard_tokens`` is the number of tokens of a shard, by default that of the source. ``memory_limit`` is the number
    of bytes for activations, by default half of the memory that is available. The disk needs the size of the dataset,
    and twice that if the dataset is larger than the limit. Raises ConfigError if the directory holds something else,
    CheckpointError if the source is missing, unfinished or damaged, and ResourceError if the disk or memory is too
    small.
    """
    job = begin_scramble(source, output, seed=seed, shard_tokens=shard_tokens, memory_limit=memory_limit)
    return job.run(on_tokens)


def begin_scramble(
    source: str | Path,
    output: str | Path,
    *,
    seed: int = 0,
    shard_tokens: int | None = None,
    memory_limit: int | None = None,
) -> ScrambleJob:
    """The work of ``scramble``, before its first token is read."""
    dataset = ActivationDataset(source)
    most = max((shard.tokens for shard in dataset.manifest.shards), default=1)
    digest = files.file_sha256(dataset.directory / MANIFEST)
    scrambled = Scrambled(seed=seed, shard_tokens=shard_tokens or most, manifest_sha256=digest)
    limit = (available_memory() or 1 << 32) // 2 if memory_limit is None else memory_limit
    per_token = dataset.manifest.harvested.bytes_per_token
    needed = min(scrambled.shard_tokens, len(dataset)) * per_token
    job = f"Scrambling into shards of {scrambled.shard_tokens:,} tokens"
    check_memory(job, needed, "give fewer tokens per shard, or a larger limit", available=limit)
    fits = len(dataset) * per_token <= limit
    run_tokens = max(1, len(dataset) if fits else limit // (per_token + _BYTES_OF_ORDER))
    return ScrambleJob(dataset, Path(output), Scrambling(scrambled=scrambled, run_tokens=run_tokens))


@final
class ScrambleJob:
    """A scramble that is to be done, or to be finished."""

    def __init__(self, dataset: ActivationDataset, output: Path, new: Scrambling) -> None:
        """Look at what the directory holds already; raises ConfigError if that is something else."""
        self.dataset, self.output = dataset, output
        begun = begun_scramble(output, new)
        self.is_complete = isinstance(begun, DatasetManifest)
        """Whether the scramble was done before."""
        self._state = new if isinstance(begun, DatasetManifest) else begun
        self._harvested = dataset.manifest.harvested
        self._order = KeyOrder(new.scrambled.seed, len(dataset))
        self._checked: set[str] = set()

    @property
    def bytes_to_write(self) -> int:
        """Number of bytes that are still to be written, runs included."""
        return 0 if self.is_complete else (self._total - self._done) * self._harvested.bytes_per_token

    @property
    def has_runs(self) -> bool:
        """Whether the dataset is larger than the memory limit, and therefore sorted in runs first."""
        return self._state.run_tokens < len(self.dataset)

    @property
    def _total(self) -> int:
        return len(self.dataset) * (1 + self.has_runs)

    @property
    def _done(self) -> int:
        return sum(one.tokens for one in (*self._state.runs, *self._state.shards))

    def run(self, on_tokens: OnTokens = lambda done, total: None) -> DatasetManifest:
        """Write runs, shards, statistics and manifest; raises the errors of ``scramble``."""
        with files.locked(self.output):
            begun = begun_scramble(self.output, self._state)
            if isinstance(begun, DatasetManifest):
                remove_leftovers(self.output)
                return begun
            self._state = begun
            files.check_disk(self.output, self.bytes_to_write)
            for one in (*self._state.runs, *self._state.shards):
                open_shard(self.output, one, self._harvested)
            write_scrambling(self.output, self._state)
            on_tokens(self._done, self._total)
            if self.has_runs:
                for tensors in self._sorted_runs():
                    run = store_shard(self.output / run_name(len(self._state.runs)), tensors)
                    self._add(on_tokens, runs=(*self._state.runs, run))
            for tensors in self._shuffled_shards():
                shard = store_shard(self.output / shard_name(len(self._state.shards)), tensors)
                self._add(on_tokens, shards=(*self._state.shards, shard))
            return self._finish()

    def _add(self, on_tokens: OnTokens, **written: tuple[Shard, ...]) -> None:
        self._state = replace(self._state, **written)
        write_scrambling(self.output, self._state)
        on_tokens(self._done, self._total)

    def _finish(self) -> DatasetManifest:
        """Carry the statistics over and write the manifest, which makes the dataset complete; then delete the runs."""
        source, path = self.dataset.manifest, files.inside(self.dataset.directory, STATISTICS)
        _ = self.dataset.statistics  # they can be read
        self._check_digest(path, source.statistics_sha256)
        copy_statistics(path, self.output / STATISTICS)
        manifest = replace(source, shards=self._state.shards, scrambled=self._state.scrambled)
        write_manifest(self.output, manifest)
        remove_leftovers(self.output)
        return manifest

    def _room(self, tokens: int) -> dict[str, Tensor]:
        forms = tensor_forms(self._harvested.dtype, tokens, self._harvested.n_layers, self._harvested.d_model)
        return {name: torch.empty(form.shape, dtype=form.dtype) for name, form in forms.items()}

    def _sorted_runs(self) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors of the runs that are missing, each sorted by the keys of its tokens."""
        size = self._state.run_tokens
        for begin in range(len(self._state.runs) * size, len(self.dataset), size):
            end = min(begin + size, len(self.dataset))
            places = keys(self._state.scrambled.seed, begin, end).argsort().argsort()
            tensors = self._room(end - begin)
            for first, shard in self._shards_between(begin, end):
                stored = self._open(shard)
                low, high = max(begin, first), min(end, first + shard.tokens)
                for start in range(low, high, _CHUNK):
                    stop = min(start + _CHUNK, high)
                    for name, tensor in stored.items():
                        rows = tensor[start - first : stop - first].read()
                        tensors[name].index_copy_(0, places[start - begin : stop - begin], rows)
            yield tensors

    def _shuffled_shards(self) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors of the shards that are missing."""
        size, tokens = self._state.scrambled.shard_tokens, len(self.dataset)
        stretch = max(1, _PLACES_AT_ONCE // size) * size
        for begin in range(len(self._state.shards) * size, tokens, stretch):
            order = self._order.numbers(begin, min(begin + stretch, tokens))
            parts = self._parts(begin, order)
            for start in range(0, len(order), size):
                rows = self._room(min(size, len(order) - start))
                within = slice(start, start + size)
                self._fill(rows, parts.file[within], parts.row[within])
                yield rows

    def _parts(self, begin: int, order: Int[Tensor, "place"]) -> _Parts:
        """Where the tokens of some places are: in which run, or else in which shard of the source, and in which row."""
        if not self.has_runs:
            begins = torch.tensor([first for first, _ in self._shards_between(0, len(self.dataset))])
            file = torch.searchsorted(begins, order, right=True) - 1
            return _Parts(file, order - begins[file])
        file = order // self._state.run_tokens
        before = self._order.counts_before(begin, self._state.run_tokens)
        row = torch.empty_like(order)
        for run, first in enumerate(before):
            chosen = (file == run).nonzero().flatten()
            row[chosen] = first + torch.arange(len(chosen))
        return _Parts(file, row)

    def _fill(self, tensors: dict[str, Tensor], file: Int[Tensor, "place"], row: Int[Tensor, "place"]) -> None:
        """Copy the tokens of a shard into its tensors, one file after another."""
        for index in file.unique().tolist():
            places = (file == index).nonzero().flatten()
            stored = self._source(index)
            for name, tensor in stored.items():
                tensors[name].index_copy_(0, places, tensor.rows(row[places]))

    def _source(self, index: int) -> dict[str, files.StoredTensor]:
        if self.has_runs:
            return open_shard(self.output, self._state.runs[index], self._harvested)
        return self._open(self.dataset.manifest.shards[index])

    def _shards_between(self, begin: int, end: int) -> Iterator[tuple[int, Shard]]:
        """Yield the shards of the source that hold tokens with these numbers, and the number of their first token."""
        first = 0
        for shard in self.dataset.manifest.shards:
            if begin < first + shard.tokens and first < end:
                yield first, shard
            first += shard.tokens

    def _open(self, shard: Shard) -> dict[str, files.StoredTensor]:
        """Open a shard of the source, after it was compared with its SHA-256 once."""
        if shard.file not in self._checked:
            self._check_digest(files.inside(self.dataset.directory, shard.file), shard.sha256)
            self._checked.add(shard.file)
        return self.dataset.tensors(shard)

    def _check_digest(self, path: Path, digest: str) -> None:
        if files.file_sha256(path) != digest:
            raise CheckpointError(f"{path} does not have the SHA-256 that the manifest states; harvest it again.")


class _Parts(NamedTuple):
    """The file and the row of each place."""

    file: Int[Tensor, "place"]
    row: Int[Tensor, "place"]

    __repr__ = short_repr
