"""A circuit with one supernode and one claim."""

from __future__ import annotations

from pathlib import Path

from open_clt.circuits.circuit import Circuit
from open_clt.circuits.claims import FiresClaim, NamedSupernode


def circuit_of(version: int) -> Circuit:
    """A circuit whose claim and text differ between versions."""
    claims = (FiresClaim(supernode="name", measured=version / 4),)
    supernodes = (NamedSupernode(name="name", members=("0:1:2", "1:1:0")),)
    return Circuit(
        model="m", transcoder_hash="0", prompt="a b", source=1, supernodes=supernodes, claims=claims, text=str(version)
    )


def save_circuit(directory: Path, version: int) -> Path:
    """Write the circuit to its file in a directory."""
    return circuit_of(version).save(directory / "circuit.yaml")


def load_circuit(directory: Path) -> Circuit:
    """Read the circuit of ``save_circuit``."""
    return Circuit.load(directory / "circuit.yaml")
