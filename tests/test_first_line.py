"""Processes that run one command together: the first one to end prints its line, and their mark does not stay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, subprocess, sys, time
from open_clt.errors import ConfigError
from open_clt.program import run_program
class Aborts:  # as threads of PyTorch's process groups sometimes do when Python destroys the groups
    def __del__(self, abort=os.abort):
        abort()
def program():
    order = sys.argv[1]
    rank = os.environ.get("LOCAL_RANK")
    if order != "alone":
        globals()["aborts"] = Aborts()
    if rank is None and order != "alone":  # as Lightning's first process does
        os.environ["LOCAL_RANK"] = rank = "0"
        members = [subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "LOCAL_RANK": str(number)})
                   for number in (1, 2)]
        if order == "last":
            [member.wait() for member in members]
        if order == "killed":
            os.kill(members[0].pid, signal.SIGKILL)
    if rank == "2" or order == "killed":
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer.")
    if rank == "1" and order == "late":
        time.sleep(1)
    if order == "bug":
        raise ZeroDivisionError
    raise ConfigError("a mistake")
raise SystemExit(run_program("name", program, ends_process=True))
"""


def ended(order: str, tmp_path: Path) -> tuple[int, list[str]]:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    (tmp_path / "temporary").mkdir(exist_ok=True)
    environment = {"TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, str(script), order], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr.strip().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("order", ["alone", "first", "last", "late"])
def test_of_processes_that_one_of_them_started_the_first_to_end_prints_its_line(order: str, tmp_path: Path) -> None:
    for _ in range(2):  # a second run of the same command prints its own line
        assert ended(order, tmp_path) == (2, ["name: a mistake"])
    assert [*(tmp_path / "temporary").iterdir()] == []


def test_a_process_that_is_killed_is_one_line_of_the_others(tmp_path: Path) -> None:
    status, lines = ended("killed", tmp_path)
    assert (status, len(lines)) == (1, 1)
    assert "Another process" in lines[0]


def test_a_bug_that_several_processes_meet_keeps_one_traceback(tmp_path: Path) -> None:
    status, lines = ended("bug", tmp_path)
    assert status == 1
    assert sum(line.startswith("Traceback") for line in lines) == 1
