"""Influence, pruning and scores: pure functions over the edges of a directed acyclic graph.

Take absolute edge weights and divide each target's incoming edges by their sum: ``A[t, s]``, the share of target ``t``
that source ``s`` makes up. ``B = A + A^2 + ...`` follows every path; the influence of a node is the mean of the output
rows of ``B``, weighted by each output's weight (its probability). Sources: Ameisen et al. (2025), "Attribution graphs"
and "Graph pruning"; the two-stage pruning and the scores are computed as circuit-tracer computes them.

Edges are three tensors (target, source, weight), never a square matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.errors import AttributionError


class Edges(NamedTuple):
    """Weighted edges; ``weight`` is signed: the share of the target's pre-activation that the source contributes."""

    target: Int[Tensor, "edge"]
    source: Int[Tensor, "edge"]
    weight: Float[Tensor, "edge"]


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


def input_shares(edges: Edges, omitted: Float[Tensor, "node"]) -> Float[Tensor, "edge"]:
    """``A``: each edge's absolute weight over the sum of its target's inputs.

    ``omitted`` is the absolute weight of inputs that the graph no longer shows; it counts in the sum.
    """
    total = omitted.double().index_add(0, edges.target, edges.weight.abs().double())
    return edges.weight.abs().double() / total.clamp(min=1e-30)[edges.target]


def path_steps(
    edges: Edges, shares: Float[Tensor, "edge"], outputs: Float[Tensor, "node"]
) -> Iterator[Float[Tensor, "node"]]:
    """Influence that arrives over paths of length 1, 2, ... until none is left."""
    arriving = outputs.double()
    for _ in range(outputs.shape[0] + 1):
        arriving = torch.zeros_like(arriving).index_add(0, edges.source, shares * arriving[edges.target])
        if not bool(arriving.any()):
            return
        yield arriving
    raise AttributionError("The graph has a cycle, so influence is not defined; group only nodes without a loop.")


def influence(
    edges: Edges, shares: Float[Tensor, "edge"], outputs: Float[Tensor, "node"], level: Int[Tensor, "node"]
) -> Float[Tensor, "node"]:
    """Influence of every node on the outputs, over paths of all lengths.

    Nodes with inputs must lie above those of their sources that have inputs too (``level``: their layer); then one pass
    from the top follows every path. It equals the sum of ``path_steps``.
    """
    total = torch.zeros_like(outputs, dtype=torch.double)
    weighted = outputs.double()
    levels = level[edges.target]
    for number in sorted(levels.unique().tolist(), reverse=True):
        chosen = (levels == number).nonzero().flatten()
        target, source = edges.target[chosen], edges.source[chosen]
        total.index_add_(0, source, shares[chosen] * (total + weighted)[target])
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


def prune(
    edges: Edges,
    outputs: Float[Tensor, "node"],
    omitted: Float[Tensor, "node"],
    level: Int[Tensor, "node"],
    always: Bool[Tensor, "node"],
    exempt: Bool[Tensor, "node"],
    computed: Bool[Tensor, "node"],
    node_share: float,
    edge_share: float,
) -> Pruning:
    """Keep the nodes that hold ``node_share`` of the influence, then the edges that hold ``edge_share`` of theirs.

    ``always`` stay; ``exempt`` are no matter for the first stage, but go when no edge is left; nodes that are
    ``computed`` from others (features) go when no edge reaches them.
    """
    scores = influence(edges, input_shares(edges, omitted), outputs, level)
    nodes = (scores >= smallest_kept(scores, node_share)) | always | exempt
    kept = nodes[edges.target] & nodes[edges.source]
    inner = Edges(*(column[kept] for column in edges))
    shares = input_shares(inner, torch.zeros_like(omitted))
    edge_scores = shares * (influence(inner, shares, outputs, level) + outputs)[inner.target]
    kept[kept.clone()] = edge_scores >= smallest_kept(edge_scores, edge_share)
    return _without_dead_ends(edges, nodes, kept, always, computed)


def _without_dead_ends(
    edges: Edges,
    nodes: Bool[Tensor, "node"],
    kept: Bool[Tensor, "edge"],
    always: Bool[Tensor, "node"],
    computed: Bool[Tensor, "node"],
) -> Pruning:
    """Drop nodes that no longer lead anywhere, and computed nodes that nothing leads to, until none is left."""
    while True:
        leads = torch.zeros_like(nodes).index_fill(0, edges.source[kept], True)
        led_to = torch.zeros_like(nodes).index_fill(0, edges.target[kept], True)
        staying = always | (nodes & leads & (led_to | ~computed))
        if bool((staying == nodes).all()):
            return Pruning(nodes, kept)
        nodes = staying
        kept = kept & nodes[edges.target] & nodes[edges.source]


def scores(
    edges: Edges,
    outputs: Float[Tensor, "node"],
    omitted: Float[Tensor, "node"],
    level: Int[Tensor, "node"],
    tokens: Bool[Tensor, "node"],
    errors: Bool[Tensor, "node"],
) -> GraphScores:
    """Replacement and completeness scores; what the graph omits counts as error."""
    shares = input_shares(edges, omitted)
    reached = influence(edges, shares, outputs, level)
    output_influence = reached + outputs
    incoming = omitted.double().index_add(0, edges.target, edges.weight.abs().double()).clamp(min=1e-30)
    unexplained = omitted.double() / incoming
    unexplained = unexplained.index_add(0, edges.target, shares * errors[edges.source])
    from_tokens = reached[tokens].sum()
    from_errors = reached[errors].sum() + (output_influence * (omitted.double() / incoming)).sum()
    replacement = from_tokens / (from_tokens + from_errors).clamp(min=1e-30)
    completeness = (output_influence * (1 - unexplained)).sum() / output_influence.sum().clamp(min=1e-30)
    return GraphScores(float(replacement), float(completeness))
