"""Explained attention in the JSON of Neuronpedia's viewer: ``qk_tracing_results`` of nodes, and ``qk_only_nodes``.

The keys are those of Neuronpedia's graphs (``CLTGraphNode`` and ``CLTGraph`` of its web application), which its server
of Llamascopium graphs writes. A node has at most one ``qk_tracing_results``, for one head:

    pair_wise_contributors         [id of the query's source, id of the key's source, part of the score]
    top_q_marginal_contributors    [id, part that the query's source makes with all sources of the key]
    top_k_marginal_contributors    [id, part that the key's source makes with all sources of the query]

There, a node is a feature of attention, and its head is its own. In our graphs a node is a target of edges, so the
results are those of the head, and of the key, that carry most of its edges. Sources that the graph does not show are
described in ``qk_only_nodes``, by their ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from open_clt.graphs.attention import ExplainedLook, GraphAttention, Look
from open_clt.graphs.formats.circuit_tracer_schema import FeatureType, cantor_pair
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeId, NodeKind
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature


class QKTracing(NamedTuple):
    """What a file says of attention."""

    results: dict[NodeId, dict[str, Any]]
    """``qk_tracing_results`` of each node that has one."""
    only_nodes: dict[str, dict[str, Any]]
    """``qk_only_nodes``: descriptions of sources that the graph does not show."""

    __repr__ = short_repr


def qk_tracing(graph: AttributionGraph, shown: Mapping[NodeId, str]) -> QKTracing:
    """What a file says of attention; ``shown`` holds the viewer's ids of the shown nodes."""
    attention = graph.attention
    if attention is None:
        return QKTracing({}, {})
    ids, only_nodes = dict(shown), dict[str, dict[str, Any]]()
    results: dict[NodeId, dict[str, Any]] = {}
    for target, look in _strongest(attention, shown).items():
        explained = attention.explained(look)
        for source in sorted(explained.sources() - ids.keys(), key=str):
            description = _description(graph, source, attention.activations.get(source))
            ids[source] = description["node_id"]
            only_nodes[ids[source]] = description
        results[target] = _results(explained, ids)
    return QKTracing(results, only_nodes)


def _strongest(attention: GraphAttention, shown: Mapping[NodeId, str]) -> dict[NodeId, Look]:
    """For each shown target, the look that carries the largest sum of absolute weights of its shown edges."""
    sums: dict[NodeId, dict[Look, float]] = {}
    for part in attention.carried:
        if part.target in shown and part.source in shown:
            of_target = sums.setdefault(part.target, {})
            of_target[part.look] = of_target.get(part.look, 0.0) + abs(part.weight)
    return {target: max(looks, key=lambda look: (looks[look], look[:4])) for target, looks in sums.items()}


def _results(explained: ExplainedLook, ids: Mapping[NodeId, str]) -> dict[str, Any]:
    return {
        "pair_wise_contributors": [[ids[pair.query], ids[pair.key], pair.weight] for pair in explained.pairs],
        "top_q_marginal_contributors": [[ids[part.source], part.weight] for part in explained.by_query],
        "top_k_marginal_contributors": [[ids[part.source], part.weight] for part in explained.by_key],
    }


def _description(graph: AttributionGraph, source: NodeId, activation: float | None) -> dict[str, Any]:
    """A source as Neuronpedia describes it; ``unknown`` is its kind of sources that are none of the others."""
    position = source.position or 0
    token = graph.info.token_strings[position]
    match source.kind:
        case NodeKind.FEATURE:
            feature = Feature(source.layer, source.index)
            entries = {
                "feature": cantor_pair(feature),
                "clerp": graph.labels.get(feature, ""),
                "activation": activation,
            }
            return _node(f"{source.layer}_{source.index}_{position}", FeatureType.FEATURE, source, entries)
        case NodeKind.ERROR:
            entries = {"clerp": f'Err: mlp "{token}"'}
            return _node(f"{source.layer}_-1_{position}", FeatureType.ERROR, source, entries)
        case NodeKind.EMBEDDING:
            entries = {"layer": "E", "clerp": f'Emb: "{token}"'}
            return _node(f"E_{source.index}_{position}", FeatureType.EMBEDDING, source, entries)
        case _:
            name = source.kind.name.lower()
            entries = {"clerp": f"{name.replace('_', ' ')} of layer {source.layer}"}
            return _node(f"{source.layer}_unknown_{name}_{position}", "unknown", source, entries)


def _node(viewer_id: str, kind: str, source: NodeId, entries: Mapping[str, Any]) -> dict[str, Any]:
    node = {
        "node_id": viewer_id,
        "jsNodeId": viewer_id,
        "feature": None,
        "feature_type": str(kind),
        "layer": str(source.layer),
        "ctx_idx": source.position,
        "clerp": "",
        "activation": None,
    }
    return {**node, **entries}
