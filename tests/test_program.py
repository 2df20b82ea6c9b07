"""Programs: the exit status and the line on stderr after signals, mistakes and closed outputs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from open_clt.errors import ConfigError
from open_clt.program import Stopped, run_program

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALS = pytest.mark.parametrize(("number", "status"), list(zip(HANDLED, (130, 143, 129), strict=True)), ids=str)


@pytest.fixture(autouse=True)
def signals_are_not_ignored() -> Iterator[None]:
    """A suite that runs in the background ignores Ctrl-C and the end of its terminal, and so would the program."""
    former = {
        number: signal.signal(number, handler)
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL))
    }
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def received(number: int) -> int:
    signal.raise_signal(number)
    return 0


def replaced(number: int) -> int:
    """A library turns the exception into one of its own."""
    try:
        return received(number)
    except BaseException as error:
        raise RuntimeError("the library failed") from error


def exited(number: int) -> int:
    try:
        return received(number)
    except Stopped:
        sys.exit(1)


@SIGNALS
@pytest.mark.parametrize("program", [received, replaced, exited])
def test_a_signal_ends_a_program_with_its_status_and_one_line(
    program: Callable[[int], int], number: int, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(each) for each in HANDLED]
    assert run_program("name", lambda: program(number)) == status
    printed, error = capsys.readouterr()
    assert (printed, error.count("\n")) == ("", 1)
    assert error.startswith("name: ")
    assert [signal.getsignal(each) for each in HANDLED] == handlers


def test_the_line_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> int:
        raise Stopped(signal.SIGTERM, "Go on with --more.")

    assert run_program("name", program) == 143
    assert "Go on with --more." in capsys.readouterr().err


def test_of_several_processes_that_stop_together_only_the_first_prints_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def program() -> int:
        raise Stopped(signal.SIGTERM, silent=True)

    assert run_program("name", program) == 143
    assert capsys.readouterr() == ("", "")


def test_a_signal_that_the_process_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert run_program("name", lambda: received(signal.SIGINT)) == 0


@pytest.mark.parametrize("error", [ConfigError("a mistake"), OSError(28, "No space left on device", "a.txt")])
def test_a_mistake_is_status_2_and_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> int:
        raise error

    assert run_program("name", program) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_of_several_processes_of_torchrun_the_first_to_end_prints_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors: list[BaseException] = [ConfigError("first"), ConfigError("second"), Stopped(signal.SIGTERM)]
    lines: list[str] = []
    for rank, error in enumerate(errors):

        def program(error: BaseException = error) -> int:
            raise error

        (tmp_path / str(rank)).mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / str(rank) / "error.json"))
        assert run_program("name", program) == (143 if isinstance(error, Stopped) else 2)
        lines += capsys.readouterr().err.splitlines()
    assert lines == ["name: first"]


def test_torchrun_ends_a_process_that_imports_without_a_second_line(tmp_path: Path) -> None:
    (tmp_path / "importing.py").write_text("import signal\nsignal.raise_signal(signal.SIGTERM)\n")
    (tmp_path / "0").mkdir()
    run_it = "run_program('name', lambda: __import__('importing'), ends_process=True)"
    code = f"from open_clt.program import run_program\n{run_it}"
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": paths, "TORCHELASTIC_ERROR_FILE": str(tmp_path / "0" / "error.json")}
    lines = []
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 143
        lines += run.stderr.splitlines()
    assert lines == ["name: Terminated (SIGTERM)."]


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_program("name", lambda: 1 // 0)


LOST = """
import signal
class Dying:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
def program():
    dying = Dying()
    del dying
    return 0
"""
SWALLOWED = """
import signal
def program():
    for _ in range(2):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            pass
    return 0
"""
LATE = """
import atexit, signal
def program():
    atexit.register(signal.raise_signal, signal.SIGTERM)
    return 0
"""
LAST = """
import os, signal
class Dying:
    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIGTERM):
        kill(process, number)
dying = Dying()
def program():
    return 0
"""
EARLY = """
import signal
from open_clt.interrupts import end_on_signals
end_on_signals("name")
signal.raise_signal(signal.SIGTERM)
"""


IMPORTING = """
import sys
sys.path.insert(0, {folder!r})
def program():
    try:
        import discards
    except BaseException:
        pass
    return 0
"""


@pytest.mark.parametrize("script", [LOST, SWALLOWED, LATE, EARLY], ids=["lost", "swallowed", "late", "early"])
def test_a_signal_ends_a_process_at_any_time_with_one_line(script: str) -> None:
    end = "from open_clt.program import run_program\nraise SystemExit(run_program('name', program, ends_process=True))"
    result = subprocess.run([sys.executable, "-c", script + end], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (143, 1), result.stderr
    assert result.stderr.startswith("name: ")


def test_a_signal_while_python_frees_its_memory_changes_nothing() -> None:
    end = "from open_clt.program import run_program\nraise SystemExit(run_program('name', program, ends_process=True))"
    result = subprocess.run([sys.executable, "-c", LAST + end], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_signal_during_an_import_ends_a_process_although_libraries_discard_exceptions(tmp_path: Path) -> None:
    (tmp_path / "discards.py").write_text("import signal\nsignal.raise_signal(signal.SIGTERM)\n")
    test_a_signal_ends_a_process_at_any_time_with_one_line(IMPORTING.format(folder=str(tmp_path)))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_an_output_that_cannot_be_written_is_status_2_and_one_line() -> None:
    code = "from open_clt.program import run_program\nraise SystemExit(run_program('name', lambda: print('word') or 0))"
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr


PRINTING = """
import os, sys
from open_clt.errors import ConfigError
from open_clt.program import run_program
def program():
    print("word", chr(0x1F600))
    with open(sys.argv[1], "w") as file:
        for number in (1, 2):
            os.write(number, b"line")
        assert file.fileno() > 2
    raise ConfigError("a mistake")
raise SystemExit(run_program("name", program, ends_process=True))
"""


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_or_ascii_outputs_change_neither_the_status_nor_other_files(closed: str, tmp_path: Path) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", PRINTING, str(tmp_path / "file")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 2, result.stderr
    assert (tmp_path / "file").read_text() == ""
    assert not closed.endswith("2>&-") or result.stderr == ""
