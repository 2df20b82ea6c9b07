"""Requests of uploads, with a token, as tests send them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from open_clt.data.dataset.manifest import MANIFEST
from open_clt.data.server.access import Access
from tests.data.server.serving import client_of

TOKEN, READ_TOKEN = b"writing-token-of-tests", b"reading-token-of-tests"


def writer(root: Path, token: bytes = TOKEN) -> TestClient:
    client = client_of(root, Access([TOKEN], [READ_TOKEN]))
    client.headers["Authorization"] = f"Bearer {token.decode()}"
    return client


def begin(client: TestClient, content: bytes, name: str = "set") -> Any:
    return client.put(f"/uploads/{name}", content=content)


def append(client: TestClient, file: str, content: bytes, first: int, size: int, **headers: str) -> Any:
    place = f"bytes {first}-{first + len(content) - 1}/{size}" if content else f"bytes */{size}"
    return client.patch(f"/uploads/set/{file}", content=content, headers={"Content-Range": place, **headers})


def send_all(client: TestClient, source: dict[str, bytes], *but: str) -> Any:
    """Send all files but some, and return the last answer."""
    answer = begin(client, source[MANIFEST])
    for name, content in source.items():
        if name not in (MANIFEST, *but):
            answer = append(client, name, content, 0, len(content))
            assert answer.status_code == 200, answer.text
    return answer


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a directory, without the answers' traces in file times."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
