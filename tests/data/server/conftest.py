"""Fixtures of the server's tests: two datasets, and a client of a server that shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.data.dataset.small_dataset import contents, write
from tests.data.server.serving import client_of, write_two
from tests.data.server.uploading import writer


@pytest.fixture(scope="session")
def two_datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two datasets, which tests only read."""
    return write_two(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="session")
def client(two_datasets: Path) -> TestClient:
    """A client of a server that reads only."""
    return client_of(two_datasets)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of every file of a dataset, by name."""
    return contents(write(tmp_path_factory.mktemp("source") / "set"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory of the server."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def sender(root: Path) -> TestClient:
    """A client that may write."""
    return writer(root)
