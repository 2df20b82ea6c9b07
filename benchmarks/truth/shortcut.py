"""Shortcuts: how much of a token's influence on the answer goes past the step that is known to lie in between.

In a two-hop prompt ("The capital of the state containing Dallas is" -> " Austin"), the model goes from the city to the
state and from the state to its capital. A cross-layer transcoder can be sparse by writing the capital directly from
features of the city. Its graph then lacks the step in between: the headline criticism of these transcoders.

Influence is that of Ameisen et al. (2025), over positive edges only: every row of the graph is divided by the sum of
its absolute entries, negative entries are left out, and the products of the edges along every path from the city's
token to the answer are added up. The *bypass share* of a prompt is the part of this sum that belongs to paths without a
feature of the state. A prompt has a *shortcut* if its bypass share is at least one half.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind

SHORTCUT = 0.5
"""Bypass share from which a prompt counts as a shortcut."""


def bypass_share(graph: AttributionGraph, position: int, through: Bool[Tensor, "node"]) -> float | None:
    """The share of the positive influence of the token at ``position`` that reaches the output past some nodes.

    ``through`` has the nodes that the influence should pass. The graph must have one output. Returns None if no path
    of positive edges leads from the token to the output.
    """
    weights = graph.adjacency()
    shares = (weights / weights.abs().sum(1, keepdim=True).clamp(min=1e-30)).clamp(min=0)
    token = graph.of_kind(NodeKind.EMBEDDING) & (graph.nodes.position == position)
    output = graph.of_kind(NodeKind.LOGIT, NodeKind.TARGET).float()
    total = float(_reaching(shares, output)[token].sum())
    past = float(_reaching(shares * ~through, output)[token].sum())
    return past / total if total > 0 else None


def _reaching(shares: Float[Tensor, "target source"], output: Float[Tensor, "node"]) -> Float[Tensor, "node"]:
    """What each node passes on to the output over paths of any length."""
    step, total = output, torch.zeros_like(output)
    while bool((step := step @ shares).any()):
        total += step
    return total
