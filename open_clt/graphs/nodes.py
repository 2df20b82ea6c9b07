"""Nodes of an attribution graph: their kinds, their ids, and the table that holds them.

Order of the rows: features by (layer, position, feature); errors by (layer, position); token embeddings by position;
then, unless the graph is ``compatible``, positional embeddings, biases and MLP outputs; last the outputs, which are
logits and other targets.

The id of a node is its kind and then its layer, position and index, in this order; parts that the kind does not have
are left out:

    2:5:417         feature 417 of layer 2 at position 5, as it is typed on the command line
    error:2:5       the error of layer 2 at position 5
    token:5:330     the embedding of token 330, which stands at position 5
    position:5      the positional embedding of position 5
    bias:2:5        biases that enter at layer 2 and position 5
    mlp:2:5         the whole MLP output of layer 2 at position 5
    logit:5:1234    the logit of token 1234 after position 5
    target:5:0      the first target, which is at position 5

Position ``*`` means all positions; comparisons of nodes across positions use it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.errors import AttributionError, ConfigError
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature, FeaturePlace


class NodeKind(IntEnum):
    """The kinds of nodes."""

    FEATURE = 0
    """An active feature of the transcoder at one position."""
    ERROR = 1
    """The part of one MLP output, at one layer and position, that the features do not reconstruct."""
    EMBEDDING = 2
    """The embedding of the token at one position."""
    POSITIONAL = 3
    """The positional embedding of one position."""
    BIAS = 4
    """Biases that enter at one layer and position: those of attention, of its norm, and of the decoder.

    Layer ``n_layers`` holds the biases that enter after the last block: those of the final norm and the unembedding.
    """
    MLP_OUTPUT = 5
    """A whole MLP output at the first position, where features are not used. It depends on its token alone."""
    LOGIT = 6
    """The logit of an output token, less the mean logit."""
    TARGET = 7
    """Another target: a logit difference, a direction, or a feature's pre-activation."""


class _Form(NamedTuple):
    """The parts of an id that nodes of one kind have."""

    word: str
    """First word of the id; empty for features."""
    has_layer: bool
    """Whether the id has a layer."""
    has_index: bool
    """Whether the id has an index."""


_FORMS: Mapping[NodeKind, _Form] = {
    NodeKind.FEATURE: _Form("", True, True),
    NodeKind.ERROR: _Form("error", True, False),
    NodeKind.EMBEDDING: _Form("token", False, True),
    NodeKind.POSITIONAL: _Form("position", False, False),
    NodeKind.BIAS: _Form("bias", True, False),
    NodeKind.MLP_OUTPUT: _Form("mlp", True, False),
    NodeKind.LOGIT: _Form("logit", False, True),
    NodeKind.TARGET: _Form("target", False, True),
}
_NUMBER = re.compile(r"\d+", re.ASCII)
_FOREIGN = re.compile(r"(?P<layer>E|\d+)_(?P<index>-?\d+)_(?P<position>\d+)", re.ASCII)


@final
@dataclass(frozen=True)
class NodeId:
    """The parts that identify a node in its graph; a part that the kind does not have is -1."""

    kind: NodeKind
    """Kind of the node."""
    layer: int
    """Layer of the node, or -1."""
    position: int | None
    """Position of the node; None means all positions."""
    index: int
    """Feature index, token id or target number, or -1."""

    @staticmethod
    def of(kind: NodeKind, layer: int, position: int | None, index: int) -> NodeId:
        """Return the id of a node, without the parts that its kind does not have."""
        form = _FORMS[kind]
        return NodeId(kind, layer if form.has_layer else -1, position, index if form.has_index else -1)

    def __str__(self) -> str:
        if self.kind is NodeKind.FEATURE:
            return str(FeaturePlace(Feature(self.layer, self.index), self.position))
        form = _FORMS[self.kind]
        layer, index = [self.layer] * form.has_layer, [self.index] * form.has_index
        return ":".join(map(str, [form.word, *layer, "*" if self.position is None else self.position, *index]))

    @staticmethod
    def parse(text: str, n_layers: int) -> NodeId:
        """Read an id in our or in circuit-tracer's notation; raises AttributionError on anything else.

        Circuit-tracer writes ``2_417_5`` for features, ``2_-1_5`` for errors and ``E_330_5`` for tokens. Its logits
        have the layer ``n_layers + 1``, such as ``7_1234_5`` for six layers.
        """
        node = _read_foreign(text, n_layers) or _read_word(text) or _read_feature(text)
        if node is None:
            raise AttributionError(
                f"{text!r} is not the id of a node; ids look like 2:5:417 (layer, position, feature), error:2:5 or "
                "logit:5:1234."
            )
        return node


def _read_foreign(text: str, n_layers: int) -> NodeId | None:
    """Read circuit-tracer's notation, ``layer_index_position``; None if the text is not in this notation."""
    match = _FOREIGN.fullmatch(text)
    if match is None:
        return None
    position, index = int(match["position"]), int(match["index"])
    layer = None if match["layer"] == "E" else int(match["layer"])
    if layer is None:
        return NodeId.of(NodeKind.EMBEDDING, -1, position, index) if index >= 0 else None
    if layer == n_layers + 1 and index < 0:
        # A target that is not a token is written as a logit with a negative number.
        return NodeId.of(NodeKind.TARGET, -1, position, -1 - index)
    if layer == n_layers + 1:
        return NodeId.of(NodeKind.LOGIT, -1, position, index)
    if index == -1:
        return NodeId.of(NodeKind.ERROR, layer, position, -1)
    return NodeId(NodeKind.FEATURE, layer, position, index) if index >= 0 else None


def _read_word(text: str) -> NodeId | None:
    """Read an id that begins with the word of its kind; None if the text is not such an id."""
    word, *numbers = text.split(":")
    for kind, form in _FORMS.items():
        fits = len(numbers) == 1 + form.has_layer + form.has_index and all(map(_NUMBER.fullmatch, numbers))
        if word and word == form.word and fits:
            layer, position, index = ["-1"] * (not form.has_layer) + numbers + ["-1"] * (not form.has_index)
            return NodeId(kind, int(layer), int(position), int(index))
    return None


def _read_feature(text: str) -> NodeId | None:
    """Read the id of a feature; None if the text is not one."""
    try:
        feature, position = FeaturePlace.parse(text)
    except ConfigError:
        return None
    return NodeId(NodeKind.FEATURE, feature.layer, position, feature.index)


@final
@dataclass(frozen=True)
class Node:
    """One node with its id and label."""

    id: str
    """Id of the node, as the module's docstring describes it."""
    kind: NodeKind
    """Kind of the node."""
    layer: int
    """Layer of the node; -1 for embeddings, ``n_layers`` for outputs."""
    position: int
    """Position of the node, from the prompt's start."""
    index: int
    """Feature index, token id, or target number; -1 for the kinds that have none of them."""
    value: float
    """Activation of a feature, or probability of a logit's token; 0 for the other kinds."""
    weight: float
    """Weight of an output in the influence: the probability of a token, 1 for another target; 0 for all other nodes."""
    label: str
    """Description of the node for readers."""
    confidence: float | None = None
    """Probability that ablating the node has the effect that the graph predicts; None if there is no calibration."""


@final
@dataclass(frozen=True, eq=False)
class NodeTable:
    """The nodes of a graph, one row per node."""

    kind: Int[Tensor, "node"]
    """Kind of each node, a value of ``NodeKind``."""
    layer: Int[Tensor, "node"]
    """Layer of each node; -1 for embeddings, ``n_layers`` for outputs."""
    position: Int[Tensor, "node"]
    """Position of each node, from the prompt's start."""
    index: Int[Tensor, "node"]
    """Feature index, token id, or target number; -1 for the kinds that have none of them."""
    value: Float[Tensor, "node"]
    """Activation of a feature, or probability of a logit's token; 0 for the other kinds."""
    weight: Float[Tensor, "node"]
    """Weight of an output in the influence: the probability of a token, 1 for another target; 0 for all other nodes."""
    total: Float[Tensor, "node"]
    """Sum of a complete row: ``pre - b_enc``, or the logit less the mean logit; NaN for nodes without inputs."""
    omitted: Float[Tensor, "node"]
    """Absolute weight of the inputs that pruning removed; it counts as error in the scores."""
    omitted_sum: Float[Tensor, "node"]
    """Sum of the inputs that pruning removed, with their signs."""
    cumulative: Float[Tensor, "node"]
    """Share of all influence that this node and the more influential ones hold; NaN before pruning."""
    confidence: Float[Tensor, "node"]
    """Probability that ablating a feature has the effect that the graph predicts; NaN where it is not known."""

    def __len__(self) -> int:
        return self.kind.shape[0]

    def __getitem__(self, chosen: Tensor) -> NodeTable:
        """Return some of the rows; ``chosen`` is a mask or a tensor of row indices."""
        return replace(self, **{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    def ids(self) -> list[NodeId]:
        """Return the ids of all nodes."""
        columns = (column.tolist() for column in (self.kind, self.layer, self.position, self.index))
        return [NodeId.of(NodeKind(kind), *facts) for kind, *facts in zip(*columns, strict=True)]

    def features(self) -> list[Feature]:
        """Return the features among the nodes, by layer and index; one that has several nodes is listed once."""
        chosen = self.kind == NodeKind.FEATURE
        layers, indices = self.layer[chosen].tolist(), self.index[chosen].tolist()
        return sorted({Feature(*feature) for feature in zip(layers, indices, strict=True)})

    @staticmethod
    def of(
        kind: NodeKind,
        layer: Int[Tensor, "node"],
        position: Int[Tensor, "node"],
        *,
        index: Int[Tensor, "node"] | None = None,
        value: Float[Tensor, "node"] | None = None,
        weight: Float[Tensor, "node"] | None = None,
        total: Float[Tensor, "node"] | None = None,
    ) -> NodeTable:
        """Make a table of nodes of one kind.

        By default, ``index`` is -1, ``value`` and ``weight`` are 0, and ``total`` is NaN.
        """
        zeros = torch.zeros(layer.shape, dtype=torch.float32)
        missing = torch.full_like(zeros, torch.nan)
        return NodeTable(
            kind=torch.full_like(layer, int(kind)),
            layer=layer,
            position=position,
            index=torch.full_like(layer, -1) if index is None else index,
            value=zeros if value is None else value,
            weight=zeros if weight is None else weight,
            total=missing if total is None else total,
            omitted=zeros,
            omitted_sum=zeros,
            cumulative=missing,
            confidence=missing,
        )

    @staticmethod
    def stacked(tables: list[NodeTable]) -> NodeTable:
        """Concatenate several tables."""
        columns = {f.name: torch.cat([getattr(table, f.name) for table in tables]) for f in fields(NodeTable)}
        return NodeTable(**columns)

    __repr__ = short_repr
