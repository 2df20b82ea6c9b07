"""Influence, pruning and scores: pure functions over the edges of a directed acyclic graph.

Take absolute edge weights and divide each target's incoming edges by their sum: ``A[t, s]``, the share of target ``t``
that source ``s`` makes up. ``B = A + A^2 + ...`` follows every path; the influence of a node is the mean of the output
rows of ``B``, weighted by each output's weight (its probability). Sources: Ameisen et al. (2025), "Attribution graphs"
and "Graph pruning"; the two-stage pruning and the scores are computed as circuit-tracer computes them.

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


class Edges(NamedTuple):
    """Weighted edges; ``weight`` is signed: the share of the target's pre-activation that the source contributes."""

    target: Int[Tensor, "edge"]
    source: Int[Tensor, "edge"]
    weight: Float[Tensor, "edge"]


@final
@dataclass(frozen=True, eq=False)
class InfluenceGraph:
    """What influence is computed from: edges, and three numbers for every node."""

    edges: Edges
    outputs: Float[Tensor, "node"]
    """Weight of an output, such as the probability of a token; 0 for all other nodes."""
    omitted: Float[Tensor, "node"]
    """Absolute weight of the inputs that the graph no longer shows; it counts in the sum of a node's inputs."""
    level: Int[Tensor, "node"]
    """Height of a node (its layer). A node that has inputs lies above those of its sources that have inputs too."""

    @cached_property
    def inputs(self) -> Float[Tensor, "node"]:
        """Sum of each node's absolute inputs, with those that are omitted."""
        return self.omitted.double().index_add(0, self.edges.target, self.edges.weight.abs().double()).clamp(min=1e-30)

    @cached_property
    def shares(self) -> Float[Tensor, "edge"]:
        """``A``: each edge's absolute weight over the sum of its target's inputs."""
        return self.edges.weight.abs().double() / self.inputs[self.edges.target]

    def part(self, kept: Bool[Tensor, "edge"]) -> InfluenceGraph:
        """The same nodes with some of the edges alone, as if the others had never been."""
        edges = Edges(*(column[kept] for column in self.edges))
        return InfluenceGraph(edges, self.outputs, torch.zeros_like(self.omitted), self.level)


class Roles(NamedTuple):
    """How pruning treats nodes."""

    always: Bool[Tensor, "node"]
    """Nodes that stay in any case: tokens and outputs."""
    exempt: Bool[Tensor, "node"]
    """Nodes that the first stage does not remove; they go when no edge is left."""
    computed: Bool[Tensor, "node"]
    """Nodes that are computed from others (features); they go when no edge reaches them."""


class Pruning(NamedTuple):
    """What pruning keeps."""

    nodes: Bool[Tensor, "node"]
    edges: Bool[Tensor, "edge"]


class GraphScores(NamedTuple):
    """How much of the outputs a graph explains, each in [0, 1].

    ``replacement`` is the share of end-to-end paths that start at a token rather than at an error node;
    ``completeness`` is the influence-weighted mean share of a node's inputs that are not errors.
    """

    replacement: float
    completeness: float


def path_steps(graph: InfluenceGraph) -> Iterator[Float[Tensor, "node"]]:
    """Influence that arrives over paths of length 1, 2, ... until none is left; raises AttributionError on a cycle."""
    edges, arriving = graph.edges, graph.outputs.double()
    for _ in range(arriving.shape[0] + 1):
        arriving = torch.zeros_like(arriving).index_add(0, edges.source, graph.shares * arriving[edges.target])
        if not bool(arriving.any()):
            return
        yield arriving
    raise AttributionError("The graph has a cycle, so influence is not defined; group only nodes without a loop.")


def influence(graph: InfluenceGraph) -> Float[Tensor, "node"]:
    """Influence of every node on the outputs, over paths of all lengths.

    One pass from the highest level down follows every path. The result equals the sum of ``path_steps``.
    """
    edges, weighted = graph.edges, graph.outputs.double()
    total = torch.zeros_like(weighted)
    levels = graph.level[edges.target]
    for level in sorted(levels.unique().tolist(), reverse=True):
        chosen = (levels == level).nonzero().flatten()
        target, source = edges.target[chosen], edges.source[chosen]
        total.index_add_(0, source, graph.shares[chosen] * (total + weighted)[target])
    return total


def smallest_kept(scores: Float[Tensor, "some"], share: float) -> float:
    """The smallest score in the shortest prefix, largest first, that holds ``share`` of the sum."""
    if scores.numel() == 0:
        return 0.0
    ordered = torch.sort(scores, descending=True).values
    cumulative = torch.cumsum(ordered, dim=0) / ordered.sum()
    index = int(torch.searchsorted(cumulative, torch.tensor(share, dtype=cumulative.dtype, device=scores.device)))
    return float(ordered[min(index, ordered.shape[0] - 1)])


def cumulative_influence(scores: Float[Tensor, "node"]) -> Float[Tensor, "node"]:
    """Share of all influence held by a node and those that have more."""
    ordered, order = torch.sort(scores, descending=True)
    cumulative = torch.empty_like(scores)
    cumulative[order] = torch.cumsum(ordered, dim=0) / ordered.sum().clamp(min=1e-30)
    return cumulative


def prune(graph: InfluenceGraph, roles: Roles, node_share: float, edge_share: float) -> Pruning:
    """Keep the nodes that hold ``node_share`` of the influence, then the edges that hold ``edge_share`` of theirs."""
    node_scores = influence(graph)
    nodes = (node_scores >= smallest_kept(node_scores, node_share)) | roles.always | roles.exempt
    kept = nodes[graph.edges.target] & nodes[graph.edges.source]
    inner = graph.part(kept)
    edge_scores = inner.shares * (influence(inner) + inner.outputs)[inner.edges.target]
    kept[kept.clone()] = edge_scores >= smallest_kept(edge_scores, edge_share)
    return _without_dead_ends(graph.edges, Pruning(nodes, kept), roles)


def _without_dead_ends(edges: Edges, pruning: Pruning, roles: Roles) -> Pruning:
    """Drop nodes that no longer lead anywhere, and computed nodes that nothing leads to, until none is left."""
    nodes, kept = pruning
    while True:
        leads = torch.zeros_like(nodes).index_fill(0, edges.source[kept], True)
        led_to = torch.zeros_like(nodes).index_fill(0, edges.target[kept], True)
        staying = roles.always | (nodes & leads & (led_to | ~roles.computed))
        if bool((staying == nodes).all()):
            return Pruning(nodes, kept)
        nodes = staying
        kept = kept & nodes[edges.target] & nodes[edges.source]


def scores(graph: InfluenceGraph, tokens: Bool[Tensor, "node"], errors: Bool[Tensor, "node"]) -> GraphScores:
    """Replacement and completeness scores; what the graph omits counts as error."""
    reached = influence(graph)
    output_influence = reached + graph.outputs
    omitted_share = graph.omitted.double() / graph.inputs
    unexplained = omitted_share.index_add(0, graph.edges.target, graph.shares * errors[graph.edges.source])
    from_tokens = reached[tokens].sum()
    from_errors = reached[errors].sum() + (output_influence * omitted_share).sum()
    replacement = from_tokens / (from_tokens + from_errors).clamp(min=1e-30)
    completeness = (output_influence * (1 - unexplained)).sum() / output_influence.sum().clamp(min=1e-30)
    return GraphScores(float(replacement), float(completeness))
