"""Page data of a graph: nodes, edges and layouts as plain values, which ``assets/graph.js`` draws in a browser.

The header of ``assets/graph.js`` describes the values. Lengths are CSS pixels and y points downwards. A browser cannot
compute a layout, so the data hold several: with labels for a small and for a large window, and without labels. The
browser takes the first one that fits into its window, so text is never smaller than 11 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.supernodes import GroupedGraph
from open_clt.transcoders.feature import Feature
from open_clt.visualization.graph.arrangement import MARKERS, PIXELS, Measured, arranged, diameter_of, measured
from open_clt.visualization.graph.layout import Box, Page, PlacedGraph, Size, place
from open_clt.visualization.graph.picture import GraphPicture, Shape, node_numbers, picture_of
from open_clt.visualization.labels import token_label, wrapped

MOST_NODES, MOST_EDGES = 300, 2000
"""Largest numbers of nodes and edges that a page draws; the browser answers a click within 0.2 seconds."""
_INNER: tuple[Shape, ...] = ("feature", "error", "other")
_MEASURES = replace(PIXELS, node_font=12.0, note_font=12.0, largest=16.0)
"""Letters of 12 pixels have 11 pixels in a layout that is shrunk to 11/12."""
WINDOWS: tuple[Size, ...] = ((800.0, 530.0), (1400.0, 800.0))
"""Room of the graph in windows of 1280 x 800 and of 1920 x 1080, without the names of layers."""
_LEGIBLE = 11 / 12
_KINDS = {
    NodeKind.FEATURE: "feature",
    NodeKind.ERROR: "error",
    NodeKind.EMBEDDING: "token",
    NodeKind.POSITIONAL: "position",
    NodeKind.BIAS: "biases",
    NodeKind.MLP_OUTPUT: "MLP output",
    NodeKind.LOGIT: "output",
    NodeKind.TARGET: "target",
}


def graph_data(
    drawn: AttributionGraph | GroupedGraph,
    *,
    max_nodes: int = MOST_NODES,
    max_edges: int = MOST_EDGES,
    automatic: Collection[Feature] = (),
    windows: Sequence[Size] = WINDOWS,
    labelled: bool = False,
) -> dict[str, Any]:
    """Return what ``graph.js`` draws of a graph; the nodes and edges are those of the figure with the same limits.

    A supernode of a grouped graph is one node, of the shape ``group`` or, if it holds outputs, ``output``; its members
    are listed. ``automatic`` are the features whose labels in the graph are automatic ones, which the page marks.
    ``windows`` are the room that the graph has in windows of several sizes, the smallest first. A ``labelled`` graph
    shows all labels, and may be larger than the window.
    """
    picture = picture_of(drawn, max_nodes, max_edges, _INNER)
    graph = drawn.graph if isinstance(drawn, GroupedGraph) else drawn
    edges = zip(picture.sources.tolist(), picture.targets.tolist(), picture.weights.tolist(), strict=True)
    seen = picture.edge_frequencies
    return {
        "nodes": [_node(graph, picture, node, automatic) for node in range(len(picture.shapes))],
        "edges": [
            [source, target, _short(weight), *([] if seen is None else [_short(float(seen[edge]))])]
            for edge, (source, target, weight) in enumerate(edges)
        ],
        "tokens": [token_label(token) for token in picture.tokens],
        "layers": picture.n_layers,
        "caption": f"{picture.caption} {picture.averages}".strip(),
        "missing": picture.missing,
        "alarming": picture.alarming,
        "layouts": [_labelled(picture, window) for window in windows] if labelled else _layouts(picture, windows),
    }


def drawn_nodes(graph: AttributionGraph) -> list[int]:
    """Return the rows of the nodes that ``graph_data`` draws by default."""
    return [rows[0] for rows in picture_of(graph, MOST_NODES, MOST_EDGES, _INNER).members]


def _node(graph: AttributionGraph, picture: GraphPicture, index: int, automatic: Collection[Feature]) -> dict[str, Any]:
    row, *others = picture.members[index]
    if others or picture.shapes[index] == "group":
        return _group(graph, picture, index, automatic)
    node = graph.node(row)
    feature = Feature(node.layer, node.index) if node.kind is NodeKind.FEATURE else None
    is_output = node.kind in (NodeKind.LOGIT, NodeKind.TARGET)
    return {
        "id": node.id,
        "shape": picture.shapes[index],
        "kind": _KINDS[node.kind],
        "label": picture.labels[index] if is_output else node_name(graph, row),
        "brief": picture.labels[index] if feature in graph.labels else None,
        "automatic": feature is not None and feature in automatic,
        "note": picture.notes.get(index, ""),
        "layer": None if node.layer < 0 or is_output else node.layer,
        "position": node.position,
        "token": token_label(graph.info.token_strings[node.position], 40),
        "activation": _short(node.value) if feature else None,
        "influence": _short(float(picture.influence[index])),
        "feature": str(feature) if feature else None,
        "numbers": node_numbers(graph, row),
        "opacity": _short(picture.opacity(index)),
        "members": [],
    }


def _group(
    graph: AttributionGraph, picture: GraphPicture, index: int, automatic: Collection[Feature]
) -> dict[str, Any]:
    """A supernode, whose layers stand in its note; its id is its label, which no other node of a grouped graph has."""
    influence, position, layer = graph.influence().tolist(), picture.positions[index], math.ceil(picture.rows[index])
    rows = sorted(picture.members[index], key=lambda row: -influence[row])
    return {
        "id": picture.labels[index],
        "shape": picture.shapes[index],
        "kind": "supernode",
        "label": picture.labels[index],
        "brief": None,
        "automatic": False,
        "note": picture.notes.get(index, ""),
        "layer": None if layer < 0 or picture.shapes[index] == "output" else layer,
        "position": position,
        "token": token_label(graph.info.token_strings[position], 40),
        "activation": None,
        "influence": _short(float(picture.influence[index])),
        "feature": None,
        "numbers": "",
        "opacity": _short(picture.opacity(index)),
        "members": [_member(graph, row, influence[row], automatic) for row in rows],
    }


def _member(graph: AttributionGraph, row: int, influence: float, automatic: Collection[Feature]) -> dict[str, Any]:
    """A member of a supernode; its influence is that in the graph without groups."""
    node = graph.node(row)
    feature = Feature(node.layer, node.index) if node.kind is NodeKind.FEATURE else None
    return {
        "id": node.id,
        "label": node_name(graph, row),
        "automatic": feature is not None and feature in automatic,
        "token": token_label(graph.info.token_strings[node.position], 20),
        "feature": str(feature) if feature else None,
        "activation": _short(node.value) if feature else None,
        "influence": _short(influence),
    }


def node_name(graph: AttributionGraph, row: int) -> str:
    """The name of a node in lists: a label, or what the node is and where."""
    node = graph.node(row)
    token = token_label(graph.info.token_strings[node.position], 20)
    match node.kind:
        case NodeKind.FEATURE:
            feature = Feature(node.layer, node.index)
            return graph.labels.get(feature, str(feature))
        case NodeKind.LOGIT:
            return token_label(graph.info.target_names[row - graph.n_nodes])
        case NodeKind.TARGET:
            return node.label
        case NodeKind.EMBEDDING:
            return token
        case NodeKind.POSITIONAL:
            return f"position {node.position}"
        case _:
            layer = "end" if node.layer == graph.info.n_layers else f"L{node.layer}"
            return f"{_KINDS[node.kind]} {layer} at {token}"


def _short(value: float) -> float:
    """The value with six digits, which are enough to read and take little space."""
    return float(f"{value:.6g}")


def _layouts(picture: GraphPicture, windows: Sequence[Size]) -> list[dict[str, Any]]:
    """Layouts in the order in which a browser tries them: with labels where they are legible, then without."""
    layouts: list[dict[str, Any]] = []
    for width, height in windows:
        placed = arranged(picture, _page(width, height), _MEASURES)
        if min(width / placed.width, height / placed.height) >= _LEGIBLE:
            layouts.append(_layout(picture, placed))
            break
    inner = set(picture.of(*_INNER))
    dots = replace(picture, labels=tuple("" if node in inner else label for node, label in enumerate(picture.labels)))
    return [*layouts, _layout(dots, _wide_enough(measured(dots, _MEASURES), windows[0]))]


def _labelled(picture: GraphPicture, window: Size) -> dict[str, Any]:
    """A layout with all labels, without empty rows, that is as high as a window if it can be; it may be scrolled."""
    parts = measured(picture, _MEASURES)
    used = sorted({item.row for item in parts.items})
    return _layout(picture, _wide_enough(parts._replace(rows=used), window))


def _wide_enough(parts: Measured, window: Size) -> PlacedGraph:
    """A layout that is as high as a window, and wider only if it has to be."""
    width, height = window
    candidates = (place(*parts, _page(limit, height)) for limit in np.geomspace(width, 8 * width, 10))
    best = next(candidates)
    for placed in candidates:
        if best.height <= height / _LEGIBLE:
            break
        best = placed if placed.height < best.height else best
    return best


def _page(width: float, height: float) -> Page:
    return Page(
        widest=width,
        tallest=height,
        wider=1.0,
        narrowest=0.0,
        lowest=height,
        gap=8.0,
        line=6.0,
        row=10.0,
        empty_row=14.0,
        margin=16.0,
    )


def _layout(picture: GraphPicture, placed: PlacedGraph) -> dict[str, Any]:
    """A layout as plain values, one box and one text for each node of the picture."""
    inner = picture.of(*MARKERS)
    boxes = dict(zip(inner, placed.items, strict=True))
    boxes |= dict(zip(picture.of("output"), placed.outputs, strict=True))
    boxes |= {node: placed.tokens[picture.positions[node]] for node in picture.of("token")}
    texts = {node: wrapped(picture.labels[node], 24) for node in picture.of("output")}
    texts |= {node: wrapped(picture.labels[node]) for node in inner}
    dots = picture.of(*_INNER)
    diameters = {node: _px(diameter_of(picture, node, _MEASURES)) for node in dots}
    nodes = range(len(picture.shapes))
    return {
        "labelled": any(picture.labels[node] for node in dots) or not dots,
        "width": _px(placed.width),
        "height": _px(placed.height),
        "upright": placed.upright_tokens,
        "boxes": [_box(boxes[node], placed.height) for node in nodes],
        "diameters": [diameters.get(node, 0) for node in nodes],
        "texts": [texts.get(node, "") for node in nodes],
        "tokens": [_box(box, placed.height) for box in placed.tokens],
        "rows": [
            {
                "name": _row_name(row, picture.n_layers),
                "layer": math.ceil(row),
                "top": _px(placed.height - top),
                "bottom": _px(placed.height - bottom),
            }
            for row, (bottom, top) in placed.rows.items()
        ],
    }


def _row_name(row: float, n_layers: int) -> str:
    layer = math.ceil(row)
    if row != layer and layer != n_layers:
        return ""  # the half row of a layer's biases
    return "input" if layer < 0 else "end" if layer == n_layers else f"L{layer}"


def _box(box: Box, height: float) -> list[float]:
    return [_px(box.x), _px(height - box.y), _px(box.width), _px(box.height)]


def _px(length: float) -> float:
    return round(length, 1)
