"""Bypass: the share of a token's influence on the answer that goes along paths without some features.

Influence is that of Ameisen et al. (2025), over positive edges only: every row of the graph is divided by the sum of
its absolute entries, negative entries are left out, and the products of the edges along every path are added up.
"""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from open_clt.embedded.tasks import two_hop_statements
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind

SHORTCUT = 0.5
"""Bypass share from which a prompt counts as a shortcut."""


@cache
def states() -> dict[str, str]:
    """The state of each two-hop prompt."""
    return {each.prompt: each.intermediate for each in two_hop_statements() if each.intermediate is not None}


def state_nodes(graph: AttributionGraph, cue: int, of_state: Bool[Tensor, "2 layer feature"]) -> Bool[Tensor, "node"]:
    """The feature nodes at or after the city's token that belong to the state."""
    nodes = graph.nodes
    chosen = graph.of_kind(NodeKind.FEATURE) & (nodes.position >= cue)
    rows = chosen.nonzero().flatten()
    after = (nodes.position[rows] > cue).long()
    chosen[rows] = of_state[after, nodes.layer[rows].long(), nodes.index[rows].long()]
    return chosen


def bypass_share(graph: AttributionGraph, position: int, through: Bool[Tensor, "node"]) -> float | None:
    """The share of the positive influence of the token at ``position`` that reaches the output past some nodes.

    ``through`` has the nodes that the influence should pass. The graph must have one output. Returns None if no path
    of positive edges leads from the token to the output.
    """
    edges = graph.edges
    weight = edges.weight.double()
    rows = torch.zeros(graph.n_nodes, dtype=torch.double).index_add(0, edges.target, weight.abs())
    shares = (weight / rows[edges.target].clamp(min=1e-30)).clamp(min=0)
    token = graph.of_kind(NodeKind.EMBEDDING) & (graph.nodes.position == position)
    total = float(_reaching(graph, shares)[token].sum())
    past = float(_reaching(graph, shares * ~through[edges.source])[token].sum())
    return past / total if total > 0 else None


def _reaching(graph: AttributionGraph, shares: Float[Tensor, "edge"]) -> Float[Tensor, "node"]:
    """What each node passes on to the output over paths of any length."""
    target, source = graph.edges.target, graph.edges.source
    step = graph.of_kind(NodeKind.LOGIT, NodeKind.TARGET).double()
    total = torch.zeros_like(step)
    while bool(step.any()):
        step = torch.zeros_like(step).index_add(0, source, shares * step[target])
        total += step
    return total
