"""Claims: what a supernode's name says, each as a number that can be measured again, and the least value it needs.

fires      In text that played no part in the naming, the members tell the tokens near the name from the others:
           the area under the ROC curve of their sum, weighted by how they change with the source.
stands     With the name in the place of the source, the members change as they do in the prompt: the cosine of both
           changes over the members after the source.
ablation   Without the members, the output becomes less likely: the fall of its log-probability, in nats, less the
           fall without as many other features of the same layers and positions. It is the mean over the prompt and
           prompts with another source and the same output.
swap       With the members of another supernode in their place, as active as in the other prompt, the other
           prompt's output becomes likelier than this one: the difference of their log-probabilities, in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from open_clt.config.json import CheckedConfig
from open_clt.errors import ConfigError

LEAST_AREA = 0.6
"""Area under the ROC curve that the claim ``fires`` needs; 0.5 is chance."""
LEAST_SIMILARITY = 0.65
"""Cosine that the claim ``stands`` needs."""
LEAST_FALL = 0.1
"""Fall of the log-probability, in nats, that the claim ``ablation`` needs."""
LEAST_LEAD = 0.0
"""Lead of the other output, in nats, that the claim ``swap`` needs."""


@final
@dataclass(frozen=True, kw_only=True)
class FiresClaim(CheckedConfig):
    """The members are active where the text speaks of the name."""

    supernode: str
    """Name of the supernode."""
    measured: float | None = None
    """Area under the ROC curve when the circuit was made; None if it was not measured."""
    needed: float = LEAST_AREA
    """Least area."""
    kind: Literal["fires"] = "fires"
    """Kind of the claim in files."""


@final
@dataclass(frozen=True, kw_only=True)
class StandsClaim(CheckedConfig):
    """The members are active when the name takes the place of the source."""

    supernode: str
    """Name of the supernode."""
    measured: float | None = None
    """Cosine when the circuit was made; None if it was not measured."""
    needed: float = LEAST_SIMILARITY
    """Least cosine."""
    kind: Literal["stands"] = "stands"
    """Kind of the claim in files."""


@final
@dataclass(frozen=True, kw_only=True)
class AblationClaim(CheckedConfig):
    """The output depends on the members."""

    supernode: str
    """Name of the supernode."""
    output: str
    """Token that becomes less likely."""
    measured: float | None = None
    """Fall of the log-probability when the circuit was made, in nats; None if it was not measured."""
    needed: float = LEAST_FALL
    """Least fall, in nats."""
    kind: Literal["ablation"] = "ablation"
    """Kind of the claim in files."""


@final
@dataclass(frozen=True, kw_only=True)
class SwapClaim(CheckedConfig):
    """Another supernode in the place of this one brings the other prompt's output."""

    supernode: str
    """Name of the supernode."""
    output: str
    """Token that the prompt ends in."""
    other: str
    """Name of the other supernode."""
    other_source: str
    """Token that takes the place of the source in the other prompt."""
    other_members: tuple[str, ...]
    """Ids of the other supernode's features."""
    other_output: str
    """Token that the other prompt ends in."""
    measured: float | None = None
    """Lead of the other output when the circuit was made, in nats; None if it was not measured."""
    needed: float = LEAST_LEAD
    """Least lead, in nats."""
    kind: Literal["swap"] = "swap"
    """Kind of the claim in files."""


Claim: TypeAlias = FiresClaim | StandsClaim | AblationClaim | SwapClaim


@final
@dataclass(frozen=True, kw_only=True)
class NamedSupernode(CheckedConfig):
    """A supernode of a circuit."""

    name: str
    """The word that the supernode stands for."""
    members: tuple[str, ...]
    """Ids of its features in the graph of the prompt, such as ``2:5:417`` (layer, position, feature)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.members:
            raise ConfigError(f"The supernode {self.name!r} has no members; give it at least one feature.")
