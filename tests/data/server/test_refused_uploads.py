"""Refused uploads: a request that is wrong gets the right status and a sentence, and changes nothing on the disk."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from starlette.testclient import TestClient

from open_clt import files
from open_clt.data.dataset.manifest import MANIFEST, shard_name
from open_clt.data.dataset.statistics import STATISTICS
from open_clt.data.server import writing
from tests.data.dataset.small_dataset import contents, write
from tests.data.server.serving import client_of, is_sentence
from tests.data.server.uploading import READ_TOKEN, append, begin, send_all, tree, writer

SHARD = shard_name(0)


def changed_manifest(source: dict[str, bytes], **change: Any) -> bytes:
    return json.dumps({**json.loads(source[MANIFEST]), **change}).encode()


def test_a_shard_without_the_tensors_of_the_manifest_is_refused(
    sender: TestClient, tmp_path: Path, root: Path, source: dict[str, bytes]
) -> None:
    save_file({"inputs": torch.zeros(3)}, tmp_path / "other")
    manifest = json.loads(source[MANIFEST])
    manifest["shards"][0]["sha256"] = files.file_sha256(tmp_path / "other")
    manifest["statistics_sha256"] = files.file_sha256(tmp_path / "other")
    content = (tmp_path / "other").read_bytes()
    begin(sender, json.dumps(manifest).encode())
    for file in (SHARD, STATISTICS):
        answer = append(sender, file, content, 0, len(content))
        assert answer.status_code == 422
        assert is_sentence(answer.json()["error"])
        assert file in answer.json()["error"]
    assert [path.name for path in (root / ".uploads" / "set").iterdir()] == ["upload.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": "other"}',
        {"format_version": 99},
        {"tokens": 71},
        {"shards": [], "tokens": 0},
        {"shards": [{"file": "../x.safetensors", "tokens": 70, "sha256": "0" * 64}]},
        {"shards": [{"file": "/etc/x.safetensors", "tokens": 70, "sha256": "0" * 64}]},
        {"shards": [{"file": ".x.safetensors", "tokens": 70, "sha256": "0" * 64}]},
        {"shards": [{"file": "a/x.safetensors", "tokens": 70, "sha256": "0" * 64}]},
        {"shards": [{"file": MANIFEST, "tokens": 70, "sha256": "0" * 64}]},
        {"shards": [{"file": "x.safetensors", "tokens": 70, "sha256": "0"}]},
        {"statistics_sha256": "../x"},
        {"harvested": {}},
    ],
    ids=lambda content: str(content)[:50],
)
def test_a_body_that_is_not_a_manifest_is_refused(
    content: bytes | dict[str, Any], sender: TestClient, root: Path, source: dict[str, bytes]
) -> None:
    answer = begin(sender, content if isinstance(content, bytes) else changed_manifest(source, **content))
    assert answer.status_code == 422
    assert is_sentence(answer.json()["error"])
    assert str(root) not in answer.text
    assert not list(root.iterdir())


@pytest.mark.parametrize("name", [".hidden", ".uploads", "a b", "ä", "a.", "-x", "x" * 101, "a%0Ab", "..", "a%2Fb"])
def test_a_name_that_is_not_legal_is_refused(
    name: str, sender: TestClient, root: Path, source: dict[str, bytes]
) -> None:
    answer = begin(sender, source[MANIFEST], name)
    assert answer.status_code in (400, 404, 405)
    assert is_sentence(answer.json()["error"])
    assert not list(root.iterdir())


PLACES = [
    ("bytes 0-7/832", b"12345678", 200),
    ("", b"12345678", 400),
    ("bytes 0-7", b"12345678", 400),
    ("bytes=0-7/832", b"12345678", 400),
    ("bytes a-b/c", b"12345678", 400),
    ("bytes 0-6/832", b"12345678", 400),
    ("bytes 0-8/832", b"12345678", 400),
    ("bytes 7-0/832", b"12345678", 416),
    ("bytes 0-832/832", b"x" * 833, 416),
    ("bytes 1-8/832", b"12345678", 409),
    ("bytes */832", b"", 409),
    ("bytes */832", b"12345678", 400),
    ("bytes 0-7/99999999", b"12345678", 413),
    ("bytes 0-7/" + "9" * 18, b"12345678", 413),
    ("bytes 0-7/" + "9" * 5000, b"12345678", 400),
]


@pytest.mark.parametrize(("place", "content", "status"), PLACES, ids=lambda value: str(value)[:30])
def test_a_piece_that_is_not_the_next_one_changes_nothing(
    place: str, content: bytes, status: int, sender: TestClient, root: Path, source: dict[str, bytes]
) -> None:
    begin(sender, source[MANIFEST])
    before = tree(root)
    answer = sender.patch(f"/uploads/set/{SHARD}", content=content, headers={"Content-Range": place})
    assert answer.status_code == status
    if status != 200:
        assert is_sentence(answer.json()["error"])
        assert tree(root) == before


@pytest.mark.parametrize(
    "file", ["manifest.json", "upload.json", "x.safetensors", "..", "%2e%2e%2fx", "shard%00", "a%2Fb"]
)
def test_a_file_that_the_manifest_does_not_list_is_refused(
    file: str, sender: TestClient, root: Path, source: dict[str, bytes]
) -> None:
    begin(sender, source[MANIFEST])
    before = tree(root)
    answer = sender.patch(f"/uploads/set/{file}", content=b"1", headers={"Content-Range": "bytes 0-0/1"})
    assert answer.status_code == 404
    assert is_sentence(answer.json()["error"])
    assert tree(root) == before


def test_bodies_have_a_length_and_a_limit(
    sender: TestClient, root: Path, source: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(sender, source[MANIFEST])
    before = tree(root)
    place = {"Content-Range": "bytes 0-7/832"}
    for answer in (
        sender.patch(f"/uploads/set/{SHARD}", content=iter([b"1234", b"5678"]), headers=place),
        sender.put("/uploads/other", content=iter([source[MANIFEST]])),
    ):
        assert answer.status_code == 411
    monkeypatch.setattr(writing, "LARGEST_PIECE", 7)
    monkeypatch.setattr(writing, "LARGEST_MANIFEST", 7)
    for answer in (append(sender, SHARD, b"12345678", 0, 832), begin(sender, source[MANIFEST], "other")):
        assert answer.status_code == 413
        assert is_sentence(answer.json()["error"])
    assert tree(root) == before


def test_another_dataset_of_the_same_name_is_refused_until_the_upload_is_given_up(
    sender: TestClient, root: Path, source: dict[str, bytes], tmp_path: Path
) -> None:
    other = contents(write(tmp_path / "other", seed=6))
    begin(sender, source[MANIFEST])
    append(sender, SHARD, source[SHARD][:9], 0, len(source[SHARD]))
    before = tree(root)
    assert begin(sender, other[MANIFEST]).status_code == 409
    assert tree(root) == before
    assert sender.delete("/uploads/set").status_code == 200
    assert list(root.iterdir()) == []
    assert sender.delete("/uploads/set").status_code == 404
    assert send_all(sender, other).json()["complete"]
    before = tree(root)
    assert begin(sender, source[MANIFEST]).status_code == 409
    assert sender.delete("/uploads/set").status_code == 404
    assert tree(root) == before == {f"set/{name}": content for name, content in other.items()}


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_a_name_that_something_else_has_is_refused(
    kind: str, sender: TestClient, root: Path, source: dict[str, bytes], tmp_path: Path
) -> None:
    make: dict[str, Callable[[], object]] = {
        "file": lambda: (root / "set").write_text("mine"),
        "directory": lambda: (root / "set").mkdir(),
        "link": lambda: (root / "set").symlink_to(tmp_path / "nowhere"),
    }
    make[kind]()
    assert begin(sender, source[MANIFEST]).status_code == 409
    assert [path.name for path in root.iterdir()] == ["set"]


def test_a_name_that_is_taken_during_the_upload_is_refused_at_its_end(
    sender: TestClient, root: Path, source: dict[str, bytes]
) -> None:
    send_all(sender, source, SHARD)
    (root / "set").mkdir()
    (root / "set" / "notes.txt").write_text("mine")
    answer = append(sender, SHARD, source[SHARD], 0, len(source[SHARD]))
    assert answer.status_code == 409
    assert tree(root / "set") == {"notes.txt": b"mine"}
    shutil.rmtree(root / "set")
    assert begin(sender, source[MANIFEST]).json()["complete"]


def test_links_do_not_lead_an_upload_out_of_the_directory(
    sender: TestClient, root: Path, source: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root / ".uploads").symlink_to(tmp_path / "elsewhere")
    assert begin(sender, source[MANIFEST]).status_code == 404
    (root / ".uploads").unlink()
    begin(sender, source[MANIFEST])
    (root / ".uploads" / "set" / f"{SHARD}.part").symlink_to(tmp_path / "elsewhere" / "x")
    assert append(sender, SHARD, b"12345678", 0, 832).status_code >= 400
    assert not list((tmp_path / "elsewhere").iterdir())


def test_writing_needs_a_token_that_allows_it(root: Path, source: dict[str, bytes]) -> None:
    reader, stranger, off = writer(root, READ_TOKEN), writer(root, b"another-token-of-tests"), client_of(root)
    nobody = writer(root)
    del nobody.headers["Authorization"]
    for sender, status in ((reader, 403), (stranger, 401), (nobody, 401), (off, 403)):
        for answer in (
            begin(sender, source[MANIFEST]),
            append(sender, SHARD, b"12345678", 0, 832),
            sender.delete("/uploads/set"),
            sender.post("/datasets"),
        ):
            assert answer.status_code == status
            assert is_sentence(answer.json()["error"])
    assert not list(root.iterdir())


def test_a_server_of_one_dataset_takes_no_uploads(tmp_path: Path, source: dict[str, bytes]) -> None:
    directory = write(tmp_path / "one")
    answer = begin(writer(directory), source[MANIFEST])
    assert answer.status_code == 403
    assert contents(directory) == source


def test_a_dataset_that_the_disk_cannot_hold_is_refused_before_it_is_sent(
    sender: TestClient, root: Path, source: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda _: 1000)
    answer = begin(sender, source[MANIFEST])
    assert answer.status_code == 507
    assert is_sentence(answer.json()["error"])
    assert not list(root.iterdir())


@pytest.mark.parametrize("limit", [8, 500])
def test_a_full_disk_is_one_sentence_and_the_upload_goes_on_later(
    limit: int, sender: TestClient, root: Path, source: dict[str, bytes]
) -> None:
    begin(sender, source[MANIFEST])
    append(sender, SHARD, source[SHARD][:7], 0, len(source[SHARD]))
    before = tree(root)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, former[1]))  # as on a full disk, a part is written
    try:
        answers = [append(sender, SHARD, source[SHARD][7:], 7, len(source[SHARD]))]
        answers.append(append(sender, shard_name(1), source[shard_name(1)], 0, len(source[shard_name(1)])))
        answers.append(begin(sender, source[MANIFEST], "other"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    for answer in answers:
        assert answer.status_code == 507
        assert is_sentence(answer.json()["error"])
        assert str(root) not in answer.text
    assert tree(root) == before
    assert [path.name for path in (root / ".uploads").iterdir()] == ["set"]
    assert append(sender, SHARD, source[SHARD][7:], 7, len(source[SHARD])).status_code == 200
