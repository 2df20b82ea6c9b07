"""The explorer's guide: its pictures exist, its numbers are those of the circuit, and its Python code runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from open_clt.embedded import start_graph
from open_clt.explorer.session.session import Effect, Group, Likely, Run, Session, Steer
from open_clt.explorer.session.session_file import SavedSession, load_session, save_session
from open_clt.explorer.traces import START, Trace
from tools.explorer_pictures import CAPITAL, DALLAS, SAY_A_CAPITAL, TEXAS

_REPOSITORY = Path(__file__).resolve().parents[2]
_GUIDE = (_REPOSITORY / "docs" / "explorer.md").read_text(encoding="utf-8")
_GROUPS = {"say a capital": SAY_A_CAPITAL, "Texas": TEXAS, "capital": CAPITAL, "Dallas": DALLAS}


@pytest.fixture(scope="module")
def session_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session of the guide, with one run."""
    groups = tuple(Group(name=name, members=members) for name, members in _GROUPS.items())
    likely, effects = (Likely("Austin", 1.0),), (Effect("Austin", -1.0, -1.0),)
    steers = (Steer(name="capital", members=CAPITAL),)
    run = Run(steers=steers, frozen="nothing", before=likely, after=likely, effects=effects, kl_divergence=0.0)
    pins = tuple(member for group in groups for member in group.members)
    session = Session(graph=START, pins=pins, groups=groups, runs=(run,))
    trace = Trace(key=START, graph=start_graph())
    return save_session(SavedSession(session, trace, ""), tmp_path_factory.mktemp("guide") / "session.json")


def test_the_pictures_of_the_guide_exist_and_are_small() -> None:
    pictures = [_REPOSITORY / "docs" / link for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", _GUIDE)]
    assert len(pictures) == 10
    assert sum(picture.stat().st_size for picture in pictures) < 3e6


def test_the_weights_in_the_guide_are_those_of_its_circuit(session_file: Path) -> None:
    circuit = load_session(session_file).circuit
    assert circuit is not None
    names = [{"logit:8:1475": "Austin"}.get(group.label, group.label) for group in circuit.groups]
    columns = (column.tolist() for column in circuit.edges)
    weights = {(names[source], names[target]): weight for target, source, weight in zip(*columns, strict=True)}
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([+−][\d.]+) \|$", _GUIDE, flags=re.MULTILINE)
    assert len(rows) == 9
    for source, target, weight in rows:
        assert float(weight.replace("−", "-")) == pytest.approx(weights[source, target], abs=0.011)
    assert circuit.scores() == pytest.approx((0.22, 0.49), abs=0.01)


def test_the_python_code_of_the_guide_runs(
    session_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(session_file.parent)
    [block] = [code for code in re.findall(r"```python\n(.*?)```", _GUIDE, re.DOTALL) if "load_session" in code]
    exec(compile(block, "docs/explorer.md", "exec"), {})
    assert "Dallas → Texas +0.77" in capsys.readouterr().out
