"""Partial files: the parts of a large remote file that were needed so far, in a sparse file of the cache.

A file of the cache is as long as the remote file, and has holes where nothing was fetched. A second file beside it has
one byte for each block, which is 1 once the block is on the disk. Several processes may fetch blocks of one file at the
same time: they write the same bytes. If a process is killed, the blocks that it had marked stay, and are whole.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import final

import numpy as np

from open_clt import files

_BLOCK = 2**16
"""Number of bytes of a block; a row of a decoder has about as many."""
_GAP = 4
"""Number of blocks that are fetched although they are not needed, rather than make another request."""
_LARGEST_REQUEST = 2**24
"""Largest number of bytes that are asked for at once."""
_REQUESTS = 8
"""Number of requests at the same time."""

Fetch = Callable[[int, int], bytes]
"""Returns the bytes of the remote file between two positions."""


@final
class PartialFile:
    """A remote file of ``size`` bytes, of which the needed parts are kept in the file ``path``."""

    def __init__(self, path: Path, size: int, fetch: Fetch) -> None:
        self.path, self.size = path, size
        self._fetch = fetch
        files.make_directory(path.parent)
        n_blocks = -(-size // _BLOCK)
        marks = path.with_name(f"{path.name}.blocks")
        with files.disk_errors(path):
            if not path.exists() or path.stat().st_size != size:
                marks.unlink(missing_ok=True)  # the parts that it marks are gone, and holes would be read as zeros
            self._data = _opened(path, size)
            marks_file = _opened(marks, n_blocks)
            self._marks = np.frombuffer(mmap.mmap(marks_file, n_blocks), dtype=np.uint8)
            os.close(marks_file)

    def __del__(self) -> None:
        if hasattr(self, "_data"):
            os.close(self._data)

    def read(self, begin: int, end: int) -> bytes:
        """The bytes between two positions, which are fetched unless they are kept."""
        self.ensure([(begin, end)])
        return os.pread(self._data, end - begin, begin)

    def ensure(self, spans: Iterable[tuple[int, int]]) -> None:
        """Fetch the bytes between these pairs of positions, except those that are kept."""
        needed = np.unique(np.concatenate([np.arange(b // _BLOCK, -(-e // _BLOCK)) for b, e in spans if e > b] or [[]]))
        missing = needed[self._marks[needed.astype(int)] == 0].astype(int)
        if not len(missing):
            return
        with ThreadPoolExecutor(_REQUESTS) as pool:
            list(pool.map(self._fetch_blocks, *zip(*_runs(missing), strict=True)))

    def _fetch_blocks(self, first: int, last: int) -> None:
        begin, end = first * _BLOCK, min(self.size, (last + 1) * _BLOCK)
        content = self._fetch(begin, end)
        with files.disk_errors(self.path):
            os.pwrite(self._data, content, begin)
            os.fsync(self._data)  # a block is marked only when it is on the disk
        self._marks[first : last + 1] = 1


def _opened(path: Path, size: int) -> int:
    """Open a file of the cache, which is made as long as it must be; returns its descriptor."""
    files.check_regular(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if os.fstat(descriptor).st_size != size:
        os.ftruncate(descriptor, size)
    return descriptor


def _runs(blocks: np.ndarray) -> list[tuple[int, int]]:
    """The first and last blocks of the requests that fetch these blocks, which are sorted."""
    runs: list[tuple[int, int]] = []
    first = last = int(blocks[0])
    for block in blocks[1:].tolist():
        if block - last > _GAP or (block - first) * _BLOCK >= _LARGEST_REQUEST:
            runs.append((first, last))
            first = block
        last = block
    return [*runs, (first, last)]
