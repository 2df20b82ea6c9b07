"""Fixtures of the server's tests: two datasets, and a client of a server that shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.data.server.serving import client_of, write_two


@pytest.fixture(scope="session")
def two_datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two datasets, which tests only read."""
    return write_two(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="session")
def client(two_datasets: Path) -> TestClient:
    """A client of a server that reads only."""
    return client_of(two_datasets)
