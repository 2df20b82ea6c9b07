"""What a server answers wrong is named, and the token goes to the given address only."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from open_clt.data.dataset import read
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.dataset.remote import folder, server
from open_clt.errors import CheckpointError, ConfigError, ServiceError
from tests.data.dataset.remote.served_dataset import address_of, assert_equal
from tests.data.dataset.remote.static_server import Answer, StaticServer
from tests.data.dataset.small_dataset import write
from tests.refusals import refuses


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http://name:secret@127.0.0.1/x",
        "http://127.0.0.1:99999/x",
        "https://h/x?y=1",
        "http://h/a b",
        "http://h/#x",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_and_a_password_is_not_shown(address: str) -> None:
    with refuses(ConfigError, "http://127.0.0.1:8000/datasets/NAME") as caught:
        read(address, 8)
    assert "secret" not in str(caught.value)


def change_of(name: str, **changes: Any) -> Callable[[str, Answer], Answer]:
    """Change the answers for files whose names end so."""
    return lambda path, answer: replace(answer, **changes) if path.endswith(name) else answer


def without_parts(path: str, answer: Answer) -> Answer:
    return Answer(200, {}, b"x" * 100_000) if path.endswith(".safetensors") else answer


def other_part(path: str, answer: Answer) -> Answer:
    if not path.endswith(".safetensors"):
        return answer
    return replace(answer, headers={"Content-Range": f"bytes 7-106/{answer.headers['Content-Range'].split('/')[1]}"})


def too_long(path: str, answer: Answer) -> Answer:
    return replace(answer, content=answer.content * 2) if path.endswith(".safetensors") else answer


@pytest.mark.parametrize(
    ("error", "change", "words"),
    [
        (ServiceError, without_parts, ("shard-00000.safetensors", "Range")),
        (ServiceError, other_part, ("shard-00000.safetensors", "Range")),
        (CheckpointError, too_long, ("shard-00000.safetensors",)),
        (ServiceError, change_of("manifest.json", status=302, headers={"Location": "http://other/"}), ("http://other/",)),
        (ServiceError, change_of("safetensors", status=307, headers={"Location": "/other"}), ("/other",)),
        (ServiceError, change_of("manifest.json", status=401), ("401", server.TOKEN_VARIABLE, "is not set")),
        (ServiceError, change_of("safetensors", status=403), ("403", server.TOKEN_VARIABLE)),
        (CheckpointError, change_of("manifest.json", status=404), ("manifest.json",)),
        (CheckpointError, change_of("00003.safetensors", status=404), ("shard-00003.safetensors",)),
        (CheckpointError, change_of("00003.safetensors", status=416), ("shard-00003.safetensors",)),
        (ServiceError, change_of("manifest.json", status=418), ("418",)),
        (ServiceError, change_of("manifest.json", status=500), ("500",)),
        (ServiceError, change_of("manifest.json", headers={"Content-Encoding": "gzip"}), ("manifest.json",)),
        (CheckpointError, change_of("manifest.json", content=b"<html>"), ("manifest.json",)),
        (CheckpointError, change_of("manifest.json", content=b"{}"), ("manifest.json",)),
        (CheckpointError, change_of("norm_stats.json", content=b"{}"), ("norm_stats.json",)),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_used_is_one_sentence_with_the_address(
    served: StaticServer,
    error: type[Exception],
    change: Callable[[str, Answer], Answer],
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(folder, "FIRST_PATIENCE", 0.3)
    served.change = change
    with refuses(error, address_of(served), *words):
        batches = read(address_of(served), 8, order="sequence")
        _ = batches.dataset.statistics
        list(batches)


def test_a_manifest_that_is_too_large_is_not_fetched_to_its_end(
    served: StaticServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_LARGEST_JSON", 1000)
    with refuses(CheckpointError, f"{address_of(served)}/manifest.json", "1,000"):
        read(address_of(served), 8)


def test_wrong_bytes_of_a_shard_are_found_before_they_are_used(
    served: StaticServer, local: Path, tmp_path: Path
) -> None:
    path = local / "shard-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    with refuses(CheckpointError, f"{address_of(served)}/{path.name}", "SHA-256"):
        list(read(address_of(served), 8))
    path.write_bytes(content[:-400])
    dataset = ActivationDataset(address_of(served))
    with refuses(CheckpointError, f"{address_of(served)}/{path.name}"):
        dataset.check()
    assert not list((tmp_path / "cache").rglob(f"*{path.name}"))


def test_a_wrong_answer_that_is_right_the_second_time_is_used(served: StaticServer, local: Path) -> None:
    wrong: list[str] = []

    def once(path: str, answer: Answer) -> Answer:
        if path.endswith("00002.safetensors") and len(answer.content) == 100 and not wrong:
            wrong.append(path)
            return replace(answer, content=b"x" * 100)
        return answer

    served.change = once
    assert_equal(list(read(address_of(served), 8)), list(read(local, 8)))
    assert wrong


def test_a_dataset_that_is_replaced_while_it_is_read_is_said_to_be(served: StaticServer, local: Path) -> None:
    batches = iter(read(address_of(served), 5, order="sequence"))
    next(batches)
    served.folder = write(local.parents[1] / "new" / "dataset", seed=9).parent
    with refuses(CheckpointError, address_of(served), "replaced"):
        list(batches)
    list(read(address_of(served), 8))  # the new dataset has its own folder in the cache


def test_the_token_is_sent_to_the_server_and_never_shown(served: StaticServer, monkeypatch: pytest.MonkeyPatch) -> None:
    list(read(address_of(served), 70))
    assert served.tokens == {""}
    monkeypatch.setenv(server.TOKEN_VARIABLE, "s3cret")
    served.tokens.clear()
    served.change = change_of("manifest.json", status=401)
    with refuses(ServiceError, server.TOKEN_VARIABLE, "refuses") as caught:
        read(address_of(served), 70)
    assert "s3cret" not in str(caught.value)
    assert served.tokens == {"Bearer s3cret"}
    for token in ("two words", "s3cret\nX-Header: 1", "sécret"):
        monkeypatch.setenv(server.TOKEN_VARIABLE, token)
        with refuses(ConfigError, server.TOKEN_VARIABLE) as caught:
            read(address_of(served), 70)
        assert "cret" not in str(caught.value)


def test_a_newer_version_of_the_format_is_said_to_be_one(served: StaticServer, local: Path) -> None:
    path = local / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with refuses(CheckpointError, f"{address_of(served)}/manifest.json", "update OpenCLT"):
        read(address_of(served), 8)
