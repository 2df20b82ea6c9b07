"""``open-clt explore``: its help, its mistakes, the line with its address, and its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import open_clt.explorer.server.serve  # noqa: F401  (its types are read before a test replaces the explorer)
from open_clt.cli import main
from open_clt.explorer import explorer as explorer_module
from tests.commands.mistakes import assert_mistake

ROOT = Path(__file__).parents[2]
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["explore", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    options = ("--model", "--transcoder", "--features", "--max-feature-nodes", "--all-features", "--host", "--port")
    for option in (*options, "--allow-host", "--open", "--trust-code", "--device"):
        assert option in printed
    assert "127.0.0.1" in printed


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake is found before the models are loaded."""

    def fail(*_: object) -> None:
        raise AssertionError("the models are loaded")

    monkeypatch.setattr(explorer_module, "Explorer", fail)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--port", "70000"], "70000"),
        (["--port", "-1"], "-1"),
        (["--port", "http"], "http"),
        (["--max-feature-nodes", "0"], "0"),
        (["--max-feature-nodes", "many"], "many"),
        (["--host", "203.0.113.7"], "203.0.113.7"),
        (["--host", "no such host"], "no such host"),
        (["--host", "a" * 70], "--host"),
        (["--host", ""], "empty"),
        (["--host", "unix:///tmp/x"], "unix:///tmp/x"),
        (["--host", "127.0.0.1:80"], "127.0.0.1:80"),
        (["--features", "missing"], "missing"),
        (["--transcoder", "./missing"], "missing"),
        (["--transcoder", ""], "empty"),
        (["--model", "./missing"], "missing"),
        (["--device", "toaster"], "toaster"),
        (["--nonsense"], "--nonsense"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(
    options: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_mistake(capsys, ["explore", "--port", "0", *options], named)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_port_in_use_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert_mistake(capsys, ["explore", "--port", str(port)], port, "--port")


@pytest.mark.usefixtures("nothing_is_loaded")
def test_without_dash_the_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dash", None)
    assert_mistake(capsys, ["explore"], "pip install open-clt[explorer]")


@contextmanager
def started(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "open_clt", "explore", "--port", "0", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPEN_CLT_CACHE": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_restore_handlers,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _restore_handlers() -> None:
    """A suite that runs in the background ignores signals, and so would the command."""
    for number in STATUS:
        signal.signal(number, signal.SIG_DFL)


def _address(process: subprocess.Popen[str]) -> str:
    """The address that the command prints as its only line."""
    assert process.stdout is not None
    line = process.stdout.readline()
    matched = re.fullmatch(r"explorer: (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", line)
    assert matched, line
    return matched[1]


def _ends(process: subprocess.Popen[str], number: int) -> None:
    """After a signal, the command ends with its status, one line on stderr, and nothing more on stdout."""
    process.send_signal(number)
    printed, error = process.communicate(timeout=120)
    assert (process.returncode, printed) == (STATUS[number], "")
    assert error.count("\n") == 1, error
    assert error.startswith("open-clt: ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other signals")
@pytest.mark.parametrize("number", STATUS)
def test_a_signal_ends_the_explorer_while_its_models_are_loading(number: int, tmp_path: Path) -> None:
    with started(tmp_path) as process:
        _address(process)
        _ends(process, number)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other signals")
@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("after", [0.5, 5.0])
def test_a_signal_ends_the_explorer_at_any_time(number: int, after: float, tmp_path: Path) -> None:
    with started(tmp_path) as process:
        with urllib.request.urlopen(f"{_address(process)}api/status") as answer:
            assert b'"ready"' in answer.read()
        time.sleep(after)
        _ends(process, number)
