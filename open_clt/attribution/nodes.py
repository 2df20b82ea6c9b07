"""The nodes of an attribution graph: what they are, what they are called, and the table that holds them.

Order of the rows: features by (layer, position, feature); errors by (layer, position); token embeddings by position;
then, unless the graph is ``compatible``, positional embeddings, biases and MLP outputs; the targets last.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor


class NodeKind(IntEnum):
    """What a node stands for."""

    FEATURE = 0
    """An active feature of the transcoder: layer, position, feature."""
    ERROR = 1
    """What the features miss of one MLP output: layer, position."""
    EMBEDDING = 2
    """The embedding of the token at one position."""
    POSITIONAL = 3
    """The positional embedding of one position."""
    BIAS = 4
    """Biases that enter at one layer and position: attention, its norm's bias, and the decoder bias.

    Layer ``n_layers`` holds what enters after the last block: the final norm's bias and the unembedding's.
    """
    MLP_OUTPUT = 5
    """A whole MLP output where features are not used (the first position): no error, a function of its token alone."""
    LOGIT = 6
    """An output token's logit, less the mean logit."""
    TARGET = 7
    """Anything else that was asked for: a logit difference, a direction, a feature's pre-activation."""


@final
@dataclass(frozen=True)
class Node:
    """One node, spelled out."""

    id: str
    kind: NodeKind
    layer: int
    """-1 for embeddings, ``n_layers`` for outputs."""
    position: int
    index: int
    """Feature index, token id, or number of a target; -1 where there is none."""
    value: float
    """A feature's activation; a logit's probability; 0 where there is none."""
    weight: float
    """Weight of an output in the influence: a logit's probability; 0 for all other nodes."""
    label: str


@final
@dataclass(frozen=True, eq=False)
class NodeTable:
    """The nodes, one column per fact; see ``Node`` for their meaning."""

    kind: Int[Tensor, "node"]
    layer: Int[Tensor, "node"]
    position: Int[Tensor, "node"]
    index: Int[Tensor, "node"]
    value: Float[Tensor, "node"]
    weight: Float[Tensor, "node"]
    total: Float[Tensor, "node"]
    """What a complete row adds up to: ``pre - b_enc`` or the demeaned logit; NaN for nodes without inputs."""
    omitted: Float[Tensor, "node"]
    """Absolute weight of the inputs that pruning removed; it counts as error in the scores."""
    omitted_sum: Float[Tensor, "node"]
    """The same inputs added with their signs."""
    cumulative: Float[Tensor, "node"]
    """Share of all influence that this node and the more influential ones hold; NaN before pruning."""

    def __len__(self) -> int:
        return self.kind.shape[0]

    def __getitem__(self, chosen: Tensor) -> NodeTable:
        """Some of the rows, by mask or by index."""
        return replace(self, **{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    def ids(self) -> list[str]:
        """Names of all nodes."""
        columns = (column.tolist() for column in (self.kind, self.layer, self.position, self.index))
        return [node_id(NodeKind(kind), *facts) for kind, *facts in zip(*columns, strict=True)]

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
        """Nodes of one kind; columns that are left out are empty."""
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
        )

    @staticmethod
    def stacked(tables: list[NodeTable]) -> NodeTable:
        """Several tables, one after another."""
        columns = {f.name: torch.cat([getattr(table, f.name) for table in tables]) for f in fields(NodeTable)}
        return NodeTable(**columns)


def node_id(kind: NodeKind, layer: int, position: int, index: int) -> str:
    """Name of a node within its graph: circuit-tracer's for its kinds, ours for the others."""
    match kind:
        case NodeKind.FEATURE:
            return f"{layer}_{index}_{position}"
        case NodeKind.ERROR:
            return f"{layer}_-1_{position}"
        case NodeKind.EMBEDDING:
            return f"E_{index}_{position}"
        case NodeKind.POSITIONAL:
            return f"P_{position}"
        case NodeKind.BIAS:
            return f"B_{layer}_{position}"
        case NodeKind.MLP_OUTPUT:
            return f"M_{layer}_{position}"
        case NodeKind.LOGIT:
            return f"{layer + 1}_{index}_{position}"
        case NodeKind.TARGET:
            return f"T_{index}_{position}"
