"""``open-clt verify`` and ``open-clt attribute --circuit``: they measure and write what the library does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from open_clt.circuits.circuit import Circuit
from open_clt.circuits.claims import FiresClaim, NamedSupernode
from open_clt.cli import main
from open_clt.embedded import TRANSCODER_DIRECTORY
from open_clt.evaluation.calibration import load_calibration
from tests.commands.mistakes import assert_mistake

HOUSTON = "The capital of the state containing Houston is"


def circuit(needed: float) -> Circuit:
    """A circuit whose one claim is measured in a second."""
    return Circuit(
        model="embedded",
        transcoder_hash=load_calibration(TRANSCODER_DIRECTORY).transcoder_hash,
        prompt=HOUSTON,
        source=7,
        supernodes=(NamedSupernode(name="capital", members=("2:8:244",)),),
        claims=(FiresClaim(supernode="capital", measured=0.9, needed=needed),),
    )


def test_a_circuit_whose_claims_hold_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = circuit(needed=0.3).save(tmp_path / "circuit.yaml")
    assert main(["verify", str(path), "--max-tokens", "2000"]) == 0
    printed, error = capsys.readouterr()
    assert "holds" in printed
    assert error == ""


def test_a_claim_that_fails_is_named_and_the_status_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = circuit(needed=1.01).save(tmp_path / "circuit.yaml")
    assert main(["verify", str(path), "--max-tokens", "2000", "--json"]) == 1
    printed, error = capsys.readouterr()
    report = json.loads(printed)
    assert not report["passed"]
    assert report["claims"][0]["kind"] == "fires"
    assert error.count("\n") == 1
    assert "'capital'" in error


@pytest.mark.slow
def test_a_circuit_that_attribute_writes_can_be_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "circuit.yaml"
    assert main(["attribute", "--prompt", HOUSTON, "--no-faithfulness", "--circuit", str(path)]) == 0
    assert "hidden hop after ' Houston': 'Texas'" in capsys.readouterr().out
    assert main(["verify", str(path)]) == 0
    planted = Circuit.load(path)
    wrong = replace(planted.supernodes[0], name="Ohio")
    claims = tuple(replace(claim, supernode="Ohio") for claim in planted.claims)
    replace(planted, supernodes=(wrong,), claims=claims).save(path)
    assert main(["verify", str(path)]) == 1


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = circuit(needed=0.5).save(tmp_path / "circuit.yaml")
    missing = tmp_path / "missing.yaml"
    assert_mistake(capsys, ["verify"], "FILE")
    assert_mistake(capsys, ["verify", str(missing)], missing)
    assert_mistake(capsys, ["verify", str(path), "--max-tokens", "1"], "--max-tokens", 1)
    assert_mistake(capsys, ["verify", str(path), "--seed", "-1"], "--seed", -1)
    assert_mistake(capsys, ["verify", str(path), "--transcoder", str(missing)], missing)
    replace(circuit(needed=0.5), source=40).save(path)
    assert_mistake(capsys, ["verify", str(path), "--max-tokens", "2000"], 40)
    attribute = ["attribute", "--prompt", HOUSTON]
    assert_mistake(capsys, [*attribute, "--text", "file.txt"], "--text", "--circuit")
    assert_mistake(capsys, [*attribute, "--prompt", "two", "--circuit", str(path)], "--circuit")
    assert_mistake(capsys, [*attribute, "--chat", "--circuit", str(path)], "--circuit")
    assert_mistake(capsys, [*attribute, "--circuit", str(tmp_path)], tmp_path)
