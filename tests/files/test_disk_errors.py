"""Disk errors: one sentence for every library that writes a file, and the former file stays."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from open_clt import files
from open_clt.errors import ResourceError
from open_clt.visualization.style import save
from tests.refusals import refuses

resource = pytest.importorskip("resource")
WRITERS = {
    "bytes": lambda path: files.write_bytes(path, bytes(5000)),
    "json": lambda path: files.write_json(path, [0] * 5000),
    "tensors": lambda path: files.write_tensors(path, {"a": torch.zeros(5000)}),
    "rows": lambda path: files.write_rows(path, [{"a": 1}] * 5000),
    "picture": lambda path: save(Figure(), path.with_suffix(".png")),
}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses larger files, as it refuses every file on a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_that_cannot_be_written_is_one_sentence_and_leaves_the_former_file(
    write: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_text("former")
    with largest_file(600), refuses(ResourceError, path):
        write(path)
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_every_failure_of_a_disk_names_the_file(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", fail)
    with refuses(ResourceError, tmp_path / "a.txt"):
        files.write_text(tmp_path / "a.txt", "word")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_states_the_bytes_that_are_needed_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no")

    monkeypatch.setattr(os, "fsync", fail)
    with refuses(ResourceError, "4,321 bytes") as raised:
        files.write_bytes(tmp_path / "a.txt", bytes(4321))
    assert "bytes are free" in str(raised.value)


def test_errors_that_are_not_of_the_disk_are_raised_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.writing(tmp_path / "a.txt"):
        raise ZeroDivisionError
