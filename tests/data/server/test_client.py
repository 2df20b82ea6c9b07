"""The client of uploads: it goes on where an upload stopped, asks again, gives up in the end, and says why."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from open_clt.data.dataset.manifest import MANIFEST, UNFINISHED, shard_name
from open_clt.data.server import client
from open_clt.data.server.access import Access, own_token
from open_clt.data.server.client import Target, check_upload, target_of, upload
from open_clt.errors import CheckpointError, ConfigError, MissingExtraError, ServiceError
from tests.data.dataset.small_dataset import contents, write
from tests.data.server.serving import running
from tests.refusals import refuses

TOKEN = "writing-token-of-tests"
ACCESS = Access([TOKEN.encode()])


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that tests only read."""
    return write(tmp_path_factory.mktemp("source") / "set")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory of a server."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client does not pause; the pauses that it would make."""
    pauses: list[float] = []
    monkeypatch.setattr(client, "wait", pauses.append)
    return pauses


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PIECE", 300)


@contextmanager
def failing(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[httpx.Request], httpx.Response | Exception | None]
) -> Generator[list[httpx.Request]]:
    """Requests of the client fail as a function says, or get another answer; the requests that are sent."""
    requests: list[httpx.Request] = []
    send = httpx.Client.send

    def send_or_fail(self: httpx.Client, request: httpx.Request, **settings: Any) -> httpx.Response:
        requests.append(request)
        failure = fails(request)
        if isinstance(failure, Exception):
            if failure.args == ("after",):  # the server gets the request, and its answer is lost
                send(self, request, **settings)
            raise failure
        return failure or send(self, request, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(httpx.Client, "send", send_or_fail)
        yield requests


@pytest.mark.slow
def test_a_dataset_is_uploaded_whole_and_a_second_upload_sends_nothing(source: Path, root: Path) -> None:
    seen: list[int] = []
    with running(root, ACCESS) as url:
        check_upload(target_of(url, source), TOKEN)
        upload(source, target_of(url, source), token=TOKEN, on_bytes=seen.append)
        assert seen == sorted(seen)
        assert seen[-1] == sum(len(content) for name, content in contents(source).items() if name != MANIFEST)
        upload(source, target_of(f"{url}/datasets/set", source), token=TOKEN, on_bytes=seen.append)
        upload(source, target_of(f"{url}/", source, "other"), token=TOKEN)
    assert contents(root / "set") == contents(root / "other") == contents(source)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kind", ["before", "after", "busy"])
def test_any_request_may_fail(
    kind: str, source: Path, root: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: list[float]
) -> None:
    random = Random(0)

    def fails(request: httpx.Request) -> httpx.Response | Exception | None:
        if random.random() > 0.3:
            return None
        return httpx.Response(503, request=request) if kind == "busy" else httpx.ReadError(kind)

    with running(root, ACCESS) as url, failing(monkeypatch, fails):
        upload(source, target_of(url, source), token=TOKEN)
    assert contents(root / "set") == contents(source)
    assert no_pauses


@pytest.mark.usefixtures("small_pieces")
def test_an_upload_goes_on_where_another_client_stopped(
    source: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(number: int) -> None:
        if number >= 1500:
            raise KeyboardInterrupt

    with running(root, ACCESS) as url:
        with pytest.raises(KeyboardInterrupt):
            upload(source, target_of(url, source), token=TOKEN, on_bytes=interrupted)
        seen: list[int] = []
        with failing(monkeypatch, lambda request: None) as requests:
            upload(source, target_of(url, source), token=TOKEN, on_bytes=seen.append)
    assert seen[0] >= 1500
    assert sum(len(request.content) for request in requests if request.method == "PATCH") == seen[-1] - seen[0]
    assert contents(root / "set") == contents(source)


@pytest.mark.usefixtures("small_pieces")
def test_uploads_at_once_give_one_dataset(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "wait", lambda seconds: time.sleep(seconds / 10))
    failures: list[BaseException] = []

    def send(url: str) -> None:
        try:
            upload(source, target_of(url, source), token=TOKEN)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    with running(root, ACCESS) as url:
        threads = [threading.Thread(target=send, args=(url,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert contents(root / "set") == contents(source)


def test_the_client_gives_up_after_longer_and_longer_pauses(
    source: Path, no_pauses: list[float], unused_tcp_port: int
) -> None:
    address = f"http://127.0.0.1:{unused_tcp_port}"
    with refuses(ServiceError, address, client.TRIES):
        upload(source, target_of(address, source), token=TOKEN)
    assert no_pauses == sorted(no_pauses)
    assert len(no_pauses) == client.TRIES - 1


@pytest.fixture
def unused_tcp_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("another-token-of-tests", 401)])
def test_a_wrong_token_is_one_sentence_without_the_token(
    token: str | None, status: int, source: Path, root: Path, no_pauses: list[float]
) -> None:
    with running(root, ACCESS) as url, refuses(ServiceError, url, status, "OPEN_CLT_TOKEN") as raised:
        upload(source, target_of(url, source), token=token)
    assert no_pauses == []
    assert token is None or token not in str(raised.value)


@pytest.mark.slow
def test_a_server_that_only_reads_refuses_before_anything_is_sent(source: Path, root: Path) -> None:
    with running(root) as url, refuses(ServiceError, url, 403):
        check_upload(target_of(url, source), TOKEN)


def test_a_name_that_is_taken_is_named(source: Path, root: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", seed=6)
    with running(root, ACCESS) as url:
        target = target_of(url, source)
        upload(source, target, token=TOKEN)
        with refuses(ServiceError, "set", 409):
            upload(other, target, token=TOKEN)
        with refuses(ServiceError, "set", 409):
            upload(other, target, token=TOKEN, discard=True)
    assert contents(root / "set") == contents(source)


def test_what_an_unfinished_upload_left_is_discarded_if_the_user_says_so(
    source: Path, root: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "other", seed=6)

    def interrupted(number: int) -> None:
        if number >= 1500:
            raise KeyboardInterrupt

    with running(root, ACCESS) as url:
        target = target_of(url, source)
        with pytest.raises(KeyboardInterrupt):
            upload(other, target, token=TOKEN, on_bytes=interrupted)
        with refuses(ServiceError, "set", 409):
            upload(source, target, token=TOKEN)
        upload(source, target, token=TOKEN, discard=True)
    assert contents(root / "set") == contents(source)


@pytest.mark.parametrize("damage", ["changed", "short", "long"])
def test_a_damaged_shard_is_named(damage: str, root: Path, tmp_path: Path) -> None:
    directory = write(tmp_path / "set")
    path = directory / shard_name(2)
    content = path.read_bytes()
    path.write_bytes({"changed": content[:-1] + b"!", "short": content[:-1], "long": content + b"!"}[damage])
    with running(root, ACCESS) as url, refuses(CheckpointError, path):
        upload(directory, target_of(url, directory), token=TOKEN)
    assert not (root / "set").exists()


def test_an_unfinished_dataset_is_not_uploaded(root: Path, tmp_path: Path) -> None:
    directory = write(tmp_path / "set")
    (directory / MANIFEST).rename(directory / UNFINISHED)
    with running(root, ACCESS) as url, pytest.raises(CheckpointError, match=str(directory)):
        upload(directory, target_of(url, directory), token=TOKEN)
    assert list(root.iterdir()) == []


def test_a_server_of_something_else_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for status, content in ((200, b"<html>"), (200, b"[]"), (200, b"{}"), (404, b"<html>"), (405, b""), (301, b"")):
        answer = httpx.Response(status, content=content, headers={"Location": "http://elsewhere"})

        def answers(request: httpx.Request, answer: httpx.Response = answer) -> httpx.Response:
            answer.request = request
            return answer

        with failing(monkeypatch, answers), refuses(ServiceError, "http://lab.example"):
            upload(source, target_of("http://lab.example", source), token=TOKEN)


@pytest.mark.parametrize(
    "url", ["", "lab:8042", "ftp://lab", "http://", "http://user:key@lab", "http://lab?x=1", "http://[", "http://lab:x"]
)
def test_what_is_not_an_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        target_of(url, Path("set"))


def test_an_address_may_name_the_dataset(tmp_path: Path) -> None:
    assert target_of("http://lab:8042", tmp_path / "a").url == "http://lab:8042/datasets/a"
    assert target_of("http://lab/x/", tmp_path / "a", "b").url == "http://lab/x/datasets/b"
    assert target_of("http://lab/datasets/c/", tmp_path / "a") == Target(server="http://lab", name="c")
    with refuses(ConfigError, "'c'", "'d'"):
        target_of("http://lab/datasets/c", tmp_path, "d")


def test_the_token_is_that_of_a_file_or_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPEN_CLT_TOKEN", raising=False)
    assert own_token(None) is None
    monkeypatch.setenv("OPEN_CLT_TOKEN", f" {TOKEN}\n")
    assert own_token(None) == TOKEN
    (tmp_path / "token").write_text(f"{TOKEN}-2\n")
    assert own_token(tmp_path / "token") == f"{TOKEN}-2"
    monkeypatch.setenv("OPEN_CLT_TOKEN", "secret é")
    with refuses(ConfigError, "OPEN_CLT_TOKEN") as raised:
        own_token(None)
    assert "secret" not in str(raised.value)


def test_without_httpx_the_extra_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtraError, match=r"pip install open-clt\[server\]"):
        upload(source, target_of("http://lab", source))
