"""Interventions: what to do to which feature where, as data, and one pure function that does it.

    Intervention(2, -1, 417, value=0.0)            ablate feature 417 of layer 2 at the prompt's last token
    Intervention(2, None, 417, scale=5.0)          five times as active as it would be, at every position
    interventions_on("2:-1:417", value=0.0)        the same as the first, as it is typed
    interventions_on(supernode, value=0.0)         ablate every feature of a group, each where it stands in the graph

``Constrained`` and ``Iterative`` say how far the effects spread (methods, "Constrained patching" and "Iterative
patching"); ``patching.py`` runs a model with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias, final, runtime_checkable

from open_clt.config import TranscoderConfig
from open_clt.errors import ConfigError
from open_clt.transcoders.feature import Feature, FeaturePlace
from open_clt.transcoders.sparse.codes import SparseFeatures


@final
@dataclass(frozen=True)
class Intervention:
    """Set one feature to ``value``, or multiply it by ``scale``, at one position, a slice of them, or all (None).

    Positions count from the prompt's start, negative ones from its end; an open slice goes on while text is generated.
    Interventions on the same feature are done in their order. Raises ConfigError unless value or scale is given.
    """

    layer: int
    position: int | slice | None
    feature: int
    value: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.scale is None):
            raise ConfigError(
                f"The intervention has value {self.value} and scale {self.scale}; give one of them (value=0 ablates)."
            )

    def covers(self, position: int) -> bool:
        """Whether it applies at one position; for interventions that are ``resolved``."""
        where = self.position
        if not isinstance(where, slice):
            return where is None or where == position
        past = where.stop is not None and position >= where.stop
        return not past and position >= where.start and (position - where.start) % where.step == 0

    def describe(self) -> str:
        """In a few words, such as ``L2/417 at 5 = 0``."""
        where = self.position
        if isinstance(where, slice):
            place = f"from {where.start or 0}" + ("" if where.stop is None else f" until {where.stop}")
        else:
            place = "everywhere" if where is None else f"at {where}"
        change = f"= {self.value:g}" if self.value is not None else f"times {self.scale:g}"
        return f"{Feature(self.layer, self.feature)} {place} {change}"


@final
@dataclass(frozen=True, kw_only=True)
class Constrained:
    """Direct effects: MLP outputs of some layers are held, so that no feature there answers to another.

    Held at the prompt's values, plus what the changed features write to those layers; later layers answer freely. With
    attention and norms frozen and all layers held, effects are what the edges of an attribution graph say.
    """

    layers: range | None = None
    """Layers whose MLP outputs are held; None is all. What features write beyond them is left out."""
    freeze_attention: bool = True
    """Keep the prompt's attention patterns."""
    freeze_norms: bool | None = None
    """Keep the prompt's norm denominators; None does where all layers are held."""
    kind: Literal["constrained"] = "constrained"


@final
@dataclass(frozen=True, kw_only=True)
class Iterative:
    """All effects: every layer computes its features from what the layers before it have become."""

    freeze_attention: bool = False
    freeze_norms: bool = False
    freeze_errors: bool = False
    """Keep what the transcoder misses of the MLP outputs, and let it alone answer: the local replacement model.

    Otherwise the MLPs answer themselves, where the replacement model corrects errors.
    """
    kind: Literal["iterative"] = "iterative"


Patching: TypeAlias = Constrained | Iterative


@runtime_checkable
class HasMembers(Protocol):
    """A group of a graph's nodes, such as a Supernode."""

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of the nodes."""
        ...


def interventions_on(
    nodes: str | HasMembers | Iterable[str | HasMembers],
    *,
    value: float | None = None,
    scale: float | None = None,
) -> list[Intervention]:
    """The same intervention on several features, by their ids, or on groups of a graph's nodes.

    An id is ``layer:position:feature``, with ``*`` for every position; all that ``FeaturePlace.parse`` reads is
    understood. Raises ConfigError on nodes that are not features.
    """
    if isinstance(nodes, HasMembers):
        nodes = nodes.members
    if not isinstance(nodes, str):
        return [found for node in nodes for found in interventions_on(node, value=value, scale=scale)]
    feature, position = FeaturePlace.parse(nodes)
    return [Intervention(feature.layer, position, feature.index, value=value, scale=scale)]


def resolved(
    interventions: Sequence[Intervention],
    config: TranscoderConfig,
    sources: Sequence[int],
    length: int,
    *,
    first: int = 0,
    generating: bool = False,
) -> list[Intervention]:
    """Check interventions against a transcoder and a prompt, and count their positions from its start.

    ``sources`` are layers whose features are used, ``first`` is the first position where they are. Positions after
    the prompt are there only while ``generating``. Raises ConfigError on layers, features and positions that are not.
    """
    for wanted in interventions:
        if wanted.layer not in sources:
            raise ConfigError(f"layer is {wanted.layer}; layers whose features are used are {list(sources)}.")
        if not 0 <= wanted.feature < config.n_features:
            raise ConfigError(f"feature is {wanted.feature}; a layer has features 0 to {config.n_features - 1}.")
    return [replace(wanted, position=_position(wanted.position, length, first, generating)) for wanted in interventions]


def changes(
    features: SparseFeatures, interventions: Sequence[Intervention], layer: int, start: int = 0
) -> SparseFeatures | None:
    """What resolved interventions add to the features of one layer; None is nothing.

    Rows of ``features`` are the positions ``start``, ``start + 1``, ... of one text.
    """
    here = [wanted for wanted in interventions if wanted.layer == layer]
    if not here:
        return None
    before = features.dense()
    after = before.clone()
    for wanted in here:
        rows = [row for row in range(features.batch) if wanted.covers(start + row)]
        if wanted.value is not None:
            after[rows, wanted.feature] = wanted.value
        elif wanted.scale is not None:
            after[rows, wanted.feature] *= wanted.scale
    return SparseFeatures.from_dense(after - before)


def _position(position: int | slice | None, length: int, first: int, generating: bool) -> int | slice:
    """The same place, counted from the prompt's start, the open end of a slice left open."""
    if position is None:
        return slice(first, None, 1)
    if isinstance(position, slice):
        stop = position.stop if position.stop is None or position.stop >= 0 else max(0, length + position.stop)
        start = slice(position.start, None).indices(max(length, position.start or 0))[0]
        step = position.step or 1
        if step < 1:
            raise ConfigError(f"The step of the intervention's positions is {step}; it must be at least 1.")
        # Features are not used before ``first``, but the others of the slice stay where they are.
        return slice(start + -(-max(0, first - start) // step) * step, stop, step)
    found = position + length if position < 0 else position
    if found < first or (found >= length and not generating):
        raise ConfigError(
            f"position is {position}; features are used at positions {first} and later of the prompt's {length} tokens."
        )
    return found
