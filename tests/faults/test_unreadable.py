"""Every reader answers a file or a directory that the user may not read with an error of ours that names it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

import pytest

from open_clt.config import TextsConfig
from open_clt.data.texts import open_texts
from open_clt.errors import CheckpointError, LanguageModelError, OpenCLTError, TextError
from open_clt.language.model_source import find_model
from open_clt.transcoders.formats.load import open_transcoder
from tests.faults.reading.table import READERS
from tests.refusals import refuses

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="the system has no such permissions")
FAST = [name for name, reader in READERS.items() if not reader.slow]
_NOBODY = 65534


@contextmanager
def forbidden(*paths: Path) -> Generator[None]:
    """Take all permissions of files or a directory away in the block; root, who may read all, is nobody there."""
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may look into, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("name", FAST)
def test_what_may_not_be_read_is_named(name: str, open_folder: Path) -> None:
    reader, folder = READERS[name], open_folder / "above" / "artefact"
    folder.mkdir(parents=True)
    reader.write(folder)
    with suppress(OpenCLTError):
        list(reader.read(folder))  # imports modules, which the other user may not be able to read
    for paths in ([folder], [folder.parent], [path for path in folder.rglob("*") if path.is_file()]):
        with forbidden(*paths), pytest.raises(OpenCLTError) as caught:
            list(reader.read(folder))
        assert "Permission denied" in str(caught.value)
        assert folder.name in str(caught.value)


def test_a_directory_that_may_not_be_read_is_not_a_name_of_the_hub(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_folder / "models" / "mine"
    (folder / "data").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(open_folder)
    for name, path in product(("models/mine", str(folder)), (folder, folder.parent)):
        with suppress(OpenCLTError):
            find_model(name)
        with forbidden(path):
            with refuses(LanguageModelError, name, "Permission denied"):
                find_model(name)
            with refuses(CheckpointError, name, "Permission denied"):
                open_transcoder(name)
            with refuses(TextError, name, "Permission denied"):
                list(open_texts(TextsConfig(source=name)))
