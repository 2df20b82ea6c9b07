"""Session files outside of the explorer: Python reads and writes them without the packages of its pages."""

from __future__ import annotations

from pathlib import Path

import pytest

import open_clt
from open_clt.explorer.session.session import Session
from open_clt.explorer.session.session_file import SavedSession
from tests.commands.in_processes import run_in_processes
from tests.faults.artefacts import trace_of

_PROGRAM = """
import sys
for name in ("dash", "flask", "werkzeug", "plotly"):
    sys.modules[name] = None  # importing it fails
import open_clt
saved = open_clt.load_session(sys.argv[1])
open_clt.save_session(saved, sys.argv[2])
print(saved.session.labels["L0/5"], len(saved.circuit.groups))
"""


@pytest.mark.slow
def test_a_session_is_read_and_written_without_dash(tmp_path: Path) -> None:
    session = Session(pins=("0:1:5", "1:2:3"), labels={"L0/5": "Texas"})
    path = open_clt.save_session(SavedSession(session, trace_of(1), "abc"), tmp_path / "a.json")
    assert path == tmp_path / "a.json"
    circuit = open_clt.load_session(path).circuit
    assert circuit is not None
    assert run_in_processes(["-c", _PROGRAM, str(path), str(tmp_path / "b.json")]) == f"Texas {len(circuit.groups)}\n"
    assert (tmp_path / "b.json").read_bytes() == path.read_bytes()
