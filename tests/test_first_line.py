"""Processes that run one command together: the first one to end prints its line, and their mark does not stay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, subprocess, sys
from open_clt.errors import ConfigError
from open_clt.program import run_program
def program():
    if "LOCAL_RANK" not in os.environ and sys.argv[1:] != ["alone"]:  # as Lightning's first process does
        os.environ["LOCAL_RANK"] = "0"
        members = [subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "LOCAL_RANK": str(rank)})
                   for rank in (1, 2)]
        if sys.argv[1:] == ["last"]:
            [member.wait() for member in members]
    elif os.environ.get("LOCAL_RANK") == "2":
        raise RuntimeError("the peers are gone")
    raise ConfigError("a mistake")
raise SystemExit(run_program("name", program, ends_process=True))
"""


@pytest.mark.parametrize("order", ["alone", "first", "last"])
def test_of_processes_that_one_of_them_started_the_first_to_end_prints_its_line(order: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    (tmp_path / "temporary").mkdir()
    for _ in range(2):  # a second run of the same command prints its own line
        environment = {"TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(Path(__file__).parent.parent)}
        done = subprocess.run(
            [sys.executable, str(script), order], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        said = done.stderr.strip().splitlines()
        assert said == ["name: a mistake"] or (order != "alone" and said[-1] == "RuntimeError: the peers are gone")
    assert [*(tmp_path / "temporary").iterdir()] == []
