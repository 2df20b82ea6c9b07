"""Security of the server: names that leave its directory, other hosts, other sites, and tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from open_clt.data.dataset.manifest import MANIFEST, shard_name
from open_clt.data.server.access import SHORTEST_TOKEN, Access, read_tokens
from open_clt.errors import CheckpointError, ConfigError
from tests.data.dataset.small_dataset import write
from tests.data.server.serving import client_of, is_sentence
from tests.refusals import refuses

READ, WRITE = b"reading-token-of-tests", b"writing-token-of-tests"
BOTH = Access((WRITE,), (READ,))


def bearer(token: bytes | str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token if isinstance(token, str) else token.decode()}"}


@pytest.mark.parametrize(
    "path",
    [
        "/datasets/../secret/manifest.json",
        "/datasets/%2e%2e/secret/manifest.json",
        "/datasets/%2e%2e%2fsecret/manifest.json",
        "/datasets/..%2fsecret/manifest.json",
        "/datasets/..%5csecret/manifest.json",
        "/datasets/first/..%2f..%2fsecret%2fmanifest.json",
        "/datasets/first/%2e%2e/%2e%2e/secret/manifest.json",
        "/datasets/first//manifest.json",
        "/datasets//etc/passwd",
        "/datasets/%2fetc%2fpasswd",
        "/datasets/%2fetc/passwd",
        "/datasets/first/%2fetc%2fpasswd",
        "/datasets/first/manifest.json%00",
        "/datasets/first%00/manifest.json",
        "/datasets/first/%ff%fe",
        "/datasets/.%2e/secret",
        "/datasets/./first/manifest.json%20",
        "/datasets/first./manifest.json",
        "/datasets/FIRST%0d%0aSet-Cookie:x/manifest.json",
        f"/datasets/{'a' * 5000}/manifest.json",
        f"/datasets/first/{'a' * 5000}",
        "/datasets/~/manifest.json",
        "/secret/manifest.json",
        "/datasets/first/tokens/../../../secret/manifest.json",
    ],
    ids=lambda path: path[:60],
)
def test_no_name_leaves_the_directory(path: str, two_datasets: Path) -> None:
    write(two_datasets.parent / "secret") if not (two_datasets.parent / "secret").exists() else None
    client = client_of(two_datasets)
    # httpx normalises addresses; the raw path reaches the server as an attacker would send it
    request = client.build_request("GET", "/")
    request.url = request.url.copy_with(raw_path=path.encode())
    answer = client.send(request)
    assert answer.status_code == 404
    assert is_sentence(answer.json()["error"])
    assert "set-cookie" not in answer.headers


def test_symbolic_links_do_not_lead_out_of_the_directory(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret")
    root = tmp_path / "root"
    inner = write(root / "inner")
    (root / "linked").symlink_to(secret)
    (root / "also").symlink_to(inner)
    (root / "half").mkdir()
    (root / "half" / MANIFEST).symlink_to(secret / MANIFEST)
    (inner / shard_name(0)).unlink()
    (inner / shard_name(0)).symlink_to(secret / shard_name(0))
    (root / "loop").symlink_to(root / "loop")
    client = client_of(root)
    assert [entry["name"] for entry in client.get("/datasets").json()["datasets"]] == ["also", "inner"]
    for path in (f"linked/{MANIFEST}", f"half/{MANIFEST}", f"inner/{shard_name(0)}", f"loop/{MANIFEST}"):
        assert client.get(f"/datasets/{path}").status_code == 404
    assert client.get(f"/datasets/also/{shard_name(1)}").status_code == 200


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    directory = write(tmp_path / "root" / "set")
    (tmp_path / "root" / "secret.safetensors").write_bytes(b"secret")
    manifest = directory / MANIFEST
    for name in ("../secret.safetensors", "/etc/passwd", MANIFEST):
        content = manifest.read_text()
        manifest.write_text(content.replace(shard_name(0), name))
        client = client_of(tmp_path / "root")
        assert b"secret" not in client.get(f"/datasets/set/{name}").content
        manifest.write_text(content)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "0.0.0.0", "", "127.0.0.1.nip.io:8042"])
@pytest.mark.parametrize("path", ["/", "/health", "/datasets", "/datasets/first/manifest.json", "/nothing"])
def test_no_address_answers_for_another_host(path: str, host: str, client: TestClient) -> None:
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == 403
    assert is_sentence(answer.json()["error"])


def test_a_host_that_the_user_allows_is_answered(two_datasets: Path) -> None:
    client = client_of(two_datasets, allowed=["lab.example"])
    assert client.get("/health", headers={"Host": "LAB.example:8042"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/health", "/datasets", "/datasets/first/manifest.json", "/nothing"])
def test_every_answer_has_the_headers_of_security(path: str, client: TestClient) -> None:
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("path", ["/datasets", "/datasets/first/manifest.json", "/datasets/first/tokens", "/nothing"])
def test_reading_needs_a_token_where_the_server_asks_for_one(path: str, two_datasets: Path) -> None:
    client = client_of(two_datasets, BOTH)
    wrong = ({}, bearer(b"another-token-of-tests"), bearer(READ + b"x"), bearer(READ[:-1]), bearer(""), bearer("é"))
    for headers in (*wrong, {"Authorization": READ.decode()}, {"Authorization": f"Basic {READ.decode()}"}):
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        answer = client.get(path, headers=encoded)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert is_sentence(answer.json()["error"])
    for token in (READ, WRITE):
        assert client.get(path, headers=bearer(token)).status_code in (200, 404, 422)


def test_addresses_that_show_no_data_need_no_token(two_datasets: Path) -> None:
    client = client_of(two_datasets, BOTH)
    assert client.get("/health").status_code == client.get("/openapi.json").status_code == 200
    assert "first" not in client.get("/").text


def test_tokens_are_read_from_the_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_bytes(READ + b"\n\n  " + WRITE + b"\r\n")
    assert read_tokens(tmp_path / "tokens") == (READ, WRITE)
    assert READ.decode() not in repr(Access(read_tokens(tmp_path / "tokens")))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"short\n", b"a token with spaces\n", "sixteen-lètters-é".encode(), b"\xff" * 20, b"a\0" * 20],
)
def test_a_file_without_good_tokens_is_one_sentence_that_shows_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(content)
    with refuses(ConfigError, path, SHORTEST_TOKEN) as raised:
        read_tokens(path)
    shown = content.decode(errors="replace").strip()
    assert not shown or shown not in str(raised.value)
    with refuses(CheckpointError, tmp_path / "missing"):
        read_tokens(tmp_path / "missing")
