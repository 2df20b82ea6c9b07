"""The interactive figure of an attribution graph: the nodes, edges and places of the static one, in pixels.

Circles are features, diamonds are errors, squares are the other nodes of a complete graph, and boxes are supernodes.
Edges that excite are blue, and edges that inhibit are vermillion and dashed. The mouse shows what a node is. Plotly
slows down with the number of traces, so edges share at most eight (by sign and width), and nodes one for each shape.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from open_clt.config.arguments import NotNegative, checked_arguments
from open_clt.features.records import FeatureRecord
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.supernodes import GroupedGraph
from open_clt.visualization.graph.arrangement import (
    MARKERS,
    PIXELS,
    Anchor,
    anchors_of,
    arranged,
    captions_of,
    diameter_of,
    edge_curve,
    relative_sizes,
)
from open_clt.visualization.graph.figure import visualize_attribution_graph
from open_clt.visualization.graph.layout import Box, Page, PlacedGraph
from open_clt.visualization.graph.picture import GraphPicture, Shape, picture_of
from open_clt.visualization.interactive.frame import Margins, new_figure
from open_clt.visualization.interactive.hover import FeatureNotes
from open_clt.visualization.interactive.node_hover import node_texts
from open_clt.visualization.interactive.saving import check_interactive_path, finished
from open_clt.visualization.interactive.text import BREAK, lines_text, plain_text, token_text
from open_clt.visualization.labels import token_label, wrapped
from open_clt.visualization.style import BLUE, GREY, INK, PALE, VERMILLION

_PAGE = Page(
    widest=1150.0,
    tallest=560.0,
    wider=1.0,
    narrowest=760.0,
    lowest=360.0,
    gap=8.0,
    line=5.0,
    row=10.0,
    empty_row=18.0,
    margin=16.0,
)
"""Room of a graph in a window of 1280 x 800 pixels, and the distances within it."""
_WIDTHS = (0.6, 1.4, 2.6, 4.0)
"""Widths of edges, from the lightest quarter of weights to the heaviest."""
_OPACITIES = (0.35, 0.5, 0.65, 0.85)
_DASHES = "5px,3px"
_SYMBOLS: dict[Shape, tuple[str, float]] = {
    "feature": ("circle", 1.0),
    "error": ("diamond", 0.96),
    "other": ("square", 0.88),
    "group": ("circle", 1.0),
}
"""Symbol of each shape, and the factor that makes its area that of a circle."""
_CURVE = np.linspace(0, 1, 21)[:, None]
_BLEND = np.hstack([(1 - _CURVE) ** 3, 3 * _CURVE * (1 - _CURVE) ** 2, 3 * _CURVE**2 * (1 - _CURVE), _CURVE**3])
"""Shares of the four control points of a Bezier curve in each of the points that are drawn."""
_CAPTION_LINE = 16.0


@checked_arguments
def interactive_attribution_graph(
    graph: AttributionGraph | GroupedGraph | GraphPicture,
    *,
    max_nodes: NotNegative = 60,
    max_edges: NotNegative = 160,
    kinds: Sequence[Shape] = ("feature", "error", "other"),
    records: Iterable[FeatureRecord] = (),
    title: str | None = None,
    save_path: str | Path | None = None,
) -> go.Figure:
    """Show an attribution graph: its outputs, its tokens, and the ``max_nodes`` most influential nodes between them.

    The nodes and edges are those that ``visualize_attribution_graph`` draws with the same arguments. Under the mouse
    stands what is known of a node: its label, kind, layer, token, activation and influence, and for a supernode its
    members. ``records`` (``features.records``) add facts about features. The figure is as large as its labels need.
    Raises ConfigError if the figure cannot be saved under ``save_path``.
    """
    check_interactive_path(save_path, "visualize_attribution_graph")
    picture = graph if isinstance(graph, GraphPicture) else picture_of(graph, max_nodes, max_edges, kinds)
    placed = arranged(picture, _PAGE, PIXELS)
    base = max((box.y + box.height / 2 for box in placed.tokens), default=0.0)
    captions = [line for text in captions_of(picture) for line in textwrap.wrap(text, int(placed.width / 7))]
    figure = new_figure(
        (placed.width, placed.height - base + 12),
        Margins(left=64.0, right=16.0, bottom=base + 74 + _CAPTION_LINE * len(captions)),
        title=picture.title if title is None else title,
        static="visualize_attribution_graph",
        traces=[*_edges(picture, placed), *_boxes(picture, placed)],
    )
    whole = None if isinstance(graph, GraphPicture) else graph
    texts = node_texts(picture, whole, FeatureNotes(records=records))
    figure.add_traces([*_nodes(picture, placed, texts), *_ends(picture, placed, texts)])
    _add_axes(figure, picture, placed, base)
    _add_captions(figure, picture, captions)
    return finished(figure, save_path, partial(visualize_attribution_graph, picture, title=title))


def _edges(picture: GraphPicture, placed: PlacedGraph) -> list[go.Scatter]:
    """Return one trace for the edges of each sign and width, light edges first."""
    anchors, sizes = anchors_of(picture, placed, PIXELS), relative_sizes(picture)
    classes = np.minimum((sizes * len(_WIDTHS)).astype(int), len(_WIDTHS) - 1)
    traces: list[go.Scatter] = []
    heaviest: dict[str, go.Scatter] = {}
    for width_class, width in enumerate(_WIDTHS):
        for name, colour, dash, of_sign in (
            ("excites", BLUE, "solid", picture.weights > 0),
            ("inhibits", VERMILLION, _DASHES, picture.weights < 0),
        ):
            chosen = np.flatnonzero((classes == width_class) & of_sign)
            if not len(chosen):
                continue
            x, y = _curves(picture, anchors, chosen)
            trace = go.Scatter(x=x, y=y, mode="lines", hoverinfo="skip", name=name, legendgroup=name)
            trace.update(line={"color": colour, "width": width, "dash": dash}, opacity=_OPACITIES[width_class])
            traces.append(trace.update(showlegend=False))
            heaviest[name] = trace
    for trace in heaviest.values():
        trace.update(showlegend=True)
    return traces


def _curves(
    picture: GraphPicture, anchors: dict[int, Anchor], chosen: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the points of some edges, with a gap after each edge."""
    ends = zip(picture.sources[chosen].tolist(), picture.targets[chosen].tolist(), strict=True)
    curves = np.stack([_BLEND @ edge_curve(anchors[source], anchors[target]) for source, target in ends])
    gaps = np.full((len(curves), 1, 2), np.nan)
    x, y = np.concatenate([curves, gaps], axis=1).reshape(-1, 2).T.astype(np.float32)
    return x, y


def _boxes(picture: GraphPicture, placed: PlacedGraph) -> list[go.Scatter]:
    """Return the outlines of supernodes and of outputs, which hide the edges behind them."""
    groups = [
        box for node, box in zip(picture.of(*MARKERS), placed.items, strict=True) if picture.shapes[node] == "group"
    ]
    traces: list[go.Scatter] = []
    for boxes, width in ((groups, 1.2), (list(placed.outputs), 1.0)):
        if not boxes:
            continue
        x, y = np.concatenate([_outline(box) for box in boxes]).T
        trace = go.Scatter(x=x, y=y, mode="lines", fill="toself", fillcolor="white", hoverinfo="skip")
        traces.append(trace.update(line={"color": INK, "width": width}, showlegend=False))
    return traces


def _outline(box: Box) -> npt.NDArray[np.float64]:
    """Return the corners of a box, closed, with a gap after them."""
    left, right, low, high = (
        box.x - box.width / 2,
        box.x + box.width / 2,
        box.y - box.height / 2,
        box.y + box.height / 2,
    )
    return np.array([(left, low), (right, low), (right, high), (left, high), (left, low), (np.nan, np.nan)])


def _nodes(picture: GraphPicture, placed: PlacedGraph, texts: Sequence[str]) -> list[go.Scatter]:
    """Return one trace for the nodes of each shape between tokens and outputs."""
    boxes = dict(zip(picture.of(*MARKERS), placed.items, strict=True))
    traces: list[go.Scatter] = []
    for shape, (_, colour, name) in MARKERS.items():
        nodes = picture.of(shape)
        if not nodes:
            continue
        symbol, factor = _SYMBOLS[shape]
        diameters = np.array([diameter_of(picture, node, PIXELS) for node in nodes])
        inset = PIXELS.inset if shape == "group" else 0.0
        left = np.array([boxes[node].x - boxes[node].width / 2 + inset for node in nodes])
        opacity = [picture.opacity(node) for node in nodes] if picture.frequencies else 1
        marker = {"symbol": symbol, "color": colour, "size": factor * diameters, "opacity": opacity}
        trace = go.Scatter(
            x=left + diameters / 2,
            y=[boxes[node].y for node in nodes],
            mode="markers+text",
            text=[_label(picture, node) for node in nodes],
            textposition="middle right",
            textfont={"size": PIXELS.node_font, "color": INK, "shadow": "0 0 3px white, 0 0 3px white"},
            hovertext=[texts[node] for node in nodes],
            hoverinfo="text",
            name=name,
        )
        traces.append(trace.update(marker={**marker, "line": {"color": "white", "width": 1}}))
    return traces


def _label(picture: GraphPicture, node: int, width: int = 16) -> str:
    """Return the text beside a node or within an output: its label and, in grey, its note."""
    if not picture.labels[node]:
        return ""
    label, note = lines_text(wrapped(picture.labels[node], width)), picture.notes.get(node, "")
    return f'{label}{BREAK}<span style="color:#666666">{plain_text(note)}</span>' if note else label


def _ends(picture: GraphPicture, placed: PlacedGraph, texts: Sequence[str]) -> list[go.Scatter]:
    """Return the traces of tokens, which are small triangles above their names, and of outputs."""
    tokens, outputs = picture.of("token"), picture.of("output")
    anchors = anchors_of(picture, placed, PIXELS)
    traces: list[go.Scatter] = []
    if tokens:
        trace = go.Scatter(x=[anchors[node].x for node in tokens], y=[anchors[node].top for node in tokens])
        trace.update(mode="markers", marker={"symbol": "triangle-up", "color": GREY, "size": 9})
        traces.append(trace.update(hovertext=[texts[node] for node in tokens], hoverinfo="text", showlegend=False))
    if outputs:
        trace = go.Scatter(x=[box.x for box in placed.outputs], y=[box.y for box in placed.outputs], mode="text")
        trace.update(text=[_label(picture, node, 24) for node in outputs], textposition="middle center")
        trace.update(textfont={"size": PIXELS.output_font, "color": INK}, showlegend=False)
        traces.append(trace.update(hovertext=[texts[node] for node in outputs], hoverinfo="text"))
    return traces


def _add_axes(figure: go.Figure, picture: GraphPicture, placed: PlacedGraph, base: float) -> None:
    """Name columns after tokens and rows after layers; every second layer has a grey band behind it."""
    named: dict[float, str] = {}
    for row, (bottom, top) in placed.rows.items():
        layer = math.ceil(row)
        if layer % 2 == 0:
            band: dict[str, Any] = {"x0": 0, "x1": placed.width, "y0": bottom, "y1": top}
            figure.add_shape(type="rect", layer="below", fillcolor=PALE, line={"width": 0}, **band)
        if row == layer or layer == picture.n_layers:
            name = "input" if layer < 0 else "end" if layer == picture.n_layers else f"L{layer}"
            named[(bottom + top) / 2] = name
    tokens = [token_text(token_label(token, any_font=True)) for token in picture.tokens]
    plain = {"showline": False, "ticks": "", "tickmode": "array"}
    figure.update_layout(
        xaxis={
            **plain,
            "range": [0, placed.width],
            "tickvals": [box.x for box in placed.tokens],
            "ticktext": tokens,
            "tickangle": -90 if placed.upright_tokens else 0,
            "title": {"text": "token of the prompt"},
        },
        yaxis={
            **plain,
            "range": [base - 8, placed.height + 4],
            "tickvals": list(named),
            "ticktext": list(named.values()),
            "title": {"text": "layer"},
        },
    )


def _add_captions(figure: go.Figure, picture: GraphPicture, captions: Sequence[str]) -> None:
    """Add the key and, below it, the captions; a warning is vermillion."""
    figure.update_layout(
        showlegend=True,
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "itemsizing": "trace",
            "title": {"text": ""},
        },
    )
    layout = cast(Any, figure).layout
    figure.update_layout(legend={"y": (8 + _CAPTION_LINE * len(captions)) / float(layout.height)})
    bottom = float(layout.margin.b)
    warning = " ".join(picture.missing.split())
    for number, line in enumerate(captions):
        is_warning = picture.alarming and bool(warning) and line in warning
        figure.add_annotation(
            text=plain_text(line),
            x=0,
            xref="paper",
            xanchor="left",
            y=0,
            yref="paper",
            yanchor="bottom",
            yshift=-bottom + 6 + _CAPTION_LINE * (len(captions) - 1 - number),
            showarrow=False,
            font={"size": 11, "color": VERMILLION if is_warning else "#666666"},
        )
