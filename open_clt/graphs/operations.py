"""What can be done with attribution graphs: find nodes, cut out a part, compare two, name their features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order
from torch import Tensor

from open_clt.errors import AttributionError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeId, NodeKind


@final
@dataclass(frozen=True, kw_only=True)
class NodeQuery:
    """Which nodes to look for; a condition that is None holds for every node."""

    kinds: tuple[NodeKind, ...] | None = None
    layers: tuple[int, ...] | None = None
    """-1 for embeddings, the number of layers for outputs."""
    positions: tuple[int, ...] | None = None
    """Negative ones count from the prompt's end."""
    token: str | None = None
    """Text of the prompt's token at the node's position, spaces around it left out."""
    label: str | None = None
    """Part of the node's label; upper and lower case are the same."""


def find_nodes(graph: AttributionGraph, query: NodeQuery) -> list[str]:
    """Names of the nodes that meet every condition of a query, in the graph's order."""
    info = graph.info
    positions = query.positions and tuple(place % len(info.token_strings) for place in query.positions)
    found: list[str] = []
    for node in map(graph.node, range(graph.n_nodes)):
        fits = (
            (query.kinds is None or node.kind in query.kinds)
            and (query.layers is None or node.layer in query.layers)
            and (positions is None or node.position in positions)
            and (query.token is None or info.token_strings[node.position].strip() == query.token.strip())
            and (query.label is None or query.label.lower() in node.label.lower())
        )
        if fits:
            found.append(node.id)
    return found


def node_numbers(graph: AttributionGraph, ids: Iterable[str]) -> Int[Tensor, "some"]:
    """Rows of some nodes, by their ids (or circuit-tracer's); raises AttributionError if the graph lacks one of them.

    Negative positions count from the prompt's end.
    """
    rows = {node: row for row, node in enumerate(graph.nodes.ids())}
    numbers: list[int] = []
    for text in ids:
        node = NodeId.parse(text, graph.info.n_layers)
        if node.position is not None and node.position < 0:
            node = replace(node, position=node.position + len(graph.info.tokens))
        if node not in rows:
            raise AttributionError(f"The graph has no node {text!r}; AttributionGraph.ids() lists the ids it has.")
        numbers.append(rows[node])
    return torch.tensor(numbers, dtype=torch.long)


def subgraph(graph: AttributionGraph, ids: Iterable[str]) -> AttributionGraph:
    """Some nodes and the edges between them; the inputs they lose are remembered in ``omitted``."""
    kept = torch.zeros(graph.n_nodes, dtype=torch.bool).index_fill(0, node_numbers(graph, ids), True)
    return graph.part(kept)


def path_subgraph(graph: AttributionGraph, source: str, target: str) -> AttributionGraph:
    """Every node and edge on some path from one node to another; raises AttributionError where there is none."""
    start, end = node_numbers(graph, [source, target]).tolist()
    edges = graph.edges
    after = _reached(start, edges.source, edges.target, graph.n_nodes)
    before = _reached(end, edges.target, edges.source, graph.n_nodes)
    if not bool(after[end]):
        raise AttributionError(f"No path leads from {source!r} to {target!r}; edges lead from earlier to later nodes.")
    return graph.part(after & before)


class EdgePair(NamedTuple):
    """One edge in two graphs; its weight is 0 in a graph that lacks it."""

    source: str
    target: str
    first: float
    second: float


@final
@dataclass(frozen=True)
class GraphComparison:
    """What two graphs share, and where they differ. Edges that differ most stand first."""

    shared_nodes: tuple[str, ...]
    nodes_only_first: tuple[str, ...]
    nodes_only_second: tuple[str, ...]
    shared_edges: tuple[EdgePair, ...]
    edges_only_first: tuple[EdgePair, ...]
    edges_only_second: tuple[EdgePair, ...]

    @property
    def node_overlap(self) -> float:
        """Shared nodes over all nodes (Jaccard)."""
        every = len(self.shared_nodes) + len(self.nodes_only_first) + len(self.nodes_only_second)
        return len(self.shared_nodes) / max(every, 1)

    @property
    def edge_overlap(self) -> float:
        """Shared edges over all edges (Jaccard)."""
        every = len(self.shared_edges) + len(self.edges_only_first) + len(self.edges_only_second)
        return len(self.shared_edges) / max(every, 1)

    @property
    def weight_cosine(self) -> float:
        """Cosine of the two graphs' edge weights, over the edges of either."""
        pairs = (*self.shared_edges, *self.edges_only_first, *self.edges_only_second)
        weights = torch.tensor([[pair.first, pair.second] for pair in pairs], dtype=torch.double).view(-1, 2)
        norms = weights.norm(dim=0).prod().clamp(min=1e-30)
        return float((weights[:, 0] @ weights[:, 1]) / norms)


def compare_graphs(
    first: AttributionGraph, second: AttributionGraph, *, across_positions: bool = False
) -> GraphComparison:
    """Match two graphs by the names of their nodes.

    ``across_positions`` is for graphs of different prompts: names lose their position, and the edges that then
    coincide are added up.
    """
    first_ids, second_ids = _names(first, across_positions), _names(second, across_positions)
    ours, theirs = _weights(first, first_ids), _weights(second, second_ids)
    known, others = dict.fromkeys(first_ids), dict.fromkeys(second_ids)
    pairs = [EdgePair(*edge, ours.get(edge, 0.0), theirs.get(edge, 0.0)) for edge in dict.fromkeys((*ours, *theirs))]
    pairs.sort(key=lambda pair: -abs(pair.first - pair.second))
    return GraphComparison(
        shared_nodes=tuple(name for name in known if name in others),
        nodes_only_first=tuple(name for name in known if name not in others),
        nodes_only_second=tuple(name for name in others if name not in known),
        shared_edges=tuple(pair for pair in pairs if pair[:2] in ours and pair[:2] in theirs),
        edges_only_first=tuple(pair for pair in pairs if pair[:2] not in theirs),
        edges_only_second=tuple(pair for pair in pairs if pair[:2] not in ours),
    )


def _names(graph: AttributionGraph, across_positions: bool) -> list[str]:
    if not across_positions:
        return graph.ids()
    return [str(replace(node, position=None)) for node in graph.nodes.ids()]


def _weights(graph: AttributionGraph, names: list[str]) -> dict[tuple[str, str], float]:
    weights: dict[tuple[str, str], float] = {}
    for target, source, weight in zip(*(column.tolist() for column in graph.edges), strict=True):
        edge = names[source], names[target]
        weights[edge] = weights.get(edge, 0.0) + weight
    return weights


def _reached(start: int, sources: Tensor, targets: Tensor, n_nodes: int) -> Bool[Tensor, "node"]:
    """A node and all that edges lead to from it."""
    edges = coo_array((np.ones(len(sources)), (sources.numpy(), targets.numpy())), shape=(n_nodes, n_nodes))
    order = breadth_first_order(edges.tocsr(), start, return_predecessors=False)
    return torch.zeros(n_nodes, dtype=torch.bool).index_fill(0, torch.from_numpy(order).long(), True)
