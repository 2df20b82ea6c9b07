"""Unfinished datasets: how far a harvest has come, and what a directory holds of it.

Each process of a harvest has a file of its own, which is written again after each of its shards: ``unfinished.json`` of
one process that works alone, ``unfinished-0-of-2.json`` of the first of two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast, final

from open_clt import files
from open_clt.config.json import to_dict
from open_clt.data.contexts import Place
from open_clt.data.dataset.manifest import (
    MANIFEST,
    MANIFEST_FORMAT,
    UNFINISHED,
    UNFINISHED_FILES,
    DatasetManifest,
    Harvested,
    Shard,
    read_manifest,
    record_of,
    shard_name,
)
from open_clt.data.dataset.statistics import DatasetStatistics, Moments, no_statistics, numbers_of
from open_clt.errors import CheckpointError, ConfigError
from open_clt.processes import ALONE, Processes
from open_clt.short_repr import short_repr

_FORMAT = files.FileFormat("open-clt-unfinished-activations", newest=1)


@final
@dataclass(frozen=True, kw_only=True)
class UnfinishedDataset:
    """How far a process has come with its share of a harvest: every ``count``-th block of mixed tokens."""

    harvested: Harvested
    shards: tuple[Shard, ...]
    """The shards that this process has written."""
    place: Place
    """Place in the texts where the block of mixed tokens begins that the last of these shards belongs to."""
    statistics: DatasetStatistics
    """Statistics of these shards."""
    processes: Processes = ALONE
    """This process, among those of the harvest."""
    tokens_of_others: int = 0
    """Number of tokens that the other processes have written."""

    @property
    def block(self) -> int:
        """Number of the block that the last shard belongs to, or of the first block before there is a shard."""
        written = max(0, len(self.shards) - 1) // self.harvested.shards_mixed
        return written * self.processes.count + self.processes.rank

    @property
    def tokens(self) -> int:
        """Number of tokens that all processes have written."""
        return self.tokens_of_others + sum(shard.tokens for shard in self.shards)

    @property
    def bytes_to_write(self) -> int:
        """Number of bytes that the missing shards of all processes take, at most."""
        return (self.harvested.tokens - self.tokens) * self.harvested.bytes_per_token

    __repr__ = short_repr


def shard_index(number: int, harvested: Harvested, processes: Processes) -> int:
    """The index in the dataset of the shard with this number among those of a process."""
    block, within = divmod(number, harvested.shards_mixed)
    return (block * processes.count + processes.rank) * harvested.shards_mixed + within


def unfinished_name(processes: Processes) -> str:
    """The name of the file of a process."""
    return UNFINISHED if processes == ALONE else f"unfinished-{processes.rank}-of-{processes.count}.json"


def write_unfinished(directory: Path, unfinished: UnfinishedDataset) -> None:
    """Write how far a process has come."""
    content = {
        "harvested": to_dict(unfinished.harvested),
        "shards": [to_dict(shard) for shard in unfinished.shards],
        "place": list(unfinished.place),
        "statistics": [
            {"tokens": moments.tokens, "mean": moments.mean.tolist(), "deviations": moments.deviations.tolist()}
            for moments in unfinished.statistics
        ],
    }
    path = directory / unfinished_name(unfinished.processes)
    files.write_json(path, {**_FORMAT.header(), **content}, finite=True, indent=None)


def read_unfinished(directory: Path, processes: Processes = ALONE) -> UnfinishedDataset:
    """Read how far a process has come; raises CheckpointError if the file is missing or damaged."""
    path = directory / unfinished_name(processes)
    files.check_readable(directory)
    content = _FORMAT.read(path, finite=True)
    match content:
        case {
            "harvested": dict(harvested),
            "shards": list(shards),
            "place": [int(item), int(token), int(used)],
            "statistics": [dict(), dict(), dict(), dict()],
        } if min(item, token, used) >= 0:
            found = record_of(Harvested, cast(dict[str, Any], harvested), None, path)
            written = [record_of(Shard, shard, None, path) for shard in cast(list[Any], shards)]
            statistics = DatasetStatistics(*(_moments(entry, found, path) for entry in content["statistics"]))
        case _:
            raise CheckpointError(f"{path} does not say how far a harvest has come; it is damaged.")
    indices = [shard_index(number, found, processes) for number in range(len(written))]
    if [shard.file for shard in written] != [shard_name(index) for index in indices]:
        raise CheckpointError(f"{path} does not list shards in their order; it is damaged.")
    return UnfinishedDataset(
        harvested=found,
        shards=tuple(written),
        place=Place(item, token, used),
        statistics=statistics,
        processes=processes,
    )


def _moments(entry: dict[str, Any], harvested: Harvested, path: Path) -> Moments:
    shape = (harvested.n_layers, harvested.d_model)
    tokens = entry.get("tokens")
    if type(tokens) is not int or tokens < 0:
        raise CheckpointError(f"{path} does not say how many tokens its statistics have; it is damaged.")
    mean, deviations = (numbers_of(entry.get(name), name, path, shape) for name in ("mean", "deviations"))
    return Moments(tokens, mean, deviations)


def unfinished_processes(directory: Path) -> list[Processes]:
    """The processes that have begun a dataset in a directory, in the order of their ranks."""
    found: list[Processes] = []
    for path in directory.glob(UNFINISHED_FILES):
        share = re.fullmatch(r"unfinished(?:-(\d{1,9})-of-(\d{1,9}))?\.json", path.name)
        if share and files.format_of(path) == _FORMAT.name:
            rank, count = (int(number or default) for number, default in zip(share.groups(), (0, 1), strict=True))
            found.append(Processes(rank, count))
    return sorted(found, key=lambda processes: processes.rank)


def read_all_unfinished(directory: Path) -> list[UnfinishedDataset]:
    """Read how far each process has come; raises CheckpointError if a file is damaged."""
    return [read_unfinished(directory, processes) for processes in unfinished_processes(directory)]


def remove_unfinished(directory: Path) -> None:
    """Delete the files of all processes, because the dataset is complete."""
    for processes in unfinished_processes(directory):
        (directory / unfinished_name(processes)).unlink(missing_ok=True)


def check_place(directory: Path) -> None:
    """Raise ConfigError if a dataset cannot be written to a directory, as where it holds other files."""
    files.check_directory(directory)
    # Another process may begin or finish the dataset meanwhile. It writes the manifest before it deletes its own file,
    # so in this order each file that was seen belongs to what is found after it.
    names = _visible_files(directory)
    if names and not unfinished_processes(directory) and not _holds_manifest(directory):
        raise _not_a_dataset(directory, names)


def begun_dataset(
    directory: Path, harvested: Harvested, processes: Processes = ALONE
) -> DatasetManifest | UnfinishedDataset:
    """What a directory holds of a dataset, or of the share of a process; without shards if it is empty.

    Raises ConfigError if the directory holds a dataset with other settings, one that another number of processes has
    begun, or other files.
    """
    check_place(directory)
    if _holds_manifest(directory):
        manifest = read_manifest(directory)
        check_settings(directory, manifest.harvested, harvested)
        if manifest.scrambled is not None:
            raise ConfigError(f"{directory} holds a dataset that was scrambled; give another output directory.")
        return manifest
    begun = [one for one in read_all_unfinished(directory) if one.shards]
    for one in begun:
        check_settings(directory, one.harvested, harvested)
        if one.processes.count != processes.count:
            raise ConfigError(
                f"{directory} holds a dataset that {one.processes.count} processes have begun, not {processes.count}; "
                "start as many processes to go on with it, or give another output directory."
            )
    mine = next((one for one in begun if one.processes == processes), None)
    return UnfinishedDataset(
        harvested=harvested,
        shards=mine.shards if mine else (),
        place=mine.place if mine else Place(),
        statistics=mine.statistics if mine else no_statistics(harvested.n_layers, harvested.d_model),
        processes=processes,
        tokens_of_others=sum(shard.tokens for one in begun if one is not mine for shard in one.shards),
    )


def _holds_manifest(directory: Path) -> bool:
    return files.format_of(directory / MANIFEST) == MANIFEST_FORMAT.name


def check_empty(directory: Path) -> None:
    """Raise ConfigError if a directory holds visible files; a killed process may leave hidden ones of ours."""
    if names := _visible_files(directory):
        raise _not_a_dataset(directory, names)


def _visible_files(directory: Path) -> list[str]:
    paths = directory.iterdir() if directory.exists() else ()
    return sorted(path.name for path in paths if not path.name.startswith("."))


def _not_a_dataset(directory: Path, names: list[str]) -> ConfigError:
    return ConfigError(
        f"{directory} holds {names[0]}, which is not a dataset of activations; give an empty or a new directory."
    )


def check_settings(directory: Path, stored: object, given: object, prefix: str = "") -> None:
    """Raise ConfigError, which names the first setting that differs, unless a dataset has the given settings."""
    for field in fields(stored):  # pyright: ignore[reportArgumentType]
        ours, theirs = getattr(given, field.name), getattr(stored, field.name)
        if field.name == "text":
            check_settings(directory, theirs, ours, "text: ")
        elif ours != theirs:
            raise ConfigError(
                f"{directory} holds a dataset with {prefix}{field.name} = {theirs!r}, not {ours!r}; give the same "
                "settings to go on with it, or another output directory."
            )
