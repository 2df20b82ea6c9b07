"""The writer of datasets: harvests activations into shards, and goes on where it was stopped.

The tokens of a store are cut into blocks of ``shards_mixed`` shards. The order of a block's tokens is a function of the
seed and of the block's index, so tokens of many documents lie beside one another. Memory holds one block. After each
shard, ``unfinished.json`` says which shards are written and where in the store their block begins. A harvest that was
stopped reads the store again from that place on, so the finished dataset is the same, bit for bit, as one of a harvest
that was never stopped: no token is lost, and none is written twice. The last block on the disk is read again in any
case, and its tokens are compared, so that a text which was changed meanwhile is not mixed with the former one.

Of ``n`` processes, each writes every ``n``-th block. All of them read the texts, and the language model runs only on
the contexts of a process's own blocks. So the shards of several processes are those of one process, bit for bit. The
first process writes the manifest when all are done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt import files
from open_clt.config.arguments import checked_arguments
from open_clt.data.dataset.encoding import buffer_type, check_range
from open_clt.data.dataset.manifest import DatasetManifest, Harvested, Shard, read_manifest, shard_name, write_manifest
from open_clt.data.dataset.shards import open_shard, with_shard, write_shard
from open_clt.data.dataset.statistics import STATISTICS, DatasetStatistics, merged, write_statistics
from open_clt.data.dataset.unfinished import (
    UnfinishedDataset,
    begun_dataset,
    check_place,
    check_settings,
    read_unfinished,
    remove_unfinished,
    shard_index,
    write_unfinished,
)
from open_clt.data.harvest import ActivationBatch, ActivationStore, Placed, blocks, check_activations, pending_from
from open_clt.errors import ConfigError, TextError
from open_clt.memory import check_memory
from open_clt.processes import ALONE, Processes

logger = logging.getLogger(__name__)

OnTokens = Callable[[int], None]
"""Function of the number of tokens that are harvested so far."""


@checked_arguments
def write_dataset(
    store: ActivationStore,
    harvested: Harvested,
    directory: str | Path,
    *,
    processes: Processes = ALONE,
    on_tokens: OnTokens = lambda tokens: None,
) -> DatasetManifest:
    """Write the activations of a store as a dataset, or finish a dataset that was begun with the same settings.

    A complete dataset with the same settings stays as it is. The store must yield the same activations as before, in
    each of the ``processes``, which share the directory. Raises ConfigError if the directory holds something else,
    ResourceError if the disk or memory is too small, NotFiniteError if an activation is not finite or too large for the
    type, and TextError if the text is empty, or not the one with which the dataset was begun.
    """
    directory = Path(directory)
    check_place(directory)
    with _locked(directory, processes):
        begun = begun_dataset(directory, harvested, processes)
        if isinstance(begun, UnfinishedDataset):
            files.check_disk(directory, begun.bytes_to_write)
            _check_memory(harvested)
            for shard in begun.shards:
                open_shard(directory, shard, harvested)
            state = _write_shards(store, begun, directory, on_tokens)
            if processes.count > 1:
                write_unfinished(directory, state)  # also that of a process without shards
            processes.wait()
            if processes.is_first:
                _finish(directory, state)
        elif processes.is_first:
            remove_unfinished(directory)
        processes.wait()
        return read_manifest(directory)


@contextmanager
def _locked(directory: Path, processes: Processes) -> Generator[None]:
    """Hold the lock of the directory in the first process; the others check that they see the same directory."""
    if processes.is_first:
        with files.locked(directory):
            processes.wait()
            yield
        return
    processes.wait()
    if not directory.is_dir():
        raise ConfigError(
            f"{directory} exists for the first process, but not for process {processes.rank}; give a directory that "
            "all machines share."
        )
    yield


def _check_memory(harvested: Harvested) -> None:
    """Raise ResourceError if memory cannot hold a block of mixed tokens."""
    tokens = min(_block_size(harvested), harvested.tokens)
    needed = tokens * 2 * harvested.n_layers * harvested.d_model * buffer_type(harvested.dtype).itemsize
    check_memory(f"Mixing {tokens:,} tokens", needed, "give fewer tokens per shard")


def _block_size(harvested: Harvested) -> int:
    return harvested.shard_tokens * harvested.shards_mixed


def _write_shards(
    store: ActivationStore, begun: UnfinishedDataset, directory: Path, on_tokens: OnTokens
) -> UnfinishedDataset:
    """Write the shards of this process that are missing, and return the state after the last one."""
    harvested, processes = begun.harvested, begun.processes
    own_blocks = blocks(
        _own_tokens(store, begun, on_tokens),
        size=_block_size(harvested),
        usable=lambda batch: _checked(batch, harvested),
        dtype=buffer_type(harvested.dtype),
    )
    state, unchecked = begun, bool(begun.shards)
    for done, block in enumerate(own_blocks, start=begun.block // processes.count):
        generator = torch.Generator().manual_seed((harvested.seed << 20) + done * processes.count + processes.rank + 1)
        order = torch.randperm(block.tokens.size, generator=generator)
        for number, rows in enumerate(order.split(harvested.shard_tokens), start=done * harvested.shards_mixed):
            if number < len(state.shards):
                _check_same_tokens(directory, state.shards[number], harvested, block.tokens, rows)
                unchecked = False
                continue
            if not state.shards:  # from here on, the directory says that its files are ours
                write_unfinished(directory, state)
            index = shard_index(number, harvested, processes)
            shard = write_shard(directory, index, block.tokens.take(rows), harvested)
            state = replace(
                state,
                shards=(*state.shards, shard),
                place=block.place,
                statistics=with_shard(state.statistics, open_shard(directory, shard, harvested)),
            )
            write_unfinished(directory, state)
        del block  # the next block is filled while this name would keep the memory of the former one
    if unchecked:
        raise _another_text(directory, begun.shards[-1])
    return state


def _own_tokens(store: ActivationStore, begun: UnfinishedDataset, on_tokens: OnTokens) -> Iterator[Placed]:
    """Yield the tokens of this process's blocks, from the block on in which its last shard lies.

    ``on_tokens`` is given the number of tokens that were read, those of other processes included.
    """
    harvested, size = begun.harvested, _block_size(begun.harvested)
    before = begun.block * size - begun.place.used if begun.shards else 0
    for place, batch_size, compute in pending_from(store, begun.place):
        end = min(before + batch_size, harvested.tokens)
        batch: ActivationBatch | None = None
        for block in range(max(begun.block, before // size), -(-end // size)):
            if begun.processes.work_on(block):
                batch = compute() if batch is None else batch
                first, last = max(before, block * size) - before, min(end, (block + 1) * size) - before
                yield Placed(place._replace(used=first), batch.take(slice(first, last)))
        before = end
        on_tokens(before)
        if before >= harvested.tokens:
            return


def _check_same_tokens(
    directory: Path, shard: Shard, harvested: Harvested, block: ActivationBatch, rows: Int[Tensor, "chosen"]
) -> None:
    """Raise TextError unless the rows of a block that is read again have the tokens of the shard on the disk."""
    stored = open_shard(directory, shard, harvested)
    for name, read_again in (("tokens", block.tokens), ("positions", block.positions)):
        if not torch.equal(stored[name].read(), read_again[rows].int()):
            raise _another_text(directory, shard)


def _another_text(directory: Path, shard: Shard) -> TextError:
    return TextError(
        f"The text has changed since the harvest to {directory} was stopped: it does not give the tokens of "
        f"{shard.file} again; restore the text, or give another output directory."
    )


def _checked(batch: ActivationBatch, harvested: Harvested) -> ActivationBatch:
    check_activations(batch)
    check_range(batch, harvested.dtype)
    return batch


def _finish(directory: Path, state: UnfinishedDataset) -> None:
    """Write statistics and then the manifest, which makes the dataset complete; ``state`` is the first process's."""
    harvested, count = state.harvested, state.processes.count
    others = [read_unfinished(directory, Processes(rank, count)) for rank in range(1, count)]
    for other in others:
        check_settings(directory, other.harvested, harvested)
    states = [state, *others]
    shards = sorted((shard for one in states for shard in one.shards), key=lambda shard: (len(shard.file), shard.file))
    _check_complete(directory, shards, harvested)
    tokens = sum(shard.tokens for shard in shards)
    if tokens == 0:
        raise TextError("There are no tokens to harvest; give more text.")
    if tokens < harvested.tokens:
        logger.warning("The text has only %d tokens, fewer than the %d that were asked for.", tokens, harvested.tokens)
    statistics = reduce(
        lambda first, second: DatasetStatistics(*map(merged, first, second)), (one.statistics for one in states)
    )
    write_statistics(directory / STATISTICS, statistics)
    digest = files.file_sha256(directory / STATISTICS)
    manifest = DatasetManifest(harvested=harvested, shards=tuple(shards), tokens=tokens, statistics_sha256=digest)
    write_manifest(directory, manifest)
    remove_unfinished(directory)


def _check_complete(directory: Path, shards: Sequence[Shard], harvested: Harvested) -> None:
    """Raise TextError unless the shards of all processes are those of one text: in sequence, and all but one full."""
    for index, shard in enumerate(shards):
        is_full = shard.tokens == harvested.shard_tokens or index == len(shards) - 1
        if shard.file != shard_name(index) or not is_full:
            raise TextError(
                f"The processes that wrote to {directory} did not read the same text: {shard.file} does not follow the "
                "shards before it; give all of them the same text, and another output directory."
            )
