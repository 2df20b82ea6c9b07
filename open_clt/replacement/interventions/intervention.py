"""Interventions: descriptions of changes to features, and the pure function ``changes`` that applies them.

    Intervention(2, -1, 417, value=0.0)            ablate feature 417 of layer 2 at the prompt's last token
    Intervention(2, None, 417, scale=5.0)          multiply the activation of feature 417 by 5 at every position
    interventions_on("2:-1:417", value=0.0)        the same as the first, from the notation of the command line
    interventions_on(supernode, value=0.0)         ablate every feature of a group, at its position in the graph

``Constrained`` and ``Iterative`` say how far the effects spread (Ameisen et al. (2025), "Constrained patching" and
"Iterative patching"); ``patching.py`` runs a model with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.config import TranscoderConfig
from open_clt.config.json import CheckedConfig
from open_clt.errors import ConfigError
from open_clt.finite import check_finite
from open_clt.transcoders.feature import Feature, FeaturePlace
from open_clt.transcoders.sparse.codes import SparseFeatures


@final
@dataclass(frozen=True)
class Intervention(CheckedConfig):
    """Set one feature to ``value``, or multiply it by ``scale``, at one position, a slice of positions, or all of them.

    Interventions on the same feature are applied in their order. Raises ConfigError unless exactly one of ``value`` and
    ``scale`` is given, as a finite number.
    """

    layer: int
    """Layer of the feature."""
    position: int | slice | None
    """Position or slice of positions; None is every position.

    Negative positions count from the prompt's end. A slice without an end covers the tokens that are generated too.
    """
    feature: int
    """Index of the feature in its layer."""
    value: float | None = None
    """Activation that the feature is set to; 0 ablates it."""
    scale: float | None = None
    """Factor that the feature's activation is multiplied by."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.value is None) == (self.scale is None):
            raise ConfigError(
                f"The intervention has value {self.value} and scale {self.scale}; give exactly one of them "
                "(value=0 ablates)."
            )

    def covers(self, position: int) -> bool:
        """Whether the intervention applies at one position; the intervention must be ``resolved``."""
        covered = self.position
        if not isinstance(covered, slice):
            return covered is None or covered == position
        past_end = covered.stop is not None and position >= covered.stop
        return not past_end and position >= covered.start and (position - covered.start) % covered.step == 0

    def describe(self) -> str:
        """Describe the intervention in a few words, such as ``L2/417 at 5 = 0``."""
        covered = self.position
        if isinstance(covered, slice):
            positions = f"from {covered.start or 0}" + ("" if covered.stop is None else f" until {covered.stop}")
        else:
            positions = "everywhere" if covered is None else f"at {covered}"
        change = f"= {self.value:g}" if self.value is not None else f"times {self.scale:g}"
        return f"{Feature(self.layer, self.feature)} {positions} {change}"


@final
@dataclass(frozen=True, kw_only=True)
class Constrained:
    """Direct effects: the MLP outputs of some layers are held, so that a changed feature does not change others there.

    MLP outputs are held at the prompt's values plus what the changed features write to them; other layers are computed
    anew. With attention and norms frozen and all layers held, the effects are those that the edges of an attribution
    graph predict.
    """

    layers: range | None = None
    """Layers whose MLP outputs are held; None is all. What changed features write to other layers is left out."""
    freeze_attention: bool = True
    """Whether attention patterns keep the prompt's values."""
    freeze_norms: bool | None = None
    """Whether norm denominators keep the prompt's values; None means yes if all layers are held, otherwise no."""
    kind: Literal["constrained"] = "constrained"
    """Name of this kind of patching in files and flags."""


@final
@dataclass(frozen=True, kw_only=True)
class Iterative:
    """All effects: every layer computes its features from the changed outputs of the layers before it."""

    freeze_attention: bool = False
    """Whether attention patterns keep the prompt's values."""
    freeze_norms: bool = False
    """Whether norm denominators keep the prompt's values."""
    freeze_errors: bool = False
    """Whether the transcoder's errors keep the prompt's values, as in the local replacement model.

    Otherwise a replacement model with error correction computes its MLPs anew.
    """
    kind: Literal["iterative"] = "iterative"
    """Name of this kind of patching in files and flags."""


Patching: TypeAlias = Constrained | Iterative
"""How far the effects of interventions spread."""


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
    """Make one intervention per feature, all with the same ``value`` or ``scale``.

    ``nodes`` are ids of features, or groups of a graph's nodes. An id is ``layer:position:feature``, with ``*`` for
    every position; any other notation that ``FeaturePlace.parse`` reads is also accepted. Raises ConfigError on nodes
    that are not features.
    """
    if isinstance(nodes, HasMembers):
        nodes = nodes.members
    if not isinstance(nodes, str):
        return [made for node in nodes for made in interventions_on(node, value=value, scale=scale)]
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
    """Check interventions against a transcoder and a prompt of ``length`` tokens, and resolve their positions.

    ``sources`` are the layers whose features are used, and ``first`` is the first position where they are used.
    Resolved positions count from the prompt's start. Positions after the prompt are allowed only while ``generating``.
    Raises ConfigError on a layer, feature or position that does not exist.
    """
    for intervention in interventions:
        if intervention.layer not in sources:
            raise ConfigError(f"layer is {intervention.layer}; the layers whose features are used are {list(sources)}.")
        if not 0 <= intervention.feature < config.n_features:
            raise ConfigError(f"feature is {intervention.feature}; a layer has features 0 to {config.n_features - 1}.")
    positions = [_position(intervention.position, length, first, generating) for intervention in interventions]
    return [
        each if each.position == position else replace(each, position=position)
        for each, position in zip(interventions, positions, strict=True)
    ]


def changes(
    features: SparseFeatures, interventions: Sequence[Intervention], layer: int, start: int = 0
) -> SparseFeatures | None:
    """Return what resolved interventions add to the features of one layer; None if no intervention is on this layer.

    Rows of ``features`` are the positions ``start``, ``start + 1``, ... of one text. Raises NotFiniteError if a changed
    feature is not finite, because a value or a scale is too large.
    """
    on_layer = [intervention for intervention in interventions if intervention.layer == layer]
    if not on_layer:
        return None
    before = features.dense()
    after = before.clone()
    values = dict[tuple[int, int], float]()  # of rows and features, set in one step: there may be thousands
    for intervention in on_layer:
        rows = _rows(intervention, features.batch, start)
        if intervention.value is not None:
            values |= dict.fromkeys(((row, intervention.feature) for row in rows), intervention.value)
        elif intervention.scale is not None:
            _set(after, values)
            values.clear()
            after[rows, intervention.feature] *= intervention.scale
            _check_finite(after, [intervention])
    _set(after, values)
    _check_finite(after, on_layer)
    return SparseFeatures.from_dense(after - before)


def _rows(intervention: Intervention, count: int, start: int) -> list[int]:
    """The rows that a resolved intervention applies to, of ``count`` rows from position ``start`` on."""
    if isinstance(intervention.position, int):
        row = intervention.position - start
        return [row] if 0 <= row < count else []
    return [row for row in range(count) if intervention.covers(start + row)]


def _set(features: Float[Tensor, "position feature"], values: Mapping[tuple[int, int], float]) -> None:
    if values:
        rows, columns = (torch.tensor(each, device=features.device) for each in zip(*values, strict=True))
        features[rows, columns] = features.new_tensor(list(values.values()))


def _check_finite(features: Float[Tensor, "position feature"], interventions: Sequence[Intervention]) -> None:
    """Raise NotFiniteError, which names the first intervention on a feature that is not finite."""
    changed = features[:, [intervention.feature for intervention in interventions]]
    if bool(changed.isfinite().all()):
        return
    for intervention in interventions:
        check_finite(features[:, intervention.feature], f"The feature of the intervention {intervention.describe()}")


def _position(position: int | slice | None, length: int, first: int, generating: bool) -> int | slice:
    """Count positions from the prompt's start; a slice without an end stays without one."""
    if position is None:
        return slice(first, None, 1)
    if isinstance(position, slice):
        stop = position.stop if position.stop is None or position.stop >= 0 else max(0, length + position.stop)
        start = slice(position.start, None).indices(max(length, position.start or 0))[0]
        step = position.step or 1
        if step < 1:
            raise ConfigError(f"The step of the intervention's positions is {step}; it must be at least 1.")
        # Features are not used before ``first``, so the slice starts at its first position from ``first`` on.
        return slice(start + -(-max(0, first - start) // step) * step, stop, step)
    from_start = position + length if position < 0 else position
    if from_start < first or (from_start >= length and not generating):
        raise ConfigError(
            f"position is {position}; the prompt has {length} tokens, and features are used from position {first} on."
        )
    return from_start
