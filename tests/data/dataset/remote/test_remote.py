"""A dataset on a server is read as if it was local, also if the server is restarted; what it answers wrong is named."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.data.dataset import read
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.dataset.remote import folder, server
from open_clt.data.harvest import ActivationBatch
from open_clt.errors import CheckpointError, ConfigError, ServiceError
from tests.data.dataset.remote import static_server
from tests.data.dataset.remote.static_server import Answer, StaticServer, serving
from tests.data.dataset.small_dataset import write
from tests.refusals import refuses

SHARDS = 7


@pytest.fixture(autouse=True)
def small_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, ranges of 100 bytes, so that a shard has several, and little patience."""
    monkeypatch.setenv("OPEN_CLT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(server.TOKEN, raising=False)
    monkeypatch.setattr(server, "RANGE", 100)
    monkeypatch.setattr(server, "_PAUSES", (0.01, 5.0))
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    monkeypatch.setattr(folder, "FIRST_PATIENCE", 0.3)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A dataset of 70 tokens in seven shards."""
    return write(tmp_path / "served" / "dataset")


@pytest.fixture
def served(local: Path) -> Iterator[StaticServer]:
    with serving(local.parent) as running:
        yield running


def address_of(served: StaticServer) -> str:
    return f"{served.address}dataset"


def assert_equal(ours: list[ActivationBatch], theirs: list[ActivationBatch]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(*fields) for fields in zip(one, other, strict=True))


@pytest.mark.parametrize("order", ["random", "sequence"])
def test_batches_are_those_of_the_local_dataset_and_each_shard_is_fetched_once(
    served: StaticServer, local: Path, order: Any
) -> None:
    settings: dict[str, Any] = {"order": order, "epochs": 2, "seed": 3}
    remote = read(address_of(served), 8, **settings)
    assert_equal(list(remote), list(read(local, 8, **settings)))
    assert address_of(served) in repr(remote)
    requests = [request for request in served.requests if "shard-" in request[0]]
    assert len(requests) == len(set(requests)) > 2 * SHARDS
    assert_equal(list(read(address_of(served), 8, **settings)), list(read(local, 8, **settings)))
    assert [request for request in served.requests if "shard-" in request[0]] == requests  # all are in the cache


def test_int8_statistics_and_checks_are_those_of_the_local_dataset(tmp_path: Path) -> None:
    local = write(tmp_path / "served" / "dataset", dtype="int8")
    with serving(tmp_path / "served") as served:
        remote = ActivationDataset(address_of(served) + "/")
        remote.check()
        assert served.asked("00003.safetensors") == 1
        assert len(remote) == 70
        for ours, theirs in zip(remote.statistics, ActivationDataset(local).statistics, strict=True):
            assert torch.equal(ours.mean, theirs.mean)
        assert_equal(list(remote), list(ActivationDataset(local)))
        remote.verify()


def test_reading_goes_on_remotely_where_it_was_stopped_locally(served: StaticServer, local: Path) -> None:
    whole = list(read(local, 7, epochs=2, rank=1, world_size=2))
    begun = read(local, 7, epochs=2, rank=1, world_size=2)
    assert_equal(list(islice(begun, 4)), whole[:4])
    resumed = read(address_of(served), 7, epochs=2, rank=1, world_size=2)
    resumed.load_state_dict(begun.state_dict())
    assert_equal(list(resumed), whole[4:])


def test_answers_that_end_early_and_servers_that_are_busy_are_asked_again(served: StaticServer, local: Path) -> None:
    answered: set[tuple[str, str]] = set()

    def first_answer_fails(path: str, answer: Answer) -> Answer:
        request = path, answer.headers.get("Content-Range", "")
        if request in answered:
            return answer
        answered.add(request)
        if len(answered) % 3 == 0:
            return Answer(503, {"Retry-After": "0"}, b"busy")
        headers = {**answer.headers, "Content-Length": str(len(answer.content))}
        return replace(answer, headers=headers, content=answer.content[: len(answer.content) // 2])

    served.change = first_answer_fails
    assert_equal(list(read(address_of(served), 8)), list(read(local, 8)))
    begins = {int(asked.partition("=")[2].partition("-")[0]) for _, asked in served.requests if asked}
    assert any(begin % 100 for begin in begins)  # only what was missing is asked for again


@pytest.fixture
def start(local: Path) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Start a server in another process, on a port or, for 0, any free one."""
    running: list[subprocess.Popen[str]] = []

    def begin(port: int) -> subprocess.Popen[str]:
        command = [sys.executable, static_server.__file__, str(local.parent), str(port)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def test_a_server_that_is_killed_and_restarted_in_an_epoch_changes_no_batch(
    local: Path, start: Callable[[int], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PATIENCE", 60.0)
    process = start(0)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    expected = list(read(local, 8, epochs=2))
    batches = iter(read(f"http://127.0.0.1:{port}/dataset", 8, epochs=2))
    got = list(islice(batches, 2))
    process.kill()
    process.wait()
    timer = threading.Timer(0.3, start, (port,))
    timer.start()
    got += batches
    timer.join()
    assert_equal(got, expected)


def test_a_server_that_vanishes_is_one_sentence_and_what_was_fetched_is_used(served: StaticServer, local: Path) -> None:
    expected = list(read(local, 5, order="sequence"))
    got: list[ActivationBatch] = []
    with refuses(ServiceError, address_of(served)):
        for batch in read(address_of(served), 5, order="sequence"):
            got.append(batch)
            served.change = lambda path, answer: Answer(502, {}, b"")
    assert 2 <= len(got) < len(expected)
    assert_equal(got, expected[: len(got)])


def test_an_address_without_a_server_is_refused_soon() -> None:
    started = time.monotonic()
    with refuses(ServiceError, "http://127.0.0.1:1/nothing"):
        read("http://127.0.0.1:1/nothing", 8)
    assert time.monotonic() - started < 30


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
        (ServiceError, change_of("manifest.json", status=401), ("401", server.TOKEN, "is not set")),
        (ServiceError, change_of("safetensors", status=403), ("403", server.TOKEN)),
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
    served: StaticServer, error: type[Exception], change: Callable[[str, Answer], Answer], words: tuple[str, ...]
) -> None:
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
    monkeypatch.setenv(server.TOKEN, "s3cret")
    served.tokens.clear()
    served.change = change_of("manifest.json", status=401)
    with refuses(ServiceError, server.TOKEN, "refuses") as caught:
        read(address_of(served), 70)
    assert "s3cret" not in str(caught.value)
    assert served.tokens == {"Bearer s3cret"}
    for token in ("two words", "s3cret\nX-Header: 1", "sécret"):
        monkeypatch.setenv(server.TOKEN, token)
        with refuses(ConfigError, server.TOKEN) as caught:
            read(address_of(served), 70)
        assert "cret" not in str(caught.value)


def shards_in(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


def test_the_cache_keeps_to_its_limit_and_drops_what_was_not_used_for_longest(
    served: StaticServer, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = max(path.stat().st_size for path in local.glob("shard-*"))
    other = tmp_path / "cache" / "activations" / "other" / "shard-00000.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"x" * 100)
    monkeypatch.setenv(folder.CACHE_GB, str(3.5 * size / 1e9))
    batches = read(address_of(served), 5, order="sequence", epochs=2)
    for ours, theirs in zip(batches, read(local, 5, order="sequence", epochs=2), strict=True):
        assert_equal([ours], [theirs])
        assert sum(path.stat().st_size for path in shards_in(tmp_path / "cache")) <= 3.5 * size
    assert not other.exists()
    assert [path.name for path in shards_in(tmp_path / "cache")] == [
        f"shard-0000{number}.safetensors" for number in (4, 5, 6)
    ]
    assert served.asked("00000.safetensors") > served.asked("00006.safetensors") / 2 > 1


@pytest.mark.parametrize("value", ["many", "0", "-1", "nan", "inf", "1e-7"])
def test_a_cache_that_is_too_small_or_not_a_number_is_refused(
    served: StaticServer, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(folder.CACHE_GB, value)
    with refuses(ConfigError, folder.CACHE_GB):
        read(address_of(served), 8)


def test_readers_at_once_share_the_cache_and_fetch_a_shard_once(served: StaticServer, local: Path) -> None:
    expected, results = list(read(local, 8)), list[list[ActivationBatch]]()
    threads = [threading.Thread(target=lambda: results.append(list(read(address_of(served), 8)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for got in results:
        assert_equal(got, expected)
    requests = [request for request in served.requests if "shard-" in request[0]]
    assert len(requests) == len(set(requests))


def test_reading_that_is_given_up_ends_soon_although_the_server_does_not_answer(
    served: StaticServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PATIENCE", 600.0)
    batches = iter(read(address_of(served), 5, order="sequence"))
    next(batches)
    served.change = lambda path, answer: Answer(503, {}, b"")
    started = time.monotonic()
    del batches
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_sixteen_readers_at_once_read_every_byte_right(
    served: StaticServer, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = threading.local()
    monkeypatch.setattr(folder, "cache_directory", lambda: own.cache)
    monkeypatch.setattr(server, "PATIENCE", 60.0)
    monkeypatch.setenv(folder.CACHE_GB, str(2 * max(path.stat().st_size for path in local.glob("shard-*")) / 1e9))
    expected = digest(read(local, 8))
    end, epochs, problems = time.monotonic() + 10, list[str](), list[BaseException]()

    def keep_reading(number: int) -> None:
        own.cache = tmp_path / f"cache {number}"
        try:
            while time.monotonic() < end:
                epochs.append(digest(read(address_of(served), 8)))
        except BaseException as error:
            problems.append(error)
            raise

    threads = [threading.Thread(target=keep_reading, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(epochs) >= 16
    assert set(epochs) == {expected}


def digest(batches: Any) -> str:
    """SHA-256 of all numbers."""
    found = hashlib.sha256()
    for batch in batches:
        for tensor in batch:
            found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def test_a_newer_version_of_the_format_is_said_to_be_one(served: StaticServer, local: Path) -> None:
    path = local / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with refuses(CheckpointError, f"{address_of(served)}/manifest.json", "update OpenCLT"):
        read(address_of(served), 8)
