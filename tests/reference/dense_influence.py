"""Influence, pruning and scores of a small graph, computed from its dense matrix as the formulas are written."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from open_clt.graphs.influence import Roles


class SlowGraph(NamedTuple):
    """A graph as a dense matrix."""

    adjacency: Tensor
    """Weight of each edge, of shape (target, source)."""
    outputs: Tensor
    omitted: Tensor


def slow_influence(graph: SlowGraph) -> Tensor:
    """The weighted mean of the output rows of ``A + A^2 + ...``."""
    shares = _shares(graph)
    influence, arriving = torch.zeros_like(graph.outputs), graph.outputs
    for _ in range(len(shares)):
        arriving = arriving @ shares
        influence = influence + arriving
    return influence


def slow_scores(graph: SlowGraph, tokens: Tensor, errors: Tensor) -> tuple[float, float]:
    """The replacement and the completeness score."""
    influence = slow_influence(graph)
    weights = influence + graph.outputs
    inputs = graph.adjacency.abs().sum(1) + graph.omitted
    omitted_share = graph.omitted / inputs.clamp(min=1e-30)
    from_tokens = influence[tokens].sum()
    from_errors = influence[errors].sum() + (weights * omitted_share).sum()
    explained = 1 - omitted_share - _shares(graph)[:, errors].sum(1)
    completeness = (weights * explained).sum() / weights.sum()
    return float(from_tokens / (from_tokens + from_errors)), float(completeness)


def slow_prune(graph: SlowGraph, roles: Roles, node_share: float, edge_share: float) -> tuple[Tensor, Tensor]:
    """The nodes that stay, and a matrix of the edges that stay."""
    influence = slow_influence(graph)
    nodes = (influence >= _smallest_kept(influence, node_share)) | roles.always | roles.exempt
    between = nodes[:, None] & nodes & (graph.adjacency != 0)
    inner = SlowGraph(graph.adjacency * between, graph.outputs, torch.zeros_like(graph.omitted))
    edge_scores = _shares(inner) * (slow_influence(inner) + graph.outputs)[:, None]
    edges = between & (edge_scores >= _smallest_kept(edge_scores[between], edge_share))
    for _ in range(len(nodes)):
        nodes = roles.always | (nodes & edges.any(0) & (edges.any(1) | ~roles.computed))
        edges = edges & nodes[:, None] & nodes
    return nodes, edges


def _shares(graph: SlowGraph) -> Tensor:
    inputs = graph.adjacency.abs().sum(1) + graph.omitted
    return graph.adjacency.abs() / inputs.clamp(min=1e-30)[:, None]


def _smallest_kept(scores: Tensor, share: float) -> float:
    kept, total = 0.0, float(scores.sum())
    for score in sorted(scores.flatten().tolist(), reverse=True):
        kept += score
        if kept >= share * total:
            return score
    return 0.0
