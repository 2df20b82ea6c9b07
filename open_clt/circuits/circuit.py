"""Circuits: the named supernodes of a prompt with their claims, as a file ``circuit.yaml`` that can be verified.

The file is YAML of plain values that a person can read and edit:

    format: open-clt-circuit
    format_version: 1
    model: embedded
    prompt: The capital of the state containing Dallas is
    supernodes: [{name: Texas, members: ['1:8:198', ...]}]
    claims: [{kind: fires, supernode: Texas, measured: 0.93, needed: 0.6}, ...]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from open_clt import files
from open_clt.circuits.claims import Claim, NamedSupernode
from open_clt.circuits.hidden_hop import HopSettings
from open_clt.config.arguments import checked_arguments
from open_clt.config.json import CheckedConfig, from_dict, to_dict
from open_clt.errors import CheckpointError, ConfigError
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import FeaturePlace

FORMAT = files.FileFormat("open-clt-circuit", newest=1)
_MARK = "Circuit of OpenCLT; `open-clt verify` tests its claims again."


@final
@dataclass(frozen=True, kw_only=True)
class Circuit(CheckedConfig):
    """The named supernodes of a prompt, and what their names claim."""

    model: str
    """Name of the language model."""
    transcoder: str | None = None
    """Source of the transcoder; None is the one that ships for the model."""
    transcoder_hash: str
    """Fingerprint of the transcoder, whose features the members are."""
    prompt: str
    """Text of the prompt."""
    source: int
    """Position of the token that the supernodes depend on."""
    supernodes: tuple[NamedSupernode, ...]
    """The named supernodes."""
    claims: tuple[Claim, ...]
    """What the names claim, with the values that were measured."""
    text: str = ""
    """Text in which the names were found and the claims were measured, in words."""
    settings: HopSettings = field(default_factory=HopSettings)
    """Settings with which the supernodes were found."""

    def __post_init__(self) -> None:
        """Raise ConfigError if a member is not a feature, or a claim is about a supernode that is not there."""
        super().__post_init__()
        names = [supernode.name for supernode in self.supernodes]
        if len(set(names)) < len(names):
            raise ConfigError(f"Two supernodes are named {max(names, key=names.count)!r}; give each another name.")
        members = [member for supernode in self.supernodes for member in supernode.members]
        members += [member for claim in self.claims if claim.kind == "swap" for member in claim.other_members]
        for member in members:
            if FeaturePlace.parse(member).position is None:
                raise ConfigError(f"The member {member!r} has no position; write layer:position:feature.")
        for claim in self.claims:
            if claim.supernode not in names:
                known = ", ".join(map(repr, names))
                raise ConfigError(f"A claim is about the supernode {claim.supernode!r}; the circuit has {known}.")

    def supernode(self, name: str) -> NamedSupernode:
        """The supernode with a name; raises ConfigError if there is none."""
        for supernode in self.supernodes:
            if supernode.name == name:
                return supernode
        raise ConfigError(f"The circuit has no supernode {name!r}.")

    @checked_arguments
    def save(self, path: str | Path) -> Path:
        """Write the circuit to a YAML file, whole or not at all, and return its path."""
        return files.write_yaml(Path(path), {**FORMAT.header(), **to_dict(self)}, comment=_MARK)

    @staticmethod
    @checked_arguments
    def load(path: str | Path) -> Circuit:
        """Read a circuit that ``save`` wrote; raises CheckpointError on anything else."""
        path = Path(path)
        content = dict(FORMAT.check(files.read_yaml(path), path))
        try:
            return from_dict(Circuit, {name: content[name] for name in content.keys() - FORMAT.header().keys()})
        except (ConfigError, *files.WRONG_VALUES) as error:
            raise CheckpointError(f"{path} does not hold a whole circuit ({error}).") from error

    __repr__ = short_repr
