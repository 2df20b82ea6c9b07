"""The writer of datasets: harvests activations into shards, and goes on where it was stopped.

The tokens of a store are cut into blocks of ``shards_mixed`` shards. The order of a block's tokens is a function of the
seed and of the block's index, so tokens of many documents lie beside one another. Memory holds one block. After each
shard, ``unfinished.json`` says which shards are written and where in the store their block begins. A harvest that was
stopped reads the store again from that place on, so the finished dataset is the same, bit for bit, as one of a harvest
that was never stopped: no token is lost, and none is written twice. The last block on the disk is read again in any
case, and its tokens are compared, so that a text which was changed meanwhile is not mixed with the former one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt import files
from open_clt.config.arguments import checked_arguments
from open_clt.data.contexts import Place
from open_clt.data.dataset.encoding import buffer_type, check_range
from open_clt.data.dataset.manifest import (
    MANIFEST,
    MANIFEST_FORMAT,
    UNFINISHED,
    UNFINISHED_FORMAT,
    DatasetManifest,
    Harvested,
    Shard,
    UnfinishedDataset,
    read_manifest,
    read_unfinished,
    write_manifest,
    write_unfinished,
)
from open_clt.data.dataset.shards import open_shard, with_shard, write_shard
from open_clt.data.dataset.statistics import STATISTICS, no_statistics, write_statistics
from open_clt.data.harvest import ActivationBatch, ActivationStore, Placed, blocks, check_activations, read_from
from open_clt.errors import ConfigError, TextError
from open_clt.memory import check_memory

logger = logging.getLogger(__name__)

OnTokens = Callable[[int], None]
"""Function of the number of tokens that are harvested so far."""


@checked_arguments
def write_dataset(
    store: ActivationStore,
    harvested: Harvested,
    directory: str | Path,
    *,
    on_tokens: OnTokens = lambda tokens: None,
) -> DatasetManifest:
    """Write the activations of a store as a dataset, or finish a dataset that was begun with the same settings.

    A complete dataset with the same settings stays as it is. The store must yield the same activations as before.
    Raises ConfigError if the directory holds something else, ResourceError if the disk or memory is too small,
    NotFiniteError if an activation is not finite or too large for the type, and TextError if the text is empty, or
    not the one with which the dataset was begun.
    """
    directory = Path(directory)
    check_place(directory)
    with files.locked(directory):
        begun = begun_dataset(directory, harvested)
        if isinstance(begun, DatasetManifest):
            (directory / UNFINISHED).unlink(missing_ok=True)
            return begun
        files.check_disk(directory, bytes_to_write(begun))
        _check_memory(harvested)
        for shard in begun.shards:
            open_shard(directory, shard, harvested)
        return _finish(directory, _write_shards(store, begun, directory, on_tokens))


def check_place(directory: Path) -> None:
    """Raise ConfigError if a dataset cannot be written to a directory, as where it holds other files."""
    files.check_directory(directory)
    if _kind(directory) is None:
        check_empty(directory)


def begun_dataset(directory: Path, harvested: Harvested) -> DatasetManifest | UnfinishedDataset:
    """What a directory holds of a dataset; an unfinished dataset without shards if it is empty.

    Raises ConfigError if the directory holds a dataset with other settings, or other files.
    """
    check_place(directory)
    begun: DatasetManifest | UnfinishedDataset | None = None
    kind = _kind(directory)
    if kind is not None:
        begun = read_manifest(directory) if kind is MANIFEST_FORMAT else read_unfinished(directory)
    if begun is None or not begun.shards:
        statistics = no_statistics(harvested.n_layers, harvested.d_model)
        return UnfinishedDataset(harvested=harvested, shards=(), place=Place(), statistics=statistics)
    _check_settings(directory, begun.harvested, harvested)
    if isinstance(begun, DatasetManifest) and begun.scrambled is not None:
        raise ConfigError(f"{directory} holds a dataset that was scrambled; give another output directory.")
    return begun


def bytes_to_write(begun: UnfinishedDataset) -> int:
    """Number of bytes that the missing shards of a dataset take, at most."""
    missing = begun.harvested.tokens - sum(shard.tokens for shard in begun.shards)
    return missing * begun.harvested.bytes_per_token


def _kind(directory: Path) -> files.FileFormat | None:
    """The format of the file that says what a directory holds of a dataset; None if the directory lacks it."""
    for name, form in ((MANIFEST, MANIFEST_FORMAT), (UNFINISHED, UNFINISHED_FORMAT)):
        if files.format_of(directory / name) == form.name:
            return form
    return None


def check_empty(directory: Path) -> None:
    """Raise ConfigError if a directory holds visible files; a killed process may leave hidden ones of ours."""
    if not directory.exists():
        return
    names = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    if names:
        raise ConfigError(
            f"{directory} holds {names[0]}, which is not a dataset of activations; give an empty or a new directory."
        )


def _check_settings(directory: Path, stored: object, given: object, prefix: str = "") -> None:
    """Raise ConfigError, which names the first setting that differs, unless a dataset has the given settings."""
    for field in fields(stored):  # pyright: ignore[reportArgumentType]
        ours, theirs = getattr(given, field.name), getattr(stored, field.name)
        if field.name == "text":
            _check_settings(directory, theirs, ours, "text: ")
        elif ours != theirs:
            raise ConfigError(
                f"{directory} holds a dataset with {prefix}{field.name} = {theirs!r}, not {ours!r}; give the same "
                "settings to go on with it, or another output directory."
            )


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
    """Write the shards that are missing, and return the state after the last one."""
    harvested, first = begun.harvested, begun.block
    skipped = first * _block_size(harvested)
    read = _at_most(read_from(store, begun.place), harvested.tokens, skipped - begun.place.used, on_tokens)
    mixed_blocks = blocks(
        read,
        size=_block_size(harvested),
        usable=lambda batch: _checked(batch, harvested),
        used=begun.place.used,
        dtype=buffer_type(harvested.dtype),
    )
    state, unchecked = begun, bool(begun.shards)
    for number, block in enumerate(mixed_blocks, start=first):
        generator = torch.Generator().manual_seed((harvested.seed << 20) + number + 1)
        order = torch.randperm(block.tokens.size, generator=generator)
        for index, rows in enumerate(order.split(harvested.shard_tokens), start=number * harvested.shards_mixed):
            if index < len(state.shards):
                _check_same_tokens(directory, state.shards[index], harvested, block.tokens, rows)
                unchecked = False
                continue
            if not state.shards:  # from here on, the directory says that its files are ours
                write_unfinished(directory, state)
            shard = write_shard(directory, index, block.tokens.take(rows), harvested)
            state = UnfinishedDataset(
                harvested=harvested,
                shards=(*state.shards, shard),
                place=block.place,
                statistics=with_shard(state.statistics, open_shard(directory, shard, harvested)),
            )
            write_unfinished(directory, state)
        del block  # the next block is filled while this name would keep the memory of the former one
    if unchecked:
        raise _another_text(directory, begun.shards[-1])
    return state


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


def _at_most(read: Iterable[Placed], tokens: int, before: int, on_tokens: OnTokens) -> Iterator[Placed]:
    """Yield batches up to a number of tokens; ``before`` is the number of tokens before the first batch."""
    for place, batch in read:
        batch = batch.take(slice(tokens - before))
        before += batch.size
        yield Placed(place, batch)
        on_tokens(before)
        if before >= tokens:
            return


def _finish(directory: Path, state: UnfinishedDataset) -> DatasetManifest:
    """Write the statistics and then the manifest, which makes the dataset complete."""
    harvested, tokens = state.harvested, sum(shard.tokens for shard in state.shards)
    if tokens == 0:
        raise TextError("There are no tokens to harvest; give more text.")
    if tokens < harvested.tokens:
        logger.warning("The text has only %d tokens, fewer than the %d that were asked for.", tokens, harvested.tokens)
    write_statistics(directory / STATISTICS, state.statistics)
    digest = files.file_sha256(directory / STATISTICS)
    manifest = DatasetManifest(harvested=harvested, shards=state.shards, tokens=tokens, statistics_sha256=digest)
    write_manifest(directory, manifest)
    (directory / UNFINISHED).unlink(missing_ok=True)
    return manifest
