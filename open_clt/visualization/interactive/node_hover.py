"""Hover texts of a graph's nodes: what an interactive figure says about a node under the mouse."""

from __future__ import annotations

from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import Node, NodeKind
from open_clt.graphs.supernodes import GroupedGraph
from open_clt.transcoders.feature import Feature
from open_clt.visualization.graph.picture import GraphPicture, node_numbers
from open_clt.visualization.interactive.hover import FeatureNotes
from open_clt.visualization.interactive.text import BREAK, plain_text, token_text, wrapped_text

_MOST_MEMBERS = 8
_KINDS = {
    NodeKind.FEATURE: "feature",
    NodeKind.ERROR: "error: what the features do not reconstruct",
    NodeKind.EMBEDDING: "token",
    NodeKind.POSITIONAL: "positional embedding",
    NodeKind.BIAS: "biases",
    NodeKind.MLP_OUTPUT: "whole MLP output",
    NodeKind.LOGIT: "output",
    NodeKind.TARGET: "target",
}
_ENDS = (NodeKind.EMBEDDING, NodeKind.LOGIT, NodeKind.TARGET)


def node_texts(picture: GraphPicture, graph: AttributionGraph | GroupedGraph | None, notes: FeatureNotes) -> list[str]:
    """Return the hover text of each node of a picture; without its ``graph``, only what the picture tells."""
    whole = graph.graph if isinstance(graph, GroupedGraph) else graph
    texts: list[str] = []
    for node in range(len(picture.shapes)):
        members = picture.members[node] if picture.members else ()
        influence = f"influence {picture.influence[node]:.3g}"
        if whole is None or not members:
            texts.append(_text_of_picture(picture, node))
        elif len(members) == 1:
            is_output = picture.shapes[node] == "output"
            known = [about] if (about := node_numbers(whole, members[0])) else []
            texts.append(BREAK.join([*_lines(whole, members[0], notes), *([] if is_output else [influence]), *known]))
        else:
            texts.append(BREAK.join([*_group_lines(picture, node, whole, members), influence]))
    return texts


def _lines(graph: AttributionGraph, number: int, notes: FeatureNotes) -> list[str]:
    """Return the lines about one node of a graph."""
    node = graph.node(number)
    token = token_text(graph.info.token_strings[node.position])
    where = f"token {node.position}: {token}"
    layer = f"layer {node.layer}, {where}" if node.kind not in _ENDS else where
    if node.kind is NodeKind.FEATURE:
        feature = Feature(node.layer, node.index)
        own = graph.labels.get(feature, "")
        label = wrapped_text(own) if own else notes.label(feature)
        head = [f"<b>{label}</b>"] if label else []
        return [*head, f"feature {feature}, {where}", *notes.facts(feature, node.value)]
    if node.kind in (NodeKind.LOGIT, NodeKind.TARGET):
        name = graph.info.target_names[number - graph.n_nodes]
        shown = token_text(name) if node.kind is NodeKind.LOGIT else wrapped_text(name)
        share = [f"probability {node.weight:.3f}"] if node.kind is NodeKind.LOGIT else []
        return [f"<b>{shown}</b>", f"{_KINDS[node.kind]} after {where}", *share]
    return [f"<b>{_KINDS[node.kind]}</b>", layer]


def _group_lines(picture: GraphPicture, node: int, graph: AttributionGraph, members: tuple[int, ...]) -> list[str]:
    """Return the lines about a supernode: its label, its size and its members."""
    named = [_short(graph, graph.node(member)) for member in members[:_MOST_MEMBERS]]
    more = [f"and {len(members) - _MOST_MEMBERS} more"] if len(members) > _MOST_MEMBERS else []
    return [f"<b>{wrapped_text(picture.labels[node])}</b>", f"supernode, {len(members)} nodes:", *named, *more]


def _short(graph: AttributionGraph, node: Node) -> str:
    """Return a member of a supernode on one line."""
    label = graph.labels.get(Feature(node.layer, node.index), "") if node.kind is NodeKind.FEATURE else node.label
    return plain_text(f"{node.id} {label}".rstrip(), 70)


def _text_of_picture(picture: GraphPicture, node: int) -> str:
    """Return what a picture alone tells about a node."""
    position, shape = picture.positions[node], picture.shapes[node]
    label, token = picture.labels[node], token_text(picture.tokens[position])
    head = [f"<b>{wrapped_text(label)}</b>"] if label else []
    place = f"token {position}: {token}"
    if shape not in ("token", "output"):
        place = f"layer {picture.rows[node]:g}, {place}"
    return BREAK.join([*head, shape, place, f"influence {picture.influence[node]:.3g}"])
