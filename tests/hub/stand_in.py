"""A stand-in for the Hugging Face hub: a server on loopback that serves directories as repositories.

with serving({"org/name": folder}, monkeypatch, tmp_path) as hub:
    load_transcoder("org/name")
hub.requests        the paths that were asked for, with the bytes of each answer
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The repositories of the stand-in, and what was asked of it."""

    repositories: dict[str, Path]
    address: str = ""
    answers_ranges: bool = True
    requests: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    def bytes_of(self, pattern: str) -> int:
        """The number of bytes that were sent of paths that match a pattern."""
        return sum(size for path, size in self.requests if re.search(pattern, path))


@contextmanager
def serving(repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Serve directories as repositories, and make huggingface_hub and OpenCLT ask this server and use ``cache``."""
    from huggingface_hub import constants

    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("OPEN_CLT_CACHE", str(cache / "open-clt"))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0].strip("/")
            if found := re.fullmatch(r"api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                self._describe(found[1])
            elif found := re.fullmatch(r"([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self._send_file(found[1], found[2])
            else:
                self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

        def _describe(self, repo: str) -> None:
            folder = hub.repositories.get(repo)
            if folder is None:
                self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            siblings = [{"rfilename": str(path.relative_to(folder)), "size": path.stat().st_size} for path in found]
            content = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "private": False}
            self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _send_file(self, repo: str, name: str) -> None:
            path = hub.repositories.get(repo, Path("/nowhere")) / name
            if not path.is_file():
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            content = path.read_bytes()
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes",
            }  # fmt: skip
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked is None or not hub.answers_ranges:
                self._answer(200, content, headers)
                return
            begin, end = int(asked[1]), int(asked[2] or len(content) - 1) + 1
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
            self._answer(206, content[begin:end], headers)

        def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                hub.requests.append((self.path, len(content)))
                self.wfile.write(content)

    return Handler
