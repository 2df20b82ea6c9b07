"""Which part of an attribution graph is drawn, as plain columns that know nothing of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from open_clt.attribution.graph import AttributionGraph
from open_clt.attribution.influence import input_shares
from open_clt.attribution.nodes import NodeKind
from open_clt.visualization.labels import token_label

Shape: TypeAlias = Literal["feature", "error", "other", "token", "output"]
"""What a node looks like; ``other`` are biases, positional embeddings and whole MLP outputs."""

_SHAPES: dict[NodeKind, Shape] = {
    NodeKind.FEATURE: "feature",
    NodeKind.ERROR: "error",
    NodeKind.EMBEDDING: "token",
    NodeKind.POSITIONAL: "other",
    NodeKind.BIAS: "other",
    NodeKind.MLP_OUTPUT: "other",
    NodeKind.LOGIT: "output",
    NodeKind.TARGET: "output",
}


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class GraphPicture:
    """A graph as it is drawn: columns with one entry per node, and edges between nodes by their number."""

    shapes: tuple[Shape, ...]
    rows: tuple[float, ...]
    """Height of each node that is neither token nor output: its layer, or half a layer less for what a layer's features
    read, so that edges always lead upwards; -1 is the input."""
    positions: tuple[int, ...]
    labels: tuple[str, ...]
    """What stands beside a node, or within an output; empty for nothing."""
    influence: npt.NDArray[np.float64]
    """Sets the area of a node."""
    sources: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    """Signed; one per edge."""
    tokens: tuple[str, ...]
    """All tokens of the prompt, also those without a node."""
    n_layers: int
    caption: str = ""

    def of(self, *shapes: Shape) -> list[int]:
        """Numbers of the nodes that look like one of these."""
        return [number for number, shape in enumerate(self.shapes) if shape in shapes]


def picture_of(graph: AttributionGraph, max_nodes: int, max_edges: int, kinds: Sequence[Shape]) -> GraphPicture:
    """The outputs, the tokens, the most influential nodes between them, and the edges that carry most influence."""
    nodes, edges, influence = graph.nodes, graph.edges, graph.influence()
    ends = graph.of_kind(NodeKind.EMBEDDING, NodeKind.LOGIT, NodeKind.TARGET)
    inner = influence.masked_fill(ends, 0)
    eligible = graph.of_kind(*(kind for kind, shape in _SHAPES.items() if shape in kinds))
    chosen = inner.where(eligible, 0).topk(min(max_nodes, len(inner))).indices
    chosen = chosen[inner.where(eligible, 0)[chosen] > 0]
    kept = ends.index_fill(0, chosen, True)

    carried = input_shares(edges, nodes.omitted).float() * (influence + nodes.weight)[edges.target]
    between = kept[edges.source] & kept[edges.target]
    carried = carried.masked_fill(~between, 0)
    drawn = _strongest(edges.source, carried, max_edges)
    number = kept.cumsum(0) - 1
    rows = kept.nonzero()[:, 0].tolist()
    return GraphPicture(
        shapes=tuple(_SHAPES[NodeKind(kind)] for kind in nodes.kind[kept].tolist()),
        rows=tuple((nodes.layer - 0.5 * (nodes.kind == NodeKind.BIAS))[kept].tolist()),
        positions=tuple(nodes.position[kept].tolist()),
        labels=tuple(_label(graph, row) for row in rows),
        influence=influence[kept].double().numpy(),
        sources=number[edges.source[drawn]].numpy(),
        targets=number[edges.target[drawn]].numpy(),
        weights=edges.weight[drawn].double().numpy(),
        tokens=tuple(graph.info.token_strings),
        n_layers=graph.info.n_layers,
        caption=_caption(
            len(chosen),
            int(torch.count_nonzero(~ends)),
            float(inner[chosen].sum() / inner.sum().clamp(min=1e-30)),
            len(drawn),
            int(torch.count_nonzero(between)),
        ),
    )


def _strongest(source: Tensor, carried: Tensor, count: int) -> Int[Tensor, "drawn"]:
    """The edges that carry most, and the strongest one of every source, so that no node hangs in the air."""
    order = carried.argsort(descending=True, stable=True)
    order = order[carried[order] > 0]
    first = torch.from_numpy(np.unique(source[order].numpy(), return_index=True)[1])
    chosen = torch.arange(len(order)) < count
    chosen[first] = True
    return order[chosen]


def _label(graph: AttributionGraph, number: int) -> str:
    node = graph.node(number)
    match node.kind:
        case NodeKind.FEATURE:
            return graph.labels.get(f"{node.layer}_{node.index}", str(node.index))
        case NodeKind.LOGIT:
            return f"{token_label(graph.info.target_names[number - graph.n_nodes])}  {node.weight:.0%}"
        case NodeKind.TARGET:
            return node.label
        case _:
            return ""


def _caption(nodes: int, all_nodes: int, share: float, edges: int, all_edges: int) -> str:
    shown = f"All {nodes} nodes" if nodes == all_nodes else f"{nodes} of {all_nodes} nodes"
    held = "" if nodes == all_nodes else f", with {share:.0%} of their influence"
    among = "all" if edges == all_edges else f"{edges} of"
    return f"{shown} between tokens and outputs{held}; {among} {all_edges} edges."
