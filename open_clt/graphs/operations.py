"""Operations on attribution graphs: find nodes, cut out a part, compare two graphs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.config.arguments import checked_arguments
from open_clt.errors import AttributionError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeId, NodeKind
from open_clt.html_repr import html_repr
from open_clt.short_repr import short_repr


@final
@dataclass(frozen=True, kw_only=True)
class NodeQuery:
    """Conditions that nodes must meet; a condition that is None holds for every node."""

    kinds: tuple[NodeKind, ...] | None = None
    """Kinds that a node may have."""
    layers: tuple[int, ...] | None = None
    """Layers that a node may have; -1 for embeddings, the number of layers for outputs."""
    positions: tuple[int, ...] | None = None
    """Positions that a node may have; negative positions count from the prompt's end."""
    token: str | None = None
    """Text of the prompt's token at the node's position, without the spaces around it."""
    label: str | None = None
    """Text that the node's label must contain; upper and lower case do not differ."""


def find_nodes(graph: AttributionGraph, query: NodeQuery) -> list[str]:
    """Return the ids of the nodes that meet every condition of a query, in the graph's order."""
    info = graph.info
    positions = query.positions and tuple(position % len(info.token_strings) for position in query.positions)
    ids: list[str] = []
    for node in map(graph.node, range(graph.n_nodes)):
        matches = (
            (query.kinds is None or node.kind in query.kinds)
            and (query.layers is None or node.layer in query.layers)
            and (positions is None or node.position in positions)
            and (query.token is None or info.token_strings[node.position].strip() == query.token.strip())
            and (query.label is None or query.label.lower() in node.label.lower())
        )
        if matches:
            ids.append(node.id)
    return ids


def node_numbers(graph: AttributionGraph, ids: Iterable[str]) -> Int[Tensor, "some"]:
    """Return the rows of some nodes, by their ids in our or in circuit-tracer's notation.

    Negative positions count from the prompt's end. Raises AttributionError if the graph lacks one of the nodes.
    """
    row_of = {node: row for row, node in enumerate(graph.nodes.ids())}
    rows: list[int] = []
    for text in ids:
        node = NodeId.parse(text, graph.info.n_layers)
        if node.position is not None and node.position < 0:
            node = replace(node, position=node.position + len(graph.info.tokens))
        if node not in row_of:
            raise AttributionError(f"The graph has no node {text!r}; AttributionGraph.ids() lists its nodes.")
        rows.append(row_of[node])
    return torch.tensor(rows, dtype=torch.long)


def subgraph(graph: AttributionGraph, ids: Iterable[str]) -> AttributionGraph:
    """Return some nodes and the edges between them; the weights of the other edges are added to ``nodes.omitted``."""
    chosen = torch.zeros(graph.n_nodes, dtype=torch.bool).index_fill(0, node_numbers(graph, ids), True)
    return graph.part(chosen)


def path_subgraph(graph: AttributionGraph, source: str, target: str) -> AttributionGraph:
    """Return the nodes and edges on all paths from one node to another; raises AttributionError without a path."""
    start, end = node_numbers(graph, [source, target]).tolist()
    edges = graph.edges
    after_start = _reachable(start, edges.source, edges.target, graph.n_nodes)
    before_end = _reachable(end, edges.target, edges.source, graph.n_nodes)
    if not bool(after_start[end]):
        raise AttributionError(f"No path leads from {source!r} to {target!r}; edges lead from earlier to later nodes.")
    return graph.part(after_start & before_end)


def answer_row(graph: AttributionGraph) -> int:
    """Return the row of the output with the largest weight, such as the likeliest token; of equal ones, the first.

    Raises AttributionError if the graph has no output.
    """
    first = graph.n_nodes - len(graph.info.target_names)
    if first == graph.n_nodes:
        raise AttributionError(f"The graph of {graph.info.prompt!r} has no output.")
    return first + int(graph.nodes.weight[first:].argmax())


def answer_effects(graph: AttributionGraph) -> Float[Tensor, "node"]:
    """Return the change of the answer that ablating each node causes, as the graph predicts, in float64.

    The answer is that of ``answer_row``. The change is minus the sum of the signed weights of all paths from the node
    to the answer, in logits for a token. As in ``evaluation.effects``, each feature on a path passes on its relative
    change.
    """
    nodes, edges = graph.nodes, graph.edges
    # Change of the output per unit of relative change of each node.
    gain = torch.zeros(graph.n_nodes, dtype=torch.double)
    passed = torch.zeros_like(gain)
    passed[answer_row(graph)] = 1
    is_feature = graph.of_kind(NodeKind.FEATURE) & (nodes.value != 0)
    row_layers = nodes.layer[edges.rows]
    for layer in row_layers.unique().tolist()[::-1]:
        into_layer = (row_layers == layer).nonzero().flatten()
        reached = edges.rows[into_layer]
        reached = reached[is_feature[reached]]
        passed[reached] = gain[reached] / nodes.value[reached].double()
        for chunk in edges.chunks(into_layer.numpy()):
            rows = edges.rows[torch.from_numpy(chunk.rows)]
            gain += torch.from_numpy(chunk.matrix(graph.n_nodes, signed=True).T @ passed[rows].numpy())
    return -gain


SIZE_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999)
"""Shares of node influence to which ``sizes_at_replacement`` prunes a graph."""


@checked_arguments
def sizes_at_replacement(graph: AttributionGraph, scores: Sequence[float]) -> dict[float, float]:
    """Return how many features of a graph it takes to reach each of some replacement scores.

    The graph is pruned to the thresholds of ``SIZE_THRESHOLDS``, and the number of features is interpolated between
    them. What pruning leaves out counts as an error. The number is NaN for a score that the graph does not reach.
    """
    counts, reached = [0.0], [0.0]
    for threshold in SIZE_THRESHOLDS:
        pruned = graph.prune(threshold, 1.0)
        counts.append(float(pruned.of_kind(NodeKind.FEATURE).sum()))
        reached.append(pruned.scores().replacement)
    rising = np.maximum.accumulate(reached)
    return {score: float(np.interp(score, rising, counts, right=np.nan)) for score in scores}


class EdgePair(NamedTuple):
    """One edge and its weights in two graphs; its weight is 0 in a graph that lacks it."""

    source: str
    """Id of the node that the edge comes from."""
    target: str
    """Id of the node that the edge leads to."""
    first: float
    """Weight of the edge in the first graph."""
    second: float
    """Weight of the edge in the second graph."""


@final
@dataclass(frozen=True)
class GraphComparison:
    """The nodes and edges that two graphs share, and those that only one of them has.

    Nodes are given by their ids. Edges are sorted by the difference of their weights, the largest first.
    """

    shared_nodes: tuple[str, ...]
    """Nodes of both graphs."""
    nodes_only_first: tuple[str, ...]
    """Nodes of the first graph that the second lacks."""
    nodes_only_second: tuple[str, ...]
    """Nodes of the second graph that the first lacks."""
    shared_edges: tuple[EdgePair, ...]
    """Edges of both graphs."""
    edges_only_first: tuple[EdgePair, ...]
    """Edges of the first graph that the second lacks."""
    edges_only_second: tuple[EdgePair, ...]
    """Edges of the second graph that the first lacks."""

    __repr__ = short_repr
    _repr_html_ = html_repr

    @property
    def node_overlap(self) -> float:
        """Number of shared nodes divided by the number of all nodes (Jaccard index)."""
        n_nodes = len(self.shared_nodes) + len(self.nodes_only_first) + len(self.nodes_only_second)
        return len(self.shared_nodes) / max(n_nodes, 1)

    @property
    def edge_overlap(self) -> float:
        """Number of shared edges divided by the number of all edges (Jaccard index)."""
        n_edges = len(self.shared_edges) + len(self.edges_only_first) + len(self.edges_only_second)
        return len(self.shared_edges) / max(n_edges, 1)

    @property
    def weight_cosine(self) -> float:
        """Cosine of the two graphs' edge weights, over all edges of both graphs."""
        pairs = (*self.shared_edges, *self.edges_only_first, *self.edges_only_second)
        weights = torch.tensor([[pair.first, pair.second] for pair in pairs], dtype=torch.double).view(-1, 2)
        norms = weights.norm(dim=0).prod().clamp(min=1e-30)
        return float((weights[:, 0] @ weights[:, 1]) / norms)


def compare_graphs(
    first: AttributionGraph, second: AttributionGraph, *, across_positions: bool = False
) -> GraphComparison:
    """Compare two graphs, whose nodes are matched by their ids.

    With ``across_positions``, for graphs of different prompts, ids lose their position, and the weights of edges that
    then coincide are added.
    """
    first_ids, second_ids = _ids(first, across_positions), _ids(second, across_positions)
    first_weights, second_weights = _weights(first, first_ids), _weights(second, second_ids)
    first_nodes, second_nodes = dict.fromkeys(first_ids), dict.fromkeys(second_ids)
    edges = dict.fromkeys((*first_weights, *second_weights))
    pairs = [EdgePair(*edge, first_weights.get(edge, 0.0), second_weights.get(edge, 0.0)) for edge in edges]
    pairs.sort(key=lambda pair: -abs(pair.first - pair.second))
    return GraphComparison(
        shared_nodes=tuple(node for node in first_nodes if node in second_nodes),
        nodes_only_first=tuple(node for node in first_nodes if node not in second_nodes),
        nodes_only_second=tuple(node for node in second_nodes if node not in first_nodes),
        shared_edges=tuple(pair for pair in pairs if pair[:2] in first_weights and pair[:2] in second_weights),
        edges_only_first=tuple(pair for pair in pairs if pair[:2] not in second_weights),
        edges_only_second=tuple(pair for pair in pairs if pair[:2] not in first_weights),
    )


def _ids(graph: AttributionGraph, across_positions: bool) -> list[str]:
    """Return the ids of all nodes, without their positions if nodes are compared across positions."""
    if not across_positions:
        return graph.ids()
    return [str(replace(node, position=None)) for node in graph.nodes.ids()]


def _weights(graph: AttributionGraph, ids: list[str]) -> dict[tuple[str, str], float]:
    """Add up edge weights by the ids of the edge's source and target."""
    weights: dict[tuple[str, str], float] = {}
    for target, source, weight in zip(*(column.tolist() for column in graph.edges), strict=True):
        edge = ids[source], ids[target]
        weights[edge] = weights.get(edge, 0.0) + weight
    return weights


def _reachable(start: int, sources: Tensor, targets: Tensor, n_nodes: int) -> Bool[Tensor, "node"]:
    """Return a mask of a node and all nodes that a path leads to from it."""
    from scipy.sparse import coo_array  # imported here, because most graphs are computed without them
    from scipy.sparse.csgraph import breadth_first_order

    edges = coo_array((np.ones(len(sources)), (sources.numpy(), targets.numpy())), shape=(n_nodes, n_nodes))
    order = breadth_first_order(edges.tocsr(), start, return_predecessors=False)
    return torch.zeros(n_nodes, dtype=torch.bool).index_fill(0, torch.from_numpy(order).long(), True)
