"""``open-clt upload``: its help, its mistakes, what it prints, and uploads that go on after either side was killed."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import httpx
import pytest

from open_clt.cli import main
from open_clt.data.dataset.manifest import MANIFEST, UNFINISHED
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.server import client
from open_clt.data.server.access import Access
from tests.commands.mistakes import assert_mistake
from tests.data.dataset.small_dataset import contents, write
from tests.data.server.processes import address_of, command, ends, serving
from tests.data.server.serving import running

TOKEN = "writing-token-of-tests"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory of a server."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token of the server is in the environment."""
    monkeypatch.setenv("OPEN_CLT_TOKEN", TOKEN)


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["upload", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    options = ("DIR", "URL", "--name", "--token-file", "--discard", "OPEN_CLT_TOKEN")
    assert [option for option in options if option not in printed] == []


@pytest.mark.slow
def test_a_dataset_is_uploaded_and_its_address_is_printed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write(tmp_path / "set")
    (tmp_path / "token").write_text(TOKEN)
    with running(root, Access([TOKEN.encode()])) as url:
        assert main(["upload", str(directory), url]) == 0
        assert capsys.readouterr().out == f"uploaded: {url}/datasets/set\n"
        monkeypatch.setenv("OPEN_CLT_TOKEN", "another-token-of-tests")
        assert main(["upload", str(directory), url, "--name", "b", "--token-file", str(tmp_path / "token")]) == 0
        assert httpx.get(f"{url}/datasets/b/{MANIFEST}").content == (directory / MANIFEST).read_bytes()
    assert contents(root / "b") == contents(directory)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["missing", "URL"], "missing"),
        (["unfinished", "URL"], "unfinished"),
        (["set", "lab:8042"], "lab:8042"),
        (["set", "http://user:key@lab"], "address"),
        (["set", "URL", "--name", "a/b"], "'a/b'"),
        (["set", "URL", "--token-file", "missing"], "missing"),
        (["set", "URL", "--token-file", "wrong"], "401"),
        (["set", "URL", "--nonsense"], "--nonsense"),
        (["set"], "URL"),
        (["set", "http://127.0.0.1:9"], "127.0.0.1:9"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    named: str,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "wait", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    (write(tmp_path / "unfinished") / MANIFEST).rename(tmp_path / "unfinished" / UNFINISHED)
    write(tmp_path / "set")
    (tmp_path / "wrong").write_text("another-token-of-tests")
    with running(root, Access([TOKEN.encode()])) as url:
        arguments = [url if argument == "URL" else argument for argument in arguments]
        assert_mistake(capsys, ["upload", *arguments], named)
    assert list(root.iterdir()) == []


@pytest.mark.slow
def test_a_harvest_is_uploaded_once_it_is_complete(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["harvest", "--tokens", "100", "--shard-tokens", "30", "--output", str(tmp_path / "set"), "--upload"]
    with running(root, Access([TOKEN.encode()])) as url:
        assert main([*command, url]) == 0
        assert f"uploaded: {url}/datasets/set\n" in capsys.readouterr().out
        assert main([*command, f"{url}/datasets/again"]) == 0  # the harvest is complete already
    assert contents(root / "set") == contents(root / "again") == contents(tmp_path / "set")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--upload", "lab"], "lab"),
        (["--upload", "URL/datasets/a b"], "'a b'"),
        (["--upload", "URL", "--token-file", "wrong"], "401"),
        (["--upload", "URL", "--token-file", "missing"], "missing"),
        (["--token-file", "wrong"], "--upload"),
    ],
    ids=str,
)
def test_a_server_that_would_refuse_a_harvest_is_found_before_it_begins(
    options: list[str],
    named: str,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong").write_text("another-token-of-tests")
    with running(root, Access([TOKEN.encode()])) as url:
        options = [option.replace("URL", url) for option in options]
        assert_mistake(capsys, ["harvest", "--output", "set", *options], named)
    assert not (tmp_path / "set").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other signals")
def test_an_upload_goes_on_after_its_server_was_killed(root: Path, tmp_path: Path) -> None:
    directory = write(tmp_path / "set")
    (tmp_path / "tokens").write_text(TOKEN)
    options = ("--token-file", str(tmp_path / "tokens"), "--log-file", str(tmp_path / "log"))
    with serving(root, *options) as first:
        url = address_of(first)
        port = int(url.rpartition(":")[2])
        sending = command("upload", str(directory), url, piece=20)
        with sending as process:
            wait_for_bytes(url, 500)
            first.kill()
            first.wait()
            with serving(root, *options, port=port) as second:
                assert address_of(second) == url
                printed, error = process.communicate(timeout=120)
                assert process.returncode == 0, error
                assert printed == f"uploaded: {url}/datasets/set\n"
    assert contents(root / "set") == contents(directory)
    ActivationDataset(root / "set").verify()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_same_command_goes_on_after_it_was_stopped(number: signal.Signals, root: Path, tmp_path: Path) -> None:
    directory = write(tmp_path / "set")
    (tmp_path / "tokens").write_text(TOKEN)
    options = ("--token-file", str(tmp_path / "tokens"), "--log-file", str(tmp_path / "log"))
    with serving(root, *options) as server:
        url = address_of(server)
        with command("upload", str(directory), url, piece=20) as process:
            wait_for_bytes(url, 500)
            process.send_signal(number)
            _, error = process.communicate(timeout=60)
            if number == signal.SIGINT:
                assert process.returncode == 130
                assert error.count("\n") == 1
                assert "goes on" in error
        received = bytes_of(url)
        assert received >= 500
        assert not (root / "set").exists()
        with command("upload", str(directory), url) as process:
            printed, error = process.communicate(timeout=60)
            assert (process.returncode, printed) == (0, f"uploaded: {url}/datasets/set\n"), error
        ends(server, signal.SIGTERM)
    assert contents(root / "set") == contents(directory)


def bytes_of(url: str) -> int:
    """The number of bytes that the server has of the upload."""
    answer = httpx.get(f"{url}/uploads/set")
    return sum(entry["received"] for entry in answer.json()["files"]) if answer.status_code == 200 else 0


def wait_for_bytes(url: str, number: int) -> None:
    """Wait until the server has a number of bytes of the upload."""
    deadline = time.monotonic() + 60
    while bytes_of(url) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)
