"""``open-clt doctor``: what it finds, what it advises, and its status."""

from __future__ import annotations

import json

import pytest

from open_clt.cli import main
from open_clt.commands import doctor
from open_clt.commands.doctor import Finding
from open_clt.embedded import MODEL_DIRECTORY
from open_clt.errors import LanguageModelError
from open_clt.hub import reachable
from tests.commands.mistakes import assert_mistake


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_self_test", lambda: Finding("self-test", "ok", "done"))
    monkeypatch.setattr(reachable, "answers", lambda _: False)


@pytest.mark.usefixtures("healthy")
def test_a_healthy_installation_has_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for part in ("OpenCLT", "torch", "transformer-lens", "extras", "explorer", "memory", "GiB", "hub", "self-test"):
        assert part in printed


def test_a_problem_has_status_1_and_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_self_test", lambda: Finding("self-test", "problem", "broken", "repair it"))
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["findings"][-1] == {
        "subject": "self-test",
        "state": "problem",
        "says": "broken",
        "advice": "repair it",
    }


@pytest.mark.usefixtures("healthy")
def test_packages_that_are_missing_or_too_old_are_problems_and_extras_are_notes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["absent-package>=1", "torch<1", "absent-extra>=2 ; extra == 'explorer'", 'pytest>=1 ; extra == "gguf"']
    monkeypatch.setattr(doctor, "requires", lambda _: lines)
    assert main(["doctor", "--json"]) == 1
    found = {(each["state"], each["says"]): each["advice"] for each in json.loads(capsys.readouterr().out)["findings"]}
    assert found["problem", "absent-package is missing"]
    assert any(state == "problem" and "torch is" in says and "<1" in says for state, says in found)
    assert "open-clt[explorer]" in found["note", "explorer: absent-extra not installed"]
    assert found["ok", "gguf: installed"] == ""


@pytest.mark.usefixtures("healthy")
def test_the_hub_is_asked_unless_the_user_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in doctor._hub().says
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for answer, state in ((True, "ok"), (False, "note")):
        monkeypatch.setattr(reachable, "answers", lambda _, answer=answer: answer)
        assert doctor._hub().state == state


def test_too_little_memory_is_a_note_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clt import memory

    monkeypatch.setattr(memory, "available_memory", lambda: 2**30)
    assert doctor._memory().state == "note"
    assert "1.0 GiB" in doctor._memory().says


def test_the_self_test_explains_the_embedded_model() -> None:
    assert MODEL_DIRECTORY.exists()
    finding = doctor._self_test()
    assert (finding.state, finding.advice) == ("ok", ""), finding
    assert " Austin" in finding.says


def test_a_self_test_that_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder

    for error in (LanguageModelError("the weights are gone"), RuntimeError("a library is broken")):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(OpenCrossLayerTranscoder, "from_pretrained", fail)
        finding = doctor._self_test()
        assert finding.state == "problem"
        assert str(error) in finding.says


def test_a_word_that_is_not_an_option_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert_mistake(capsys, ["doctor", "--jsno"], "--jsno")
