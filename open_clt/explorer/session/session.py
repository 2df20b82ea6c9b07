"""The session of the explorer: everything that a person has chosen, as one immutable value.

``actions.py`` makes a new session of an old one. ``session_json`` and ``read_session`` turn a session into plain values
and back, so that a browser can keep it and a file can hold it (``session_file.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast, final

from open_clt.config.json import CheckedConfig, from_dict, to_dict
from open_clt.errors import ConfigError, short_value
from open_clt.graphs.supernodes import Supernode
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature

MOST_PINS = 200
"""Largest number of pinned nodes; a circuit of more boxes cannot be read."""
LONGEST_TEXT = 200
"""Largest number of characters of a label or of a group's name."""
SHAPES = ("feature", "error", "other")
"""Shapes of nodes that a person can hide."""


@final
@dataclass(frozen=True, kw_only=True)
class Group(CheckedConfig):
    """Nodes that a person has put together: a supernode."""

    name: str
    """Name of the group, which no other group of the session has."""
    members: tuple[str, ...]
    """Ids of the nodes in the group."""


@final
@dataclass(frozen=True, kw_only=True)
class Steer(CheckedConfig):
    """Nodes whose activations are multiplied by a factor."""

    name: str
    """Label of the feature or name of the group, as it was when it was added."""
    members: tuple[str, ...]
    """Ids of the feature nodes."""
    scale: float = 0.0
    """Factor of the activations: 0 ablates, 1 changes nothing."""
    everywhere: bool = False
    """Whether the features are changed at every position, and not only at those of their nodes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -5 <= self.scale <= 5:
            raise ConfigError(f"The factor of {self.name!r} is {self.scale}; it must lie between -5 and 5.")


@final
@dataclass(frozen=True)
class Likely(CheckedConfig):
    """A likely next token."""

    token: str
    """Text of the token."""
    probability: float


@final
@dataclass(frozen=True)
class Effect(CheckedConfig):
    """The change of an output: of a logit less the mean of all logits, or of another target."""

    name: str
    """Name of the output."""
    predicted: float
    """Change that the graph predicts."""
    measured: float
    """Change that the run shows."""


@final
@dataclass(frozen=True, kw_only=True)
class Run(CheckedConfig):
    """One steering that was carried out, and what came of it."""

    steers: tuple[Steer, ...]
    """What was changed."""
    frozen: str
    """What was held at the prompt's values: ``direct`` or ``nothing``."""
    before: tuple[Likely, ...]
    """Likeliest next tokens without the changes."""
    after: tuple[Likely, ...]
    """Likeliest next tokens with the changes."""
    effects: tuple[Effect, ...]
    """Changes of the graph's outputs."""
    kl_divergence: float
    """KL(before || after) of the prediction after the prompt, in nats."""


@final
@dataclass(frozen=True, kw_only=True)
class Session(CheckedConfig):
    """Everything that a person has chosen in the explorer."""

    graph: str = ""
    """Key of the graph that is shown; empty before the first one."""
    percent: int = 80
    """Share of the nodes' influence that the shown nodes hold, in percent."""
    hidden: tuple[str, ...] = ()
    """Shapes of nodes that are not shown."""
    densest: float = 1.0
    """Largest density of the features that are shown: features that fire on more tokens are hidden."""
    selected: str | None = None
    """Id of the selected node."""
    pins: tuple[str, ...] = ()
    """Ids of the pinned nodes, in the order in which they were pinned."""
    groups: tuple[Group, ...] = ()
    """The person's supernodes; their members are pinned."""
    labels: dict[str, str] = field(default_factory=dict[str, str])
    """The person's labels by the name of the feature, such as ``L2/417``."""
    steers: tuple[Steer, ...] = ()
    """The changes that the steering page lists."""
    runs: tuple[Run, ...] = ()
    """Steerings that were carried out, latest first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.percent <= 100:
            raise ConfigError(f"The share of influence is {self.percent} %; it must lie between 1 and 100.")
        if not 0 < self.densest <= 1:
            raise ConfigError(f"The largest density is {self.densest}; it must be above 0 and at most 1.")
        for name, text in self.labels.items():
            Feature.parse(name)
            check_text(text)
        for group in self.groups:
            check_text(group.name)

    @property
    def supernodes(self) -> list[Supernode]:
        """The groups as supernodes of a graph."""
        return [Supernode(group.name, group.members) for group in self.groups]

    @property
    def feature_labels(self) -> dict[Feature, str]:
        """The labels by feature."""
        return {Feature.parse(name): text for name, text in self.labels.items()}

    @property
    def circuit(self) -> tuple[str, ...]:
        """Ids of the nodes in the circuit: the pinned nodes and the members of groups."""
        return tuple(dict.fromkeys([*self.pins, *(member for group in self.groups for member in group.members)]))

    __repr__ = short_repr


def check_text(text: str) -> None:
    """Raise ConfigError if a label or a name is too long, or is not one line of text."""
    if len(text) > LONGEST_TEXT:
        raise ConfigError(f"The text has {len(text)} characters; at most {LONGEST_TEXT} are allowed.")
    if any(not character.isprintable() for character in text):
        raise ConfigError(f"The text {text[:40]!r} holds characters that cannot be printed; write one line of text.")


def session_json(session: Session) -> dict[str, Any]:
    """Return a session as plain values."""
    return to_dict(session)


def read_session(content: Mapping[str, Any]) -> Session:
    """Read what ``session_json`` returned; raises ConfigError on missing or unknown entries and wrong types."""
    return from_dict(Session, plain_object(content, "session"))


def plain_object(content: object, name: str) -> dict[str, Any]:
    """Values by name, which a browser or a file sent; raises ConfigError if they are anything else."""
    if not isinstance(content, Mapping):
        raise ConfigError(f"The {name} must be values by name, not {short_value(content)}.")
    return dict(cast(Mapping[str, Any], content))
