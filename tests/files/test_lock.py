"""The lock of a directory: one run at a time, and no traces of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from open_clt import files
from open_clt.errors import ConfigError
from open_clt.files import lock
from tests.refusals import refuses


def test_a_second_run_in_a_directory_is_refused_until_the_first_one_ends(tmp_path: Path) -> None:
    with files.locked(tmp_path):
        (tmp_path / "result").touch()
        with refuses(ConfigError, tmp_path), files.locked(tmp_path):
            raise AssertionError("two runs have the lock")
        with refuses(ConfigError, tmp_path), files.locked(tmp_path / ".." / tmp_path.name):
            raise AssertionError("two runs have the lock")
        with files.locked(tmp_path / "below"):
            pass
    with files.locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with files.locked(tmp_path):
            os.write(writing, b"locked")
            signal.pause()
    assert os.read(reading, 6) == b"locked"
    with refuses(ConfigError, tmp_path), files.locked(tmp_path):
        raise AssertionError("two processes have the lock")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with files.locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_directory_that_was_created_and_stays_empty_is_deleted(tmp_path: Path) -> None:
    with files.locked(tmp_path / "new" / "directory"):
        assert (tmp_path / "new" / "directory").is_dir()
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty").mkdir()
    with files.locked(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir(), "it existed before"


def test_a_system_without_locks_lets_every_run_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    with files.locked(tmp_path), files.locked(tmp_path):
        pass


def test_a_file_system_without_locks_lets_every_run_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with files.locked(tmp_path), files.locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_a_file_of_somebody_else_under_the_name_of_the_lock_stays(kind: str, tmp_path: Path) -> None:
    lock, far = tmp_path / ".open-clt.lock", tmp_path / "far"
    match kind:
        case "file":
            lock.write_text("mine")
        case "link":
            lock.symlink_to(far)
        case _:
            lock.mkdir()
    with refuses(ConfigError, lock), files.locked(tmp_path):
        pass
    assert os.path.lexists(lock)
    assert not far.exists()
    assert kind != "file" or lock.read_text() == "mine"
