"""The ten steps of the guide in a browser, as ``make explorer-pictures`` performs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from open_clt.explorer.session.session_file import load_session
from tools.explorer_pictures import CAPITAL, Visitor, perform


def test_the_ten_steps_of_the_guide_lead_to_its_circuit(page: Any, tmp_path: Path) -> None:
    saved = load_session(perform(Visitor(page, tmp_path)))
    assert [group.name for group in saved.session.groups] == ["say a capital", "Texas", "capital", "Dallas"]
    assert set(saved.session.labels.values()) == {"say a capital", "Texas"}
    assert saved.circuit is not None
    latest, former = saved.session.runs
    assert latest.steers[0].members == CAPITAL
    assert latest.after[0].token.strip() == "Texas"
    assert latest.after[0].probability > 0.7
    assert former.after[0].token.strip() == "Boise"
    assert len(list(tmp_path.glob("step-*.png"))) == 10
