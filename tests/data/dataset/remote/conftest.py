"""Fixtures of datasets on a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from open_clt.data.dataset.remote import folder, server
from tests.data.dataset.remote.static_server import StaticServer, serving
from tests.data.dataset.small_dataset import write


@pytest.fixture(autouse=True)
def small_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, ranges of 100 bytes, so that a shard has several."""
    monkeypatch.setenv("OPEN_CLT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(server.TOKEN_VARIABLE, raising=False)
    monkeypatch.setattr(server, "RANGE", 100)
    monkeypatch.setattr(server, "_PAUSES", (0.01, 5.0))
    monkeypatch.setattr(folder, "FIRST_PATIENCE", 60.0)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A dataset of 70 tokens in seven shards."""
    return write(tmp_path / "served" / "dataset")


@pytest.fixture
def served(local: Path) -> Iterator[StaticServer]:
    with serving(local.parent) as running:
        yield running
