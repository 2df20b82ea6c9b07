"""Files of datasets: functions that write, read and use two versions of each, for the tables of faults."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from unittest.mock import patch

from torch import Tensor

from open_clt import files
from open_clt.config.json import to_dict
from open_clt.data.contexts import Place
from open_clt.data.dataset import batches, manifest
from open_clt.data.dataset import unfinished as unfinished_files
from open_clt.data.dataset.manifest import DatasetManifest, Scrambled, Shard, shard_name
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.dataset.remote.folder import RemoteFolder
from open_clt.data.dataset.scrambling.state import Scrambling, read_scrambling, write_scrambling
from open_clt.data.dataset.shards import in_order, open_shard, write_shard
from open_clt.data.dataset.statistics import (
    STATISTICS,
    DatasetStatistics,
    no_statistics,
    updated,
    write_statistics,
)
from open_clt.data.dataset.statistics import read_statistics as read_file_of_statistics
from open_clt.data.dataset.unfinished import UnfinishedDataset
from open_clt.data.server import uploads
from open_clt.errors import CheckpointError
from tests.data.dataset.remote.static_server import serving
from tests.data.dataset.small_dataset import D_MODEL, N_LAYERS, all_of, contents, harvested, store, write

__all__ = ["write"]


def write_int8(directory: Path) -> None:
    write(directory, dtype="int8")


def write_unfinished(directory: Path) -> None:
    save_unfinished(directory, 2)


def read(directory: Path | str) -> Iterable[Tensor]:
    """Read a whole dataset in order and in batches, and return all numbers."""
    dataset = ActivationDataset(directory)
    return [field for batch in (*dataset, *batches.read(directory, 16, seed=1)) for field in batch]


def read_remote(directory: Path) -> Iterable[Tensor]:
    """Read a dataset from a server, with an empty cache."""
    served, cache = serving(directory.parent), TemporaryDirectory()
    with served as server, cache as path, patch.dict(os.environ, {"OPEN_CLT_CACHE": path}):
        return read(f"{server.address}{directory.name}")


def read_statistics(directory: Path) -> Iterable[Tensor]:
    statistics = ActivationDataset(directory).statistics
    moments = (statistics.inputs(), statistics.targets(use_first_position=True))
    return [numbers for one in moments for numbers in (one.mean, one.variance)]


def read_unfinished(directory: Path) -> Iterable[Tensor]:
    state = unfinished_files.read_unfinished(directory)
    repr(state)
    return [moments.variance for moments in state.statistics]


def shards_of(version: int) -> tuple[Shard, ...]:
    """As many shards as the version says."""
    return tuple(Shard(file=shard_name(index), tokens=10, sha256="0" * 64) for index in range(version))


def statistics_of(version: int) -> DatasetStatistics:
    """Statistics of ten tokens for each version."""
    return updated(no_statistics(N_LAYERS, D_MODEL), all_of(store(10 * version)))


def manifest_of(version: int) -> DatasetManifest:
    """A manifest with as many shards as the version says."""
    settings, shards = harvested(), shards_of(version)
    return DatasetManifest(harvested=settings, shards=shards, tokens=10 * version, statistics_sha256="0" * 64)


def save_manifest(directory: Path, version: int) -> None:
    manifest.write_manifest(directory, manifest_of(version))


def manifest_facts(directory: Path) -> object:
    return manifest.read_manifest(directory)


def save_unfinished(directory: Path, version: int) -> None:
    shards, statistics = shards_of(version), statistics_of(version)
    state = UnfinishedDataset(harvested=harvested(), shards=shards, place=Place(1, 2, 3), statistics=statistics)
    unfinished_files.write_unfinished(directory, state)


def unfinished_facts(directory: Path) -> object:
    state = unfinished_files.read_unfinished(directory)
    return state.harvested, state.shards, state.place, [moments.deviations.tolist() for moments in state.statistics]


def save_statistics(directory: Path, version: int) -> None:
    write_statistics(directory / STATISTICS, statistics_of(version))


def statistics_facts(directory: Path) -> object:
    statistics = read_file_of_statistics(directory / STATISTICS, N_LAYERS, D_MODEL)
    return statistics.tokens, [moments.variance.tolist() for moments in statistics]


def save_shard(directory: Path, version: int) -> None:
    write_shard(directory, 0, all_of(store(20)).take(slice(10 * version - 10, 10 * version)), harvested())


def shard_facts(directory: Path) -> object:
    shard = open_shard(directory, shards_of(1)[0], harvested())
    return [field.tolist() for batch in in_order(shard) for field in batch]


def scrambling_of(version: int) -> Scrambling:
    scrambled = Scrambled(seed=version, shard_tokens=10, manifest_sha256="0" * 64)
    return Scrambling(scrambled=scrambled, run_tokens=30, shards=shards_of(version))


def save_scrambling(directory: Path, version: int) -> None:
    write_scrambling(directory, scrambling_of(version))


def scrambling_facts(directory: Path) -> object:
    return read_scrambling(directory)


def write_stopped_scramble(directory: Path) -> None:
    save_scrambling(directory, 2)


def use_scrambling(directory: Path) -> Iterable[float]:
    scrambling = read_scrambling(directory)
    repr(scrambling)
    return [scrambling.run_tokens, *(shard.tokens for shard in scrambling.shards)]


@cache
def served_dataset(version: int) -> Path:
    """A dataset of one shard, which is written once for the whole session."""
    return write(Path(mkdtemp(prefix="open-clt-served-")) / "dataset", tokens=10, seed=version)


def save_fetched(directory: Path, version: int) -> None:
    """Fetch a dataset from a server into a cache in the directory."""
    source = served_dataset(version)
    with serving(source.parent) as server, patch.dict(os.environ, {"OPEN_CLT_CACHE": str(directory)}):
        folder = RemoteFolder(f"{server.address}{source.name}")
        folder.statistics()
        folder.shard(folder.manifest.shards[0])


def fetched_facts(directory: Path) -> object:
    """The version whose shard was used last; every file in the cache must be the same as on the server."""
    versions = {contents(served_dataset(version))["manifest.json"]: version for version in (1, 2)}
    used: dict[int, int] = {}
    for folder in (directory / "activations").glob("*"):
        fetched = {path.name: files.read_bytes(path) for path in folder.glob("[!.]*")}
        version = versions.get(fetched.get("manifest.json", b""))
        if version is None:
            continue
        served = contents(served_dataset(version))
        assert all(content == served[name] for name, content in fetched.items())
        if (shard := folder / shard_name(0)).exists():
            used[version] = shard.stat().st_mtime_ns
    if not used:
        raise CheckpointError(f"{directory} does not hold a dataset that was fetched whole.")
    return max(used, key=lambda version: used[version])


def write_upload(directory: Path) -> None:
    save_upload(directory, 2)


def read_upload(directory: Path) -> Iterable[Tensor]:
    repr(uploads.read_upload(directory / "upload.json"))
    return ()


def save_upload(directory: Path, version: int) -> None:
    content = {**manifest.MANIFEST_FORMAT.header(), **to_dict(manifest_of(version))}
    uploads.write_upload(directory, json.dumps(content).encode())


def upload_facts(directory: Path) -> object:
    return uploads.read_upload(directory / "upload.json")
