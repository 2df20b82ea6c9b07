"""Influence, pruning and scores: pure functions over the edges of a directed acyclic graph.

Absolute edge weights, divided by the sum over the edges into the same target, give ``A[t, s]``: the share of target
``t`` that source ``s`` contributes. ``B = A + A^2 + ...`` follows every path; the influence of a node is the mean of
the output rows of ``B``, weighted by each output's weight (its probability). Sources: Ameisen et al. (2025),
"Attribution graphs" and "Graph pruning"; circuit-tracer's two-stage pruning and scores.

Edges are three tensors (target, source, weight), never a square matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.errors import AttributionError
from open_clt.finite import check_finite
from open_clt.short_repr import short_repr


class Edges(NamedTuple):
    """Weighted edges between the nodes of a graph."""

    target: Int[Tensor, "edge"]
    """Row of the node that each edge leads to."""
    source: Int[Tensor, "edge"]
    """Row of the node that each edge comes from."""
    weight: Float[Tensor, "edge"]
    """Signed part of the target's pre-activation (or logit) that the source contributes."""

    __repr__ = short_repr


@final
@dataclass(frozen=True, eq=False)
class InfluenceGraph:
    """The values that influence is computed from: edges, and three numbers for every node."""

    edges: Edges
    """The weighted edges."""
    outputs: Float[Tensor, "node"]
    """Weight of each output, such as the probability of a token; 0 for all other nodes."""
    omitted: Float[Tensor, "node"]
    """Absolute weight of the inputs that were removed from the graph; it counts in the sum of a node's inputs."""
    level: Int[Tensor, "node"]
    """Height of each node (its layer). A node with inputs lies above those of its sources that have inputs too."""

    @cached_property
    def inputs(self) -> Float[Tensor, "node"]:
        """Sum of each node's absolute inputs, with the omitted ones."""
        return self.omitted.double().index_add(0, self.edges.target, self.edges.weight.abs().double()).clamp(min=1e-30)

    @cached_property
    def shares(self) -> Float[Tensor, "edge"]:
        """``A``: each edge's absolute weight divided by the sum of its target's inputs."""
        return self.edges.weight.abs().double() / self.inputs[self.edges.target]

    def part(self, kept: Bool[Tensor, "edge"]) -> InfluenceGraph:
        """Return the same nodes with some of the edges; omitted inputs and the other edges do not count anywhere."""
        edges = Edges(*(column[kept] for column in self.edges))
        return InfluenceGraph(edges, self.outputs, torch.zeros_like(self.omitted), self.level)

    __repr__ = short_repr


class Roles(NamedTuple):
    """Masks of the nodes that pruning treats differently."""

    always: Bool[Tensor, "node"]
    """Nodes that always stay: tokens and outputs."""
    exempt: Bool[Tensor, "node"]
    """Nodes that the first stage does not remove; the second stage removes them when they have no edge left."""
    computed: Bool[Tensor, "node"]
    """Nodes that are computed from others (features); they are removed when no edge leads to them."""

    __repr__ = short_repr


class Pruning(NamedTuple):
    """Masks of the nodes and edges that pruning keeps."""

    nodes: Bool[Tensor, "node"]
    """Mask of the nodes that stay."""
    edges: Bool[Tensor, "edge"]
    """Mask of the edges that stay."""

    __repr__ = short_repr


class GraphScores(NamedTuple):
    """The two scores of how much of its outputs a graph explains, each in [0, 1]."""

    replacement: float
    """Share of the paths to the outputs, by influence, that start at a token rather than at an error node."""
    completeness: float
    """Mean share of a node's inputs that are not errors, weighted by the node's influence."""


def path_steps(graph: InfluenceGraph) -> Iterator[Float[Tensor, "node"]]:
    """Yield the influence of each node over paths of 1, 2, ... edges, until no path is left.

    Raises AttributionError if the graph has a cycle.
    """
    edges, arriving = graph.edges, graph.outputs.double()
    for _ in range(arriving.shape[0] + 1):
        arriving = torch.zeros_like(arriving).index_add(0, edges.source, graph.shares * arriving[edges.target])
        if not bool(arriving.any()):
            return
        yield arriving
    raise AttributionError("The graph has a cycle, so influence is not defined; group nodes only if no cycle arises.")


def influence(graph: InfluenceGraph) -> Float[Tensor, "node"]:
    """Return the influence of every node on the outputs, over paths of all lengths.

    One pass from the highest level down follows every path. The result equals the sum of ``path_steps``. Raises
    AttributionError if an edge is not finite.
    """
    edges, weighted = graph.edges, graph.outputs.double()
    total = torch.zeros_like(weighted)
    levels = graph.level[edges.target]
    for level in sorted(levels.unique().tolist(), reverse=True):
        at_level = (levels == level).nonzero().flatten()
        target, source = edges.target[at_level], edges.source[at_level]
        total.index_add_(0, source, graph.shares[at_level] * (total + weighted)[target])
    check_finite(total, "The influence", axes=("node",), error=AttributionError)
    return total


def smallest_kept(scores: Float[Tensor, "some"], share: float) -> float:
    """Return the smallest of the fewest scores that add up to at least ``share`` of the sum of all scores."""
    if scores.numel() == 0:
        return 0.0
    ordered = torch.sort(scores, descending=True).values
    cumulative = torch.cumsum(ordered, dim=0) / ordered.sum()
    index = int(torch.searchsorted(cumulative, torch.tensor(share, dtype=cumulative.dtype, device=scores.device)))
    return float(ordered[min(index, ordered.shape[0] - 1)])


def cumulative_influence(scores: Float[Tensor, "node"]) -> Float[Tensor, "node"]:
    """Return, for each node, the share of all influence that this node and the more influential ones hold."""
    ordered, order = torch.sort(scores, descending=True)
    cumulative = torch.empty_like(scores)
    cumulative[order] = torch.cumsum(ordered, dim=0) / ordered.sum().clamp(min=1e-30)
    return cumulative


def prune(graph: InfluenceGraph, roles: Roles, node_share: float, edge_share: float) -> Pruning:
    """Keep the nodes with ``node_share`` of the influence, then the edges with ``edge_share`` of the edges' influence.

    Last, remove the nodes that are left without a path to an output or, if they are computed, without an input.
    """
    node_scores = influence(graph)
    nodes = (node_scores >= smallest_kept(node_scores, node_share)) | roles.always | roles.exempt
    edges = nodes[graph.edges.target] & nodes[graph.edges.source]
    inner = graph.part(edges)
    edge_scores = inner.shares * (influence(inner) + inner.outputs)[inner.edges.target]
    edges[edges.clone()] = edge_scores >= smallest_kept(edge_scores, edge_share)
    return _without_dead_ends(graph.edges, Pruning(nodes, edges), roles)


def _without_dead_ends(edges: Edges, pruning: Pruning, roles: Roles) -> Pruning:
    """Remove nodes without an edge to another node, and computed nodes without an input, until none is left."""
    nodes, edge_stays = pruning
    while True:
        has_target = torch.zeros_like(nodes).index_fill(0, edges.source[edge_stays], True)
        has_source = torch.zeros_like(nodes).index_fill(0, edges.target[edge_stays], True)
        remaining = roles.always | (nodes & has_target & (has_source | ~roles.computed))
        if bool((remaining == nodes).all()):
            return Pruning(nodes, edge_stays)
        nodes = remaining
        edge_stays = edge_stays & nodes[edges.target] & nodes[edges.source]


def scores(graph: InfluenceGraph, tokens: Bool[Tensor, "node"], errors: Bool[Tensor, "node"]) -> GraphScores:
    """Return the replacement and completeness scores; inputs that the graph omits count as error."""
    node_influence = influence(graph)
    with_outputs = node_influence + graph.outputs
    omitted_share = graph.omitted.double() / graph.inputs
    unexplained = omitted_share.index_add(0, graph.edges.target, graph.shares * errors[graph.edges.source])
    from_tokens = node_influence[tokens].sum()
    from_errors = node_influence[errors].sum() + (with_outputs * omitted_share).sum()
    replacement = from_tokens / (from_tokens + from_errors).clamp(min=1e-30)
    completeness = (with_outputs * (1 - unexplained)).sum() / with_outputs.sum().clamp(min=1e-30)
    return GraphScores(float(replacement), float(completeness))
