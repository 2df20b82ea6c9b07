"""Servers in tests: applications over small datasets, and their clients."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from open_clt.data.server.access import Access
from open_clt.data.server.app import make_app
from open_clt.data.server.datasets import Datasets
from open_clt.data.server.serve import in_background
from open_clt.web_checks import take_address
from tests.data.dataset.small_dataset import write

HERE = "http://127.0.0.1:8042"
"""Address that clients use, whose host the server answers."""


def client_of(root: Path, access: Access | None = None, **settings: Any) -> TestClient:
    """A client of a server of a directory; errors of the server are answers."""
    app = make_app(Datasets(root), access=access, **settings)
    return TestClient(app, base_url=HERE, raise_server_exceptions=False)


@contextmanager
def running(root: Path, access: Access | None = None, **settings: Any) -> Generator[str]:
    """The address of a server of a directory that answers in a thread."""
    with take_address("127.0.0.1", 0) as taken, in_background(make_app(Datasets(root), (), access, **settings), taken):
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def write_two(root: Path) -> Path:
    """Write the datasets ``first`` (float32) and ``second`` (int8) and return their directory."""
    write(root / "first")
    write(root / "second", dtype="int8")
    return root


def is_sentence(text: object) -> bool:
    return isinstance(text, str) and text.endswith(".") and "\n" not in text and len(text) <= 300
