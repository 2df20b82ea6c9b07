"""``open-clt serve``: its help, its mistakes, what it prints, and its end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from open_clt import files
from open_clt.cli import main
from open_clt.data.dataset.manifest import MANIFEST, shard_name
from open_clt.data.server import serve
from tests.commands.mistakes import assert_mistake
from tests.data.dataset.small_dataset import write
from tests.data.server.processes import STATUS, address_of, ends, serving

OPTIONS = ("--host", "--port", "--allow-host", "--token-file", "--read-token-file", "--log-file")


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert [option for option in (*OPTIONS, "DIR", "127.0.0.1") if option not in printed] == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["missing"], "missing"),
        (["file"], "file"),
        ([], "DIR"),
        ([".", "--port", "70000"], "70000"),
        ([".", "--host", "203.0.113.7"], "203.0.113.7"),
        ([".", "--host", ""], "empty"),
        ([".", "--host", "127.0.0.1:80"], "127.0.0.1:80"),
        ([".", "--read-token-file", "missing"], "missing"),
        ([".", "--read-token-file", "file"], "file"),
        ([".", "--token-file", "file"], "file"),
        ([".", "--log-file", "folder"], "folder"),
        ([".", "--nonsense"], "--nonsense"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(
    options: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("short\n")
    (tmp_path / "folder").mkdir()
    assert_mistake(capsys, ["serve", "--port", "0", *options], named)


def test_a_port_in_use_is_a_mistake(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert_mistake(capsys, ["serve", str(tmp_path), "--port", str(port)], port, "--port")


def test_without_fastapi_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert_mistake(capsys, ["serve", str(tmp_path)], "pip install open-clt[server]")


@pytest.mark.parametrize("with_token", [True, False])
def test_a_server_that_others_can_reach_says_so(
    with_token: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "serve", lambda *_: None)
    (tmp_path / "tokens").write_text("a-token-for-reading\n")
    options = ["--read-token-file", str(tmp_path / "tokens")] if with_token else []
    assert main(["serve", str(tmp_path), "--port", "0", "--host", "0.0.0.0", *options]) == 0
    printed = capsys.readouterr().out
    assert "0.0.0.0 can read" in printed
    assert ("without a token" in printed) == (not with_token)
    assert "--allow-host" in printed
    assert main(["serve", str(tmp_path), "--port", "0", "--host", "0.0.0.0", "--allow-host", "lab"]) == 0
    assert "--allow-host" not in capsys.readouterr().out
    assert main(["serve", str(tmp_path), "--port", "0", *options]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_two_servers_do_not_take_uploads_into_one_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "serve", lambda *_: None)
    (tmp_path / "tokens").write_text("a-token-for-writing\n")
    (tmp_path / "data").mkdir()
    options = ["serve", str(tmp_path / "data"), "--port", "0"]
    with files.locked(tmp_path / "data"):
        assert_mistake(capsys, [*options, "--token-file", str(tmp_path / "tokens")], tmp_path / "data")
        assert main(options) == 0
    assert main([*options, "--token-file", str(tmp_path / "tokens")]) == 0
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other signals")
@pytest.mark.parametrize("number", STATUS)
def test_a_real_server_answers_and_ends_with_a_signal(number: int, tmp_path: Path) -> None:
    directory = write(tmp_path / "data" / "set")
    with serving(tmp_path / "data") as process:
        url = address_of(process)
        for file in (MANIFEST, shard_name(0)):
            with urllib.request.urlopen(f"{url}/datasets/set/{file}") as answer:
                assert answer.read() == (directory / file).read_bytes()
        log = ends(process, number)
    assert [json.loads(line)["status"] for line in log.splitlines()] == [200, 200]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other signals")
def test_a_server_that_ends_finishes_its_answers(tmp_path: Path) -> None:
    directory = write(tmp_path / "data" / "set")
    large = directory / shard_name(0)
    with large.open("ab") as file:
        file.write(bytes(2**26))
    with serving(tmp_path / "data", "--log-file", str(tmp_path / "log")) as process:
        url = address_of(process)
        with urllib.request.urlopen(f"{url}/datasets/set/{large.name}") as answer:
            first = answer.read(1000)
            process.send_signal(signal.SIGTERM)
            rest = answer.read()
        assert first + rest == large.read_bytes()
        _, error = process.communicate(timeout=60)
        assert (process.returncode, error.count("\n")) == (143, 1)
    assert json.loads((tmp_path / "log").read_text())["bytes"] == large.stat().st_size


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other signals")
def test_a_second_signal_ends_a_server_whose_answer_does_not_end(tmp_path: Path) -> None:
    directory = write(tmp_path / "data" / "set")
    with (directory / shard_name(0)).open("ab") as file:
        file.truncate(2**28)
    with serving(tmp_path / "data", "--log-file", str(tmp_path / "log")) as process:
        url = address_of(process)
        with urllib.request.urlopen(f"{url}/datasets/set/{shard_name(0)}") as answer:
            assert answer.read(1000)  # the rest is not read, so the server cannot send it
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=2)
            ends(process, signal.SIGTERM)
