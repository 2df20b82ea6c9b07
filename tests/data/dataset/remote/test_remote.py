"""A dataset on a server is read as if it was local, also if the server is restarted, with a bounded cache."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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
from open_clt.errors import ConfigError, ServiceError
from tests.data.dataset.remote import static_server
from tests.data.dataset.remote.served_dataset import address_of, assert_equal
from tests.data.dataset.remote.static_server import Answer, StaticServer, serving
from tests.data.dataset.small_dataset import write
from tests.refusals import refuses

SHARDS = 7


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_server_that_is_killed_and_restarted_in_an_epoch_changes_no_batch(
    local: Path, start: Callable[[int], subprocess.Popen[str]]
) -> None:
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


def test_a_server_that_vanishes_is_one_sentence_and_what_was_fetched_is_used(
    served: StaticServer, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(read(local, 5, order="sequence"))
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    got: list[ActivationBatch] = []
    with refuses(ServiceError, address_of(served)):
        for batch in read(address_of(served), 5, order="sequence"):
            got.append(batch)
            served.change = lambda path, answer: Answer(502, {}, b"")
    assert 2 <= len(got) < len(expected)
    assert_equal(got, expected[: len(got)])


def test_an_address_without_a_server_is_refused_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "FIRST_PATIENCE", 0.3)
    started = time.monotonic()
    with refuses(ServiceError, "http://127.0.0.1:1/nothing"):
        read("http://127.0.0.1:1/nothing", 8)
    assert time.monotonic() - started < 30


def shards_in(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


def bytes_in(cache: Path) -> int:
    """The bytes of all shards in a cache; one that the reading thread deletes or renames meanwhile counts as none."""
    total = 0
    for path in shards_in(cache):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


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
        assert bytes_in(tmp_path / "cache") <= 3.5 * size
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
