"""The folder of the cache that keeps the files of a dataset on a server, as far as they were read.

Its name is the SHA-256 of the manifest, so a dataset that was changed has another folder. A shard gets its name only
when its bytes have the SHA-256 that the manifest states. The shards of all datasets in the cache take at most as many
gigabytes as the environment variable ``OPEN_CLT_CACHE_GB`` says; those that were not used for the longest time are
deleted first. Processes on one computer share the folder, and fetch a shard once.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, final

from open_clt import files
from open_clt.data.dataset.manifest import MANIFEST, DatasetManifest, Shard, read_manifest
from open_clt.data.dataset.remote.server import FIRST_PATIENCE, FileServer, IsStopped, never
from open_clt.data.dataset.statistics import STATISTICS
from open_clt.errors import CheckpointError, ConfigError, short_value
from open_clt.files.limits import LARGEST_HEADER
from open_clt.hub.repository import cache_directory

CACHE_GB = "OPEN_CLT_CACHE_GB"
_DEFAULT_GB = 50.0
_LARGEST_JSON = 2**28
"""Largest number of bytes of a manifest or of statistics that are fetched."""
_ABANDONED = 3600.0
"""Seconds after which a file that is only partly written is taken for one of a process that was killed."""
_CHECKS = 8
"""Number of files that are asked for at the same time."""
_LENGTH = 8
"""Number of bytes that state the length of a header of safetensors."""


class _WrongBytesError(Exception):
    """A shard was fetched whose SHA-256 is not that of the manifest."""


class _Kept(NamedTuple):
    """A shard in the cache; older ones are smaller."""

    used: float
    """Time of its last use."""
    size: int
    path: Path


@final
class RemoteFolder:
    """The files of a dataset on a server."""

    def __init__(self, address: str) -> None:
        """Fetch the manifest.

        Raises ConfigError for an address that cannot be used, ServiceError if the server does not answer, and
        CheckpointError if it has no complete dataset there.
        """
        self.server = FileServer(address)
        self.address = self.server.address
        content = self.server.content(MANIFEST, _LARGEST_JSON, patience=FIRST_PATIENCE)
        self._digest = hashlib.sha256(content).hexdigest()
        self._cache = cache_directory() / "activations"
        self.directory = self._cache / self._digest[:32]
        self._write(MANIFEST, content)
        with self.named():
            self.manifest: DatasetManifest = read_manifest(self.directory)
        self._limit = _limit()
        two_shards = 2 * max((self._sizes(shard).start for shard in self.manifest.shards), default=0)
        if two_shards > self._limit:
            raise ConfigError(
                f"{CACHE_GB} is {self._limit / 1e9:g}, which does not hold two shards of {self.address}; set it to at "
                f"least {math.ceil(two_shards / 1e8 + 0.1) / 10:g}."
            )

    def statistics(self) -> Path:
        """The file of statistics, which is fetched unless it is in the cache."""
        path = self.directory / STATISTICS
        if not path.exists():
            content = self.server.content(STATISTICS, _LARGEST_JSON)
            if hashlib.sha256(content).hexdigest() != self.manifest.statistics_sha256:
                self._check_unchanged()
                raise self._wrong(STATISTICS)
            self._write(STATISTICS, content)
        return path

    def shard(self, shard: Shard, is_stopped: IsStopped = never) -> Path:
        """A shard, which is fetched unless it is in the cache; every byte of it was compared with the manifest."""
        path = files.inside(self.directory, shard.file)
        if not _touched(path):
            with files.taking_turns(self.directory):
                if not _touched(path):  # another process may have fetched it meanwhile
                    self._fetch(shard, path, is_stopped)
        return path

    def check(self) -> int:
        """Ask for the size of each shard, and return the sum.

        Raises CheckpointError, which names the first shard that is missing or too short.
        The contents are compared with the manifest when a shard is fetched.
        """
        with ThreadPoolExecutor(_CHECKS) as pool:
            return sum(pool.map(self._size, self.manifest.shards))

    @contextmanager
    def named(self) -> Generator[None]:
        """Let errors name a file by its address, not by its path in the cache."""
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(str(error.args[0]).replace(f"{self.directory}{os.sep}", self.address)) from error

    def _write(self, name: str, content: bytes) -> None:
        with files.taking_turns(self.directory):
            files.write_bytes(self.directory / name, content)

    def _fetch(self, shard: Shard, path: Path, is_stopped: IsStopped) -> None:
        """Fetch a shard; a second time if it is wrong, because a server may be restarted meanwhile."""
        try:
            size = self._size(shard, is_stopped)
            for _ in range(2):
                self._make_room(size)
                with suppress(_WrongBytesError), files.writing(path, needed=size) as part:
                    with files.filling(part, size) as write:
                        self.server.download(shard.file, size, write, is_stopped=is_stopped)
                    if files.file_sha256(part) != shard.sha256:
                        raise _WrongBytesError
                if path.exists():
                    return
            raise self._wrong(shard.file)
        except CheckpointError:
            self._check_unchanged()
            raise

    def _size(self, shard: Shard, is_stopped: IsStopped = never) -> int:
        """The number of bytes of a shard on the server; raises CheckpointError if it cannot be that of the tokens."""
        size = self.server.size(shard.file, is_stopped=is_stopped)
        if size not in self._sizes(shard):
            raise self._wrong(shard.file)
        return size

    def _sizes(self, shard: Shard) -> range:
        """The sizes that the file of a shard may have."""
        least = _LENGTH + shard.tokens * self.manifest.harvested.bytes_per_token
        return range(least, least + LARGEST_HEADER + 1)

    def _check_unchanged(self) -> None:
        """Raise CheckpointError if the server has another manifest than at first."""
        now = self.server.content(MANIFEST, _LARGEST_JSON)
        if hashlib.sha256(now).hexdigest() != self._digest:
            raise CheckpointError(f"The dataset at {self.address} was replaced while it was read; begin again.")

    def _wrong(self, name: str) -> CheckpointError:
        """The error for a file that is not the one that the manifest describes."""
        return CheckpointError(
            f"{self.address}{name} does not have the size or the SHA-256 that the manifest states; copy or harvest it "
            "again."
        )

    def _make_room(self, size: int) -> None:
        """Delete shards that were not used for the longest time until another one of ``size`` bytes has room."""
        kept = _kept_in(self._cache)
        room = min(self._limit - sum(shard.size for shard in kept), files.free_bytes(self._cache))
        for shard in kept:
            if room >= size:
                return
            shard.path.unlink(missing_ok=True)
            room += shard.size


def _touched(path: Path) -> bool:
    """Note that a file is used now; False if it is not in the cache."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _kept_in(cache: Path) -> list[_Kept]:
    """The shards in a cache, without those that a process may be writing now."""
    kept: list[_Kept] = []
    for path in cache.rglob("*.safetensors"):
        with suppress(FileNotFoundError):  # another process has just deleted it
            status = path.stat()
            if not path.name.startswith(".") or time.time() - status.st_mtime > _ABANDONED:
                kept.append(_Kept(status.st_mtime, status.st_size, path))
    return sorted(kept)


def _limit() -> float:
    """The number of bytes that the shards in the cache may take."""
    text = os.environ.get(CACHE_GB, "").strip()
    try:
        gigabytes = float(text or _DEFAULT_GB)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise ConfigError(f"The environment variable {CACHE_GB} is {short_value(text)}; it must be a positive number.")
    return gigabytes * 1e9
