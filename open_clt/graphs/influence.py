"""Influence, pruning and scores: pure functions over the edges of a directed acyclic graph.

Absolute edge weights, divided by the sum over the edges into the same target, give ``A[t, s]``: the share of target
``t`` that source ``s`` contributes. ``B = A + A^2 + ...`` follows every path; the influence of a node is the mean of
the output rows of ``B``, weighted by each output's weight (its probability). Sources: Ameisen et al. (2025),
"Attribution graphs" and "Graph pruning"; circuit-tracer's two-stage pruning and scores.

Edges are stored row by row (``edges.py``), never as a square matrix. Shares are not stored: a sum over edges divides
each row once, by the sum of its inputs. Influence is computed once for a graph, and pruning and scores share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.errors import AttributionError
from open_clt.finite import check_finite
from open_clt.graphs.edges import Edges
from open_clt.short_repr import short_repr


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
        sums = self.omitted.double()
        rows = self.edges.rows.numpy()
        for chunk in self.edges.chunks():
            sums.numpy()[rows[chunk.rows]] += chunk.sums(np.abs(chunk.weight))
        return sums.clamp(min=1e-30)

    @cached_property
    def influence(self) -> Float[Tensor, "node"]:
        """Influence of every node on the outputs, over paths of all lengths.

        One pass from the highest level down follows every path. The result equals the sum of ``path_steps``. Raises
        AttributionError if an edge is not finite.
        """
        total = torch.zeros_like(self.outputs, dtype=torch.double)
        levels = self.level[self.edges.rows]
        for level in sorted(levels.unique().tolist(), reverse=True):
            self._pass_on(total + self.outputs, total, (levels == level).nonzero().flatten())
        check_finite(total, "The influence", axes=("node",), error=AttributionError)
        return total

    @property
    def shares(self) -> Float[Tensor, "edge"]:
        """``A``: each edge's absolute weight divided by the sum of its target's inputs; 8 bytes per edge."""
        return self.scaled(torch.ones_like(self.inputs))

    def scaled(self, values: Float[Tensor, "node"]) -> Float[Tensor, "edge"]:
        """Return each edge's share in the inputs of its target, times the value of its target, in float64."""
        scaled = torch.empty(len(self.edges.sources), dtype=torch.double)
        factors = (values / self.inputs)[self.edges.rows].numpy()
        for chunk in self.edges.chunks():
            scaled.numpy()[chunk.edges] = np.abs(chunk.weight) * chunk.spread(factors[chunk.rows])
        return scaled

    def shares_from(self, nodes: Bool[Tensor, "node"]) -> Float[Tensor, "node"]:
        """Return the share of each node's inputs that comes from some nodes."""
        weight, rows = torch.zeros_like(self.inputs), self.edges.rows.numpy()
        chosen = nodes.double().numpy()
        for chunk in self.edges.chunks():
            weight.numpy()[rows[chunk.rows]] = chunk.matrix(len(nodes)) @ chosen
        return weight / self.inputs

    def arriving(self, values: Float[Tensor, "node"]) -> Float[Tensor, "node"]:
        """Return what arrives at every node when each node passes its value on to its sources, by their shares."""
        arriving = torch.zeros_like(self.inputs)
        self._pass_on(values, arriving, torch.arange(len(self.edges.rows)))
        return arriving

    def _pass_on(
        self, values: Float[Tensor, "node"], arriving: Float[Tensor, "node"], rows: Int[Tensor, "some"]
    ) -> None:
        """Add to ``arriving`` what some rows pass on to their sources."""
        factors = (values / self.inputs)[self.edges.rows].numpy()
        for chunk in self.edges.chunks(rows.numpy()):
            arriving += torch.from_numpy(factors[chunk.rows] @ chunk.matrix(len(arriving)))

    def inner(self, edges: Edges) -> InfluenceGraph:
        """Return the same nodes with some of the edges; omitted inputs and the other edges do not count anywhere."""
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
    arriving = graph.outputs.double()
    for _ in range(arriving.shape[0] + 1):
        arriving = graph.arriving(arriving)
        if not bool(arriving.any()):
            return
        yield arriving
    raise AttributionError("The graph has a cycle, so influence is not defined; group nodes only if no cycle arises.")


def influence(graph: InfluenceGraph) -> Float[Tensor, "node"]:
    """Return the influence of every node on the outputs, over paths of all lengths; it is computed once for a graph.

    Raises AttributionError if an edge is not finite.
    """
    return graph.influence


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
    nodes = (graph.influence >= smallest_kept(graph.influence, node_share)) | roles.always | roles.exempt
    mask = graph.edges.between(nodes)
    inner = graph.inner(graph.edges.part(mask))
    edge_scores = inner.scaled(inner.influence + inner.outputs)
    stays = edge_scores >= smallest_kept(edge_scores, edge_share)
    nodes, stays = _without_dead_ends(inner.edges, Pruning(nodes, stays), roles)
    mask[mask.nonzero()[:, 0][~stays]] = False
    return Pruning(nodes, mask)


def _without_dead_ends(edges: Edges, pruning: Pruning, roles: Roles) -> Pruning:
    """Remove nodes without an edge to another node, and computed nodes without an input, until none is left."""
    nodes, edge_stays = pruning
    remaining_edges = edge_stays.nonzero().flatten()
    target, source, _ = edges.part(edge_stays)
    while True:
        has_target = torch.zeros_like(nodes).index_fill(0, source, True)
        has_source = torch.zeros_like(nodes).index_fill(0, target, True)
        remaining = roles.always | (nodes & has_target & (has_source | ~roles.computed))
        if bool((remaining == nodes).all()):
            return Pruning(nodes, torch.zeros_like(edge_stays).index_fill(0, remaining_edges, True))
        nodes = remaining
        both = nodes[target] & nodes[source]
        target, source, remaining_edges = target[both], source[both], remaining_edges[both]


def scores(graph: InfluenceGraph, tokens: Bool[Tensor, "node"], errors: Bool[Tensor, "node"]) -> GraphScores:
    """Return the replacement and completeness scores; inputs that the graph omits count as error."""
    node_influence = graph.influence
    with_outputs = node_influence + graph.outputs
    omitted_share = graph.omitted.double() / graph.inputs
    unexplained = omitted_share + graph.shares_from(errors)
    from_tokens = node_influence[tokens].sum()
    from_errors = node_influence[errors].sum() + (with_outputs * omitted_share).sum()
    replacement = from_tokens / (from_tokens + from_errors).clamp(min=1e-30)
    completeness = (with_outputs * (1 - unexplained)).sum() / with_outputs.sum().clamp(min=1e-30)
    return GraphScores(float(replacement), float(completeness))
