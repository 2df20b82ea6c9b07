"""A stand-in for the Hugging Face hub: a server on loopback that serves directories as repositories.

with serving({"org/name": folder}, monkeypatch, tmp_path) as hub:
    load_transcoder("org/name")
hub.requests        the paths that were asked for, with the bytes of each answer

A repository that ``hub.creates`` lists a folder for can be created, and files are committed to it: small ones inside
the commit, those with the endings of weights through Git LFS. ``hub.status_of_writes`` makes the hub refuse writes.
"""

from __future__ import annotations

import base64
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
    creates: dict[str, Path] = field(default_factory=dict[str, Path])
    """Folders of the repositories that may be created."""
    private: set[str] = field(default_factory=set[str])
    """Repositories that were created as private."""
    status_of_writes: int | None = None
    """Status with which writes are refused."""
    status_of_objects: int = 200
    """Status with which files of weights are answered."""
    writes: list[str] = field(default_factory=list[str])
    """The paths to which something was sent."""
    objects: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """The files that were sent through Git LFS, by their hashes."""
    authorizations: set[str] = field(default_factory=set[str])
    """The tokens that were sent with writes."""

    def bytes_of(self, pattern: str) -> int:
        """The number of bytes that were sent of paths that match a pattern."""
        return sum(size for path, size in self.requests if re.search(pattern, path))


@contextmanager
def serving(repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Serve directories as repositories, and make huggingface_hub and OpenCLT ask this server and use ``cache``."""
    from huggingface_hub import constants

    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("OPEN_CLT_CACHE", str(cache / "open-clt"))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)  # seconds until a stop is seen
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    """The hub whose repositories are served."""
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is sent in two parts, and the second one would wait

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        if found := re.fullmatch(r"api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._describe(found[1])
        elif found := re.fullmatch(r"api/models/([^/]+/[^/]+)/tree/[^/]+(?:/(.+))?", path):
            self._list(found[1], found[2] or "")
        elif found := re.fullmatch(r"([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._send_file(found[1], found[2])
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _describe(self, repo: str) -> None:
        folder = self.hub.repositories.get(repo)
        if folder is None:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        siblings = [{"rfilename": str(path.relative_to(folder)), "size": path.stat().st_size} for path in found]
        content = {
            "id": repo,
            "modelId": repo,
            "sha": COMMIT,
            "siblings": siblings,
            "private": repo in self.hub.private,
        }
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _list(self, repo: str, folder: str) -> None:
        root = self.hub.repositories.get(repo, Path("/nowhere"))
        if not (root / folder).is_dir():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        found = [path for path in sorted((root / folder).rglob("*")) if path.is_file()]
        self._json(
            [
                {"type": "file", "path": str(path.relative_to(root)), "size": path.stat().st_size, "oid": COMMIT}
                for path in found
            ]
        )

    def _send_file(self, repo: str, name: str) -> None:
        path = self.hub.repositories.get(repo, Path("/nowhere")) / name
        if not path.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes",
        }  # fmt: skip
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not self.hub.answers_ranges:
            self._answer(200, content, headers)
            return
        begin, end = int(asked[1]), int(asked[2] or len(content) - 1) + 1
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        self._answer(206, content[begin:end], headers)

    def do_PUT(self) -> None:
        self.hub.objects[self.path.rpartition("/")[2]] = self._body()
        self._answer(self.hub.status_of_objects, b"", {})

    def do_POST(self) -> None:
        body, path = self._body(), self.path.split("?")[0].strip("/")
        self.hub.writes.append(path)
        self.hub.authorizations.add(self.headers.get("Authorization", ""))
        if self.hub.status_of_writes is not None:
            self._answer(self.hub.status_of_writes, b'{"error": "refused"}', {"Content-Type": "application/json"})
        elif path == "api/validate-yaml":
            valid = "INVALID" not in json.loads(body)["content"]
            self._json({"errors": [] if valid else [{"message": "bad header"}], "warnings": []}, 200 if valid else 400)
        elif path == "api/repos/create":
            self._create(json.loads(body))
        elif re.fullmatch(r"api/models/[^/]+/[^/]+/branch/.+", path):
            self._json({})
        elif re.fullmatch(r"api/models/[^/]+/[^/]+/preupload/.+", path):
            self._json({"files": [self._upload_mode(each) for each in json.loads(body)["files"]]})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._json({"transfer": "basic", "objects": [self._lfs(each) for each in json.loads(body)["objects"]]})
        elif found := re.fullmatch(r"api/models/([^/]+/[^/]+)/commit/.+", path):
            self._commit(found[1], body)
        else:
            self._answer(404, b"{}", {})

    def _create(self, asked: dict[str, object]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repositories:
            self._json({"url": f"{self.hub.address}/{repo}"}, 409)
            return
        self.hub.repositories[repo] = self.hub.creates[repo]
        self.hub.creates[repo].mkdir(parents=True, exist_ok=True)
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(repo)
        self._json({"url": f"{self.hub.address}/{repo}"})

    def _upload_mode(self, asked: dict[str, object]) -> dict[str, object]:
        mode = "lfs" if str(asked["path"]).endswith((".safetensors", ".npz")) else "regular"
        return {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}

    def _lfs(self, asked: dict[str, object]) -> dict[str, object]:
        return {**asked, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{asked['oid']}"}}}

    def _commit(self, repo: str, body: bytes) -> None:
        folder = self.hub.repositories[repo]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
                (folder / value["path"]).write_bytes(self.hub.objects[value["oid"]])
            elif line["key"] == "deletedFile":
                (folder / value["path"]).unlink()
        self._json({"commitUrl": f"{self.hub.address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _json(self, content: object, status: int = 200) -> None:
        self._answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.hub.requests.append((self.path, len(content)))
        if self.command != "HEAD":
            self.wfile.write(content)
