"""Opening: special files are refused before they are opened, and names in files stay inside their folder."""

from __future__ import annotations

import ast
import errno
import gzip
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.features.feature_files import INDEX, FeatureFiles, write_feature_files
from open_clt.transcoders.feature import Feature
from tests.faults.artefacts import ARTEFACTS
from tests.features.test_feature_files import RECORDS
from tests.refusals import refuses

READERS = (files.read_bytes, files.read_text, files.read_json, files.read_yaml, files.read_tensors, files.read_rows)


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Fail a test that waits for a FIFO, which would otherwise never end."""

    def fail(*_: object) -> None:
        raise AssertionError("a reader waits for a FIFO")

    former = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


@pytest.mark.parametrize("name", ARTEFACTS)
def test_no_reader_waits_for_a_fifo_in_place_of_a_file(name: str, tmp_path: Path) -> None:
    artefact = ARTEFACTS[name]
    artefact.save(tmp_path, 1)
    refused = 0
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        try:
            artefact.load(tmp_path)  # a file that is written for other programs is not read
        except CheckpointError as error:
            assert path.name in str(error)  # noqa: PT017
            refused += 1
        path.unlink()
        path.write_bytes(content)
    assert refused


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_a_reader_refuses_devices_sockets_and_directories(reader: object, tmp_path: Path) -> None:
    assert callable(reader)
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name in ("zero", "folder", "socket"):
            with refuses(CheckpointError, tmp_path / name):
                reader(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/dev/zero",
        "..",
        "",
        ".",
        "..\\x",
        "C:\\x",
        "\\\\host\\x",
        "a\0b",
        "https://x/y",
        3,
        None,
        ["x"],
    ],
)
def test_a_name_that_leaves_its_folder_is_refused(name: object, tmp_path: Path) -> None:
    with refuses(CheckpointError, tmp_path):
        files.inside(tmp_path, name)


@pytest.mark.parametrize("name", ["layer_0.bin", "part/layer_0.bin", "...bin", "a..b"])
def test_a_name_inside_its_folder_is_followed(name: str, tmp_path: Path) -> None:
    assert files.inside(tmp_path, name) == tmp_path / name


def test_a_name_that_is_too_long_for_a_file_is_refused_with_the_folder(tmp_path: Path) -> None:
    assert files.inside(tmp_path, "é" * 127 + "/a") == tmp_path / ("é" * 127) / "a"
    with refuses(CheckpointError, tmp_path):
        files.inside(tmp_path, "é" * 128)


@pytest.mark.parametrize("name", ["/dev/zero", "../../secret.bin"])
def test_an_index_of_features_cannot_name_files_outside_its_folder(name: str, tmp_path: Path) -> None:
    folder = write_feature_files(RECORDS, tmp_path / "here", n_layers=3, n_features=5)
    (tmp_path / "secret.bin").write_bytes((folder / "layer_0.bin").read_bytes())
    index = json.loads(gzip.decompress((folder / INDEX).read_bytes()))
    index[0]["filename"] = name
    (folder / INDEX).write_bytes(gzip.compress(json.dumps(index).encode()))
    with refuses(CheckpointError, folder, repr(name)):
        FeatureFiles(tmp_path / "here").record(Feature(0, 3))


def test_lines_are_read_from_plain_and_packed_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two"))
    for name in ("a.txt", "a.txt.gz"):
        assert list(files.read_lines(tmp_path / name)) == [b"one\n", b"two"]
        with refuses(CheckpointError, tmp_path / name, 3):
            list(files.read_lines(tmp_path / name, limit=3))
    (tmp_path / "half.gz").write_bytes(gzip.compress(b"one\ntwo")[:-9])
    with refuses(CheckpointError, tmp_path / "half.gz"):
        list(files.read_lines(tmp_path / "half.gz"))


@pytest.mark.parametrize("name", ARTEFACTS)
def test_saving_does_not_follow_links_under_its_temporary_names(name: str, tmp_path: Path) -> None:
    artefact = ARTEFACTS[name]
    artefact.save(tmp_path / "here", 1)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for path in [path for path in (tmp_path / "here").rglob("*") if path.is_file()]:
        for prefix in (".part-", ".old-"):
            path.with_name(f"{prefix}{path.name}").symlink_to(victim)
    artefact.save(tmp_path / "here", 2)
    assert victim.read_bytes() == b"precious"
    artefact.load(tmp_path / "here")


_READING = {"open", "read_text", "read_bytes", "load_file", "safe_open", "loads"}
"""Names of functions and methods that read files or objects without the checks of ``open_clt.files``."""
_CHECKED = {"files", "os", "opener"}
"""Owners whose functions of these names are allowed: OpenCLT's own, ``os.open``, which opens a null device, and the
``opener`` of urllib, which opens addresses on the web."""
_READS_THE_SYSTEM = "memory.py"
"""Module that reads what the operating system says about its memory, in files that no user names."""


def calls_that_read(path: Path) -> Iterator[str]:
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match call:
            case ast.Call(func=ast.Name(id=name)) if name in _READING:
                yield f"{path}:{call.lineno}"
            case ast.Call(func=ast.Attribute(value=owner, attr=name)) if name in _READING:
                if not (isinstance(owner, ast.Name) and owner.id in _CHECKED):
                    yield f"{path}:{call.lineno}"
            case _:
                pass


def test_only_the_room_of_files_opens_files() -> None:
    package = Path(files.__file__).parents[1]
    modules = [path for path in package.rglob("*.py") if "files" not in path.relative_to(package).parts]
    assert len(modules) > 100
    modules = [path for path in modules if path != package / _READS_THE_SYSTEM]
    assert [call for path in modules for call in calls_that_read(path)] == []
    assert list(calls_that_read(package / "files" / "opening.py"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_the_system_does_not_read_is_not_called_damaged(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")

    def refuse(*arguments: object, **settings: object) -> NoReturn:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    for read in (files.read_json, files.read_text):
        with pytest.raises(CheckpointError, match=os.strerror(number)) as caught:
            read(path)
        assert "damaged" not in str(caught.value)
        assert str(path) in str(caught.value)
