"""The server shows complete datasets, their files as a static folder does, and slices of their tokens."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from starlette.testclient import TestClient

from open_clt.data.dataset.encoding import decode
from open_clt.data.dataset.manifest import MANIFEST, read_manifest, shard_name
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.dataset.statistics import STATISTICS
from open_clt.data.harvest import MemoryStore
from open_clt.data.server import slices
from tests.data.dataset.small_dataset import D_MODEL, N_LAYERS, all_of, write
from tests.data.server.serving import client_of, is_sentence

SHARD = f"/datasets/first/{shard_name(0)}"


def test_the_server_is_healthy(client: TestClient) -> None:
    answer = client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_complete_datasets_are_listed(client: TestClient) -> None:
    first, second = client.get("/datasets").json()["datasets"]
    assert (first["name"], first["tokens"], first["shards"], first["dtype"]) == ("first", 70, 7, "float32")
    assert (second["name"], second["dtype"], second["model"]) == ("second", "int8", "tiny")
    assert (second["n_layers"], second["d_model"]) == (N_LAYERS, D_MODEL)
    assert first["bytes"] == 70 * (2 * N_LAYERS * D_MODEL * 4 + 8)


def test_a_server_of_one_dataset_shows_it_under_the_name_of_its_directory(two_datasets: Path) -> None:
    one = client_of(two_datasets / "second")
    assert [entry["name"] for entry in one.get("/datasets").json()["datasets"]] == ["second"]
    answer = one.get(f"/datasets/second/{MANIFEST}")
    assert answer.content == (two_datasets / "second" / MANIFEST).read_bytes()
    assert one.get(f"/datasets/first/{MANIFEST}").status_code == 404


def test_every_file_is_the_one_on_the_disk_and_its_etag_is_its_sha256(client: TestClient, two_datasets: Path) -> None:
    for name in ("first", "second"):
        shards = [shard.file for shard in read_manifest(two_datasets / name).shards]
        for file in (MANIFEST, STATISTICS, *shards):
            content = (two_datasets / name / file).read_bytes()
            answer = client.get(f"/datasets/{name}/{file}")
            assert (answer.status_code, answer.content) == (200, content)
            assert answer.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
            assert answer.headers["Accept-Ranges"] == "bytes"
            head = client.head(f"/datasets/{name}/{file}")
            assert (head.content, head.headers["Content-Length"]) == (b"", str(len(content)))


@pytest.mark.parametrize("asked", ["0-0", "0-7", "5-", "-4", "100-10000000", "-10000000"])
def test_ranges_are_bytes_of_the_file(asked: str, client: TestClient, two_datasets: Path) -> None:
    content = (two_datasets / "first" / shard_name(0)).read_bytes()
    begin, end = asked.split("-")
    expected = content[int(begin) : int(end) + 1 if end else None] if begin else content[-int(end) :]
    first = len(content) - len(expected) if not begin else int(begin)
    answer = client.get(SHARD, headers={"Range": f"bytes={asked}"})
    assert (answer.status_code, answer.content) == (206, expected)
    assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(expected) - 1}/{len(content)}"


def test_a_range_of_another_version_is_the_whole_file(client: TestClient, two_datasets: Path) -> None:
    content = (two_datasets / "first" / shard_name(0)).read_bytes()
    asked = {"Range": "bytes=0-7"}
    same = f'"{hashlib.sha256(content).hexdigest()}"'
    assert client.get(SHARD, headers={**asked, "If-Range": same}).status_code == 206
    assert client.get(SHARD, headers={**asked, "If-Range": '"other"'}).content == content


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("bytes=99999999-", 416),
        ("bytes=99999999-99999999999", 416),
        ("bytes=7-3", 400),
        ("bytes=", 400),
        ("bytes=x-y", 400),
        ("bits=0-7", 400),
        ("0-7", 400),
        (f"bytes={'9' * 5000}-", 400),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_ranges_are_refused(asked: str, status: int, client: TestClient) -> None:
    answer = client.get(SHARD, headers={"Range": asked})
    assert answer.status_code == status
    assert is_sentence(answer.json()["error"])


@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.parametrize("begin", [0, 5, 10, 61])
@pytest.mark.parametrize("end", [62, 70])
def test_a_slice_holds_the_tokens_of_its_range(
    name: str, begin: int, end: int, client: TestClient, two_datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "_CHUNK", 70)
    answer = client.get(f"/datasets/{name}/tokens", params={"begin": begin, "end": end})
    assert answer.status_code == 200
    assert answer.headers["Content-Length"] == str(len(answer.content))
    tensors = load(answer.content)
    stored = load((two_datasets / name / shard_name(0)).read_bytes())
    assert {key: tensor.dtype for key, tensor in tensors.items()} == {key: one.dtype for key, one in stored.items()}
    whole = all_of(MemoryStore(list(ActivationDataset(two_datasets / name))))
    for ours, theirs in zip(decode(tensors), whole.take(slice(begin, end)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("begin", "end", "status"),
    [("0", "71", 416), ("5", "5", 416), ("7", "3", 416), ("-1", "3", 416), ("x", "3", 422), ("9" * 5000, "3", 422)],
    ids=lambda value: str(value)[:9],
)
def test_bad_slices_are_refused(begin: str, end: str, status: int, client: TestClient) -> None:
    answer = client.get("/datasets/first/tokens", params={"begin": begin, "end": end})
    assert answer.status_code == status
    assert is_sentence(answer.json()["error"])


def test_a_slice_that_is_too_large_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "LARGEST_SLICE", 10 * (2 * N_LAYERS * D_MODEL * 4 + 8))
    assert client.get("/datasets/first/tokens", params={"begin": 0, "end": 10}).status_code == 200
    answer = client.get("/datasets/first/tokens", params={"begin": 0, "end": 11})
    assert answer.status_code == 413
    assert "10 tokens" in answer.json()["error"]


def test_a_slice_of_a_damaged_shard_names_the_shard(tmp_path: Path) -> None:
    directory = write(tmp_path / "data" / "set")
    (directory / shard_name(1)).write_bytes(b"short")
    damaged = client_of(tmp_path / "data")
    assert damaged.get("/datasets/set/tokens", params={"begin": 0, "end": 10}).status_code == 200
    answer = damaged.get("/datasets/set/tokens", params={"begin": 0, "end": 11})
    assert answer.status_code == 500
    assert shard_name(1) in answer.json()["error"]
    assert str(tmp_path) not in answer.text


def test_unfinished_damaged_and_other_directories_are_not_shown(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    for name in ("unfinished", "damaged", ".hidden"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
    (tmp_path / "unfinished" / MANIFEST).rename(tmp_path / "unfinished" / "unfinished.json")
    (tmp_path / "damaged" / MANIFEST).write_text("{")
    (tmp_path / "other").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    shown = client_of(tmp_path)
    assert [entry["name"] for entry in shown.get("/datasets").json()["datasets"]] == ["whole"]
    for name in ("unfinished", "damaged", ".hidden", "other", "notes.txt", "none"):
        for file in (MANIFEST, STATISTICS, shard_name(0)):
            assert shown.get(f"/datasets/{name}/{file}").status_code == 404


def test_files_that_the_manifest_does_not_list_are_not_shown(tmp_path: Path) -> None:
    directory = write(tmp_path / "set")
    (directory / "notes.txt").write_text("mine")
    (directory / shard_name(7)).write_bytes((directory / shard_name(0)).read_bytes())
    (directory / shard_name(2)).unlink()
    (directory / shard_name(3)).unlink()
    os.mkfifo(directory / shard_name(3))
    shown = client_of(tmp_path)
    for file in ("notes.txt", shard_name(7), shard_name(2), shard_name(3), ".open-clt.lock"):
        answer = shown.get(f"/datasets/set/{file}")
        assert answer.status_code == 404
        assert is_sentence(answer.json()["error"])


def test_a_dataset_that_appears_or_changes_is_read_again(tmp_path: Path) -> None:
    shown = client_of(tmp_path)
    assert shown.get("/datasets").json() == {"datasets": []}
    write(tmp_path / "set")
    assert shown.get("/datasets").json()["datasets"][0]["tokens"] == 70
    shutil.rmtree(tmp_path / "set")
    write(tmp_path / "set", tokens=30)
    assert shown.get("/datasets").json()["datasets"][0]["tokens"] == 30


def test_the_description_names_every_address(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/health", "/datasets", "/datasets/{name}/{file}", "/datasets/{name}/tokens"} <= set(paths)


def test_the_page_shows_datasets_and_addresses_without_other_servers(client: TestClient) -> None:
    text = client.get("/").text
    assert "first" in text
    assert "/datasets/{name}/tokens" in text
    assert "<script" not in text
    assert "//" not in text.removeprefix("<!DOCTYPE html>")


def test_the_page_shows_names_as_text(tmp_path: Path) -> None:
    write(tmp_path / "<b>bold", model="<script>alert(1)")
    text = client_of(tmp_path).get("/").text
    assert "<b>" not in text
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_the_log_has_one_line_of_json_for_each_request_and_no_token(two_datasets: Path) -> None:
    lines: list[str] = []
    logged = client_of(two_datasets, log=lines.append)
    logged.get(SHARD, params={"token": "secret-1"}, headers={"Authorization": "Bearer secret-2"})
    logged.get('/datasets/%22%0A{"status": 200}/x')
    logged.get("/health", headers={"Host": "evil.example"})
    entries = [json.loads(line) for line in lines]
    assert [entry["status"] for entry in entries] == [200, 404, 403]
    assert (entries[0]["method"], entries[0]["path"]) == ("GET", SHARD)
    assert entries[0]["bytes"] == (two_datasets / "first" / shard_name(0)).stat().st_size
    assert "secret" not in "".join(lines)
    assert not any("\n" in line for line in lines)
