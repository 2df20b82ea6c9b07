"""Circuits as files: what is saved is read, and what contradicts itself is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from open_clt.circuits.circuit import Circuit
from open_clt.circuits.claims import AblationClaim, FiresClaim, NamedSupernode, StandsClaim, SwapClaim
from open_clt.errors import CheckpointError, ConfigError

TEXAS = NamedSupernode(name="Texas", members=("1:8:198", "0:1:2"))
CLAIMS = (
    FiresClaim(supernode="Texas", measured=0.75),
    StandsClaim(supernode="Texas", measured=0.8, needed=0.5),
    AblationClaim(supernode="Texas", output=" Austin"),
    SwapClaim(
        supernode="Texas", output=" Austin", other="Ohio", other_source=" Dayton", other_members=("2:8:1",),
        other_output=" Columbus",
    ),
)  # fmt: skip


def circuit() -> Circuit:
    return Circuit(
        model="embedded", transcoder_hash="0", prompt="a b: c\n", source=1, supernodes=(TEXAS,), claims=CLAIMS
    )


def test_a_saved_circuit_is_read_as_it_was(tmp_path: Path) -> None:
    path = circuit().save(tmp_path / "circuit.yaml")
    assert Circuit.load(path) == circuit()
    assert "- 1:8:198" in path.read_text() or "'1:8:198'" in path.read_text()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"supernodes": (TEXAS, TEXAS)}, "Texas"),
        ({"supernodes": ()}, "Texas"),
        ({"supernodes": (replace(TEXAS, members=("1:*:3",)),)}, "1:*:3"),
        ({"supernodes": (replace(TEXAS, members=("error:1:2",)),)}, "error:1:2"),
    ],
)
def test_a_circuit_that_contradicts_itself_is_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named.replace("*", r"\*")):
        replace(circuit(), **changes)  # pyright: ignore[reportArgumentType]


def test_a_supernode_needs_a_member() -> None:
    with pytest.raises(ConfigError, match="Texas"):
        NamedSupernode(name="Texas", members=())


@pytest.mark.parametrize(
    "text",
    ["", "a: 1", "!!python/object/apply:os.system ['true']", "format: open-clt-circuit\nformat_version: 9\n"],
)
def test_a_file_that_is_not_a_circuit_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "circuit.yaml"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"circuit\.yaml"):
        Circuit.load(path)


def test_a_claim_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    path = circuit().save(tmp_path / "circuit.yaml")
    path.write_text(path.read_text().replace("kind: fires", "kind: sings"))
    with pytest.raises(CheckpointError, match="sings"):
        Circuit.load(path)
