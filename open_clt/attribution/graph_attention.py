"""Explained attention of a whole graph: why the heads that carry its edges looked where they took them from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from open_clt.attribution.attention_table import activations, explained_look
from open_clt.attribution.heads import every_carried_edge
from open_clt.attribution.qk import AttentionExplainer
from open_clt.config.arguments import Count, checked_arguments
from open_clt.errors import AttributionError
from open_clt.graphs.attention import Carried, ExplainedLook, GraphAttention
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeId
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.transcoder import Transcoder

SHARE = 0.05
"""Least share of an edge, by default, that a head carries if its attention is explained."""


@checked_arguments
def with_attention(
    model: LanguageModel,
    transcoder: Transcoder | str | Path,
    graph: AttributionGraph,
    *,
    part: AttributionGraph | None = None,
    share: float = SHARE,
    top: Count = 10,
) -> AttributionGraph:
    """Return a graph that also holds why the heads which carry its edges looked where they took them from.

    A head counts if it carries at least ``share`` of an edge from one position. Only the edges of ``part`` are split,
    by default those of the graph itself. A whole graph has very many edges, so ``part`` is usually ``graph.prune()``.
    The ``top`` largest pairs of sources are kept of each look, and as many sources of each side. ``model`` and
    ``transcoder`` are those that the graph was made with. The graph keeps the explanations when it is pruned and saved.

    Raises AttributionError if ``share`` is not above 0 and at most 1, if ``part`` is not of this graph's prompt, or if
    the graph is a consensus of several prompts or was made with a budget and then pruned, and what
    ``AttentionExplainer`` raises.
    """
    part = graph if part is None else part
    if not 0 < share <= 1:
        raise AttributionError(f"share is {share}; it must be above 0 and at most 1.")
    if graph.consensus is not None:
        raise AttributionError("The graph is a consensus of several prompts; give the graph of one prompt.")
    if part.info.tokens != graph.info.tokens:
        raise AttributionError("part is a graph of another prompt; give a part of the graph, such as graph.prune().")
    ids, kept = graph.nodes.ids(), _edges(part)
    targets = [row for row in graph.edges.rows.tolist() if ids[row] in kept]
    carried = [
        Carried(ids[each.source], ids[target], each.look, each.weight)
        for target, parts in every_carried_edge(model, transcoder, graph, share=share, targets=targets)
        for each in parts
        if ids[each.source] in kept[ids[target]]
    ]
    explainer = AttentionExplainer(model, transcoder, graph)
    looks, values = list[ExplainedLook](), dict[NodeId, float]()
    for explanation in explainer.explain_all(sorted({each.look for each in carried})):
        explained, active = explained_look(explanation, top), activations(explanation)
        looks.append(explained)
        values |= {node: active[node] for node in explained.sources() if node in active}
    return replace(graph, attention=GraphAttention(share, tuple(carried), tuple(looks), values))


def _edges(graph: AttributionGraph) -> dict[NodeId, set[NodeId]]:
    """The sources of each node that has edges."""
    ids = graph.nodes.ids()
    edges = graph.edges
    return {ids[row]: {ids[source] for source in edges.sources_of(row).tolist()} for row in edges.rows.tolist()}
