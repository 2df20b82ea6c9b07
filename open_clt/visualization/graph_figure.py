"""The picture of an attribution graph: tokens below, layers upwards, outputs on top, as a paper prints it.

Circles are features and diamonds are errors, their areas by influence; squares are what else a complete graph has
(biases, positions, whole MLP outputs). Edges are as wide as their weights, blue where they excite and red where they
inhibit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.path import Path as Curve
from matplotlib.patheffects import withStroke

from open_clt.attribution.graph import AttributionGraph
from open_clt.visualization.graph_layout import Box, Item, Output, Page, PlacedGraph, Size, place
from open_clt.visualization.graph_picture import GraphPicture, Shape, picture_of
from open_clt.visualization.labels import text_size, token_label, wrapped
from open_clt.visualization.style import BLUE, GREY, INK, ORANGE, PALE, VERMILLION, figure_of, save, styled

_MARKERS: dict[Shape, tuple[str, str, str]] = {
    "feature": ("o", INK, "feature"),
    "error": ("D", ORANGE, "error"),
    "other": ("s", GREY, "bias, position, MLP output"),
}
"""Marker, colour and name in the key."""
_NODE_FONT, _TOKEN_FONT, _OUTPUT_FONT, _KEY_FONT, _TITLE_FONT = 6.5, 8.5, 8.0, 7.0, 9.5
_SMALLEST, _LARGEST = 3.5, 13.0
"""Diameters of a node without influence and of the most influential one, in points."""
_THINNEST, _WIDEST = 0.3, 3.0
"""Widths of edges, in points."""
_BESIDE = 2.0
"""Between a node and its label."""
_LEFT, _BELOW, _AROUND = 30.0, 36.0, 8.0
"""Room for the names of layers, for the key, and on all sides."""


class _Anchor(NamedTuple):
    """Where edges leave a node and arrive at it, in points."""

    x: float
    y: float


def visualize_attribution_graph(
    graph: AttributionGraph | GraphPicture,
    *,
    max_nodes: int = 60,
    max_edges: int = 160,
    kinds: Sequence[Shape] = ("feature", "error", "other"),
    title: str | None = None,
    ax: Axes | None = None,
    save_path: str | Path | None = None,
) -> Figure:
    """Draw an attribution graph: its outputs, its tokens, and the ``max_nodes`` most influential nodes between them.

    ``kinds`` says which of these may be drawn: features, errors, other. Of the edges, the ``max_edges`` that carry most
    influence are drawn, and every node's strongest. Labels that ``AttributionGraph.with_labels`` gave to features stand
    beside them, else their index. A figure of its own is as large as its labels need; in a given ``ax`` everything is
    scaled to fit. Returns the figure; raises ConfigError if ``save_path`` ends in anything but .png, .svg or .pdf.
    """
    with styled(save_path):
        picture = graph if isinstance(graph, GraphPicture) else picture_of(graph, max_nodes, max_edges, kinds)
        above = _AROUND + (2 * _TITLE_FONT if title else 0)
        if ax is None:
            placed = _layout(picture, Page())
            size = _size(placed, above)
            ax = Figure(figsize=(size[0] / 72, size[1] / 72)).add_axes((0, 0, 1, 1))
        else:
            box = ax.get_window_extent()
            size = box.width / figure_of(ax).dpi * 72, box.height / figure_of(ax).dpi * 72
            placed = _fitted(picture, size, above)
        canvas = _Canvas(ax, size, _scale(placed, size, above))
        _draw(canvas, picture, placed)
        _draw_key(canvas, picture)
        if title:
            canvas.text(0.0, placed.height + 5, title, _TITLE_FONT, ha="left", va="bottom")
        save(figure_of(ax), save_path)
    return figure_of(ax)


def _layout(picture: GraphPicture, page: Page) -> PlacedGraph:
    """Measure every label and place every node; nodes of a cell stand on the side of what they are connected to."""
    across = _across(picture)
    items = [
        Item(picture.positions[n], picture.rows[n], _node_size(picture, n), across[n]) for n in picture.of(*_MARKERS)
    ]
    outputs = [
        Output(picture.positions[n], _padded(text_size(wrapped(picture.labels[n], 24), _OUTPUT_FONT)))
        for n in picture.of("output")
    ]
    tokens = [text_size(token_label(token), _TOKEN_FONT) for token in picture.tokens]
    rows = sorted({*map(float, range(picture.n_layers)), *(item.row for item in items)})
    caption = text_size(_caption(picture), _KEY_FONT)[0]
    return place(items, tokens, outputs, rows, replace(page, narrowest=max(page.narrowest, caption)))


def _size(placed: PlacedGraph, above: float) -> Size:
    """What a layout needs, with everything around it."""
    return placed.width + _LEFT + _AROUND, placed.height + _BELOW + above


def _scale(placed: PlacedGraph, size: Size, above: float) -> float:
    needed = _size(placed, above)
    return min(1.0, size[0] / needed[0], size[1] / needed[1])


def _fitted(picture: GraphPicture, size: Size, above: float) -> PlacedGraph:
    """The layout that has to be made least smaller to fit a given size: as wide for its height as that is."""
    candidates: list[PlacedGraph] = []
    for enlarged in np.geomspace(1, 3, 7).tolist():
        width, height = size[0] * enlarged - _LEFT - _AROUND, size[1] * enlarged - _BELOW - above
        page = Page(widest=width, wider=1.0, narrowest=max(width, Page.narrowest), lowest=height)
        candidates.append(_layout(picture, page))
    return max(candidates, key=lambda placed: _scale(placed, size, above))


def _caption(picture: GraphPicture) -> str:
    return f"Area by influence, width by weight. {picture.caption}"


def _across(picture: GraphPicture) -> list[float]:
    """Mean position of what each node is connected to, by weight; its own if it is connected to nothing."""
    positions, weights = np.array(picture.positions, dtype=float), np.abs(picture.weights) + 1e-12
    pulls, sums = positions * 1e-12, np.full(len(positions), 1e-12)
    for here, there in ((picture.sources, picture.targets), (picture.targets, picture.sources)):
        np.add.at(pulls, here, weights * positions[there])
        np.add.at(sums, here, weights)
    return (pulls / sums).tolist()


def _diameter(picture: GraphPicture, number: int) -> float:
    """Of a node's marker: areas grow with influence, from the smallest marker that can be seen."""
    inner = picture.influence[picture.of(*_MARKERS)]
    share = picture.influence[number] / max(float(np.max(inner, initial=0)), 1e-30)
    return float(np.sqrt(_SMALLEST**2 + (_LARGEST**2 - _SMALLEST**2) * share))


def _node_size(picture: GraphPicture, number: int) -> Size:
    diameter, label = _diameter(picture, number), picture.labels[number]
    if not label:
        return diameter, diameter
    width, height = text_size(wrapped(label), _NODE_FONT)
    return diameter + _BESIDE + width, max(diameter, height)


def _padded(size: Size) -> Size:
    return size[0] + 8, size[1] + 5


@final
class _Canvas:
    """Axes whose units are points; fonts, lines and markers are scaled with them where they are small."""

    def __init__(self, ax: Axes, size: Size, scale: float) -> None:
        self.ax, self.scale = ax, scale
        ax.set_axis_off()
        ax.set_xlim(-_LEFT, size[0] / scale - _LEFT)
        ax.set_ylim(-_BELOW, size[1] / scale - _BELOW)

    def text(self, x: float, y: float, text: str, size: float, **settings: Any) -> None:
        settings = {"ha": "center", "va": "center", "color": INK} | settings
        self.ax.text(x, y, text, fontsize=size * self.scale, parse_math=False, **settings)

    def rectangle(self, box: Box, **settings: Any) -> None:
        corner = box.x - box.width / 2, box.y - box.height / 2
        self.ax.add_patch(Rectangle(corner, box.width, box.height, **settings))


def _draw(canvas: _Canvas, picture: GraphPicture, placed: PlacedGraph) -> None:
    """Everything, from back to front."""
    for row, (bottom, top) in placed.rows.items():
        layer, middle = math.ceil(row), (bottom + top) / 2
        colour = PALE if layer % 2 == 0 else "white"
        canvas.rectangle(Box(placed.width / 2, middle, placed.width, top - bottom), color=colour, linewidth=0, zorder=0)
        if row == layer or layer == picture.n_layers:
            name = "input" if layer < 0 else "end" if layer == picture.n_layers else f"L{layer}"
            canvas.text(-6.0, middle, name, _KEY_FONT, ha="right", color=GREY)
    _draw_edges(canvas, picture, _anchors(picture, placed))
    _draw_nodes(canvas, picture, placed)
    for box, token in zip(placed.tokens, picture.tokens, strict=True):
        rotation = 90 if placed.upright_tokens else 0
        canvas.text(box.x, box.y, token_label(token), _TOKEN_FONT, rotation=rotation)
    for box, number in zip(placed.outputs, picture.of("output"), strict=True):
        canvas.rectangle(box, facecolor="white", edgecolor=INK, linewidth=0.7 * canvas.scale, zorder=4)
        canvas.text(box.x, box.y, wrapped(picture.labels[number], 24), _OUTPUT_FONT, zorder=5)


def _anchors(picture: GraphPicture, placed: PlacedGraph) -> dict[int, _Anchor]:
    """Where edges meet each node: the middle of a marker, the top of a token, the bottom of an output."""
    anchors: dict[int, _Anchor] = {}
    for number, box in zip(picture.of(*_MARKERS), placed.items, strict=True):
        anchors[number] = _Anchor(box.x - box.width / 2 + _diameter(picture, number) / 2, box.y)
    for number in picture.of("token"):
        box = placed.tokens[picture.positions[number]]
        anchors[number] = _Anchor(box.x, box.y + box.height / 2 + 1)
    for number, box in zip(picture.of("output"), placed.outputs, strict=True):
        anchors[number] = _Anchor(box.x, box.y - box.height / 2)
    return anchors


def _draw_edges(canvas: _Canvas, picture: GraphPicture, anchors: dict[int, _Anchor]) -> None:
    """Edges leave upwards and arrive from below; heavy ones lie on top of light ones."""
    sizes = np.abs(picture.weights) / max(float(np.max(np.abs(picture.weights), initial=0)), 1e-30)
    curves: list[Curve] = []
    order = np.argsort(sizes).tolist()
    for edge in order:
        start, end = anchors[int(picture.sources[edge])], anchors[int(picture.targets[edge])]
        bend = (end.y - start.y) / 2
        corners = [start, (start.x, start.y + bend), (end.x, end.y - bend), end]
        curves.append(Curve(corners, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]))
    colours = [
        to_rgba(BLUE if picture.weights[edge] > 0 else VERMILLION, 0.25 + 0.6 * float(sizes[edge])) for edge in order
    ]
    widths = canvas.scale * (_THINNEST + (_WIDEST - _THINNEST) * sizes[order])
    canvas.ax.add_collection(
        PathCollection(curves, facecolors="none", edgecolors=colours, linewidths=widths, zorder=1), autolim=False
    )


def _draw_nodes(canvas: _Canvas, picture: GraphPicture, placed: PlacedGraph) -> None:
    halo = [withStroke(linewidth=1.8 * canvas.scale, foreground="white", alpha=0.85)]
    for number, box in zip(picture.of(*_MARKERS), placed.items, strict=True):
        marker, colour, _ = _MARKERS[picture.shapes[number]]
        left, diameter = box.x - box.width / 2, _diameter(picture, number)
        # A diamond of a given size is drawn wider than a circle of it.
        size = canvas.scale * diameter * (0.75 if marker == "D" else 0.88 if marker == "s" else 1)
        canvas.ax.plot(
            left + diameter / 2,
            box.y,
            marker,
            markersize=size,
            color=colour,
            markeredgecolor="white",
            markeredgewidth=0.6 * canvas.scale,
            zorder=3,
        )
        if label := wrapped(picture.labels[number]):
            canvas.text(left + diameter + _BESIDE, box.y, label, _NODE_FONT, ha="left", path_effects=halo, zorder=5)


def _draw_key(canvas: _Canvas, picture: GraphPicture) -> None:
    """What markers and colours mean, for those that occur, and the caption."""
    found = [_MARKERS[shape] for shape in _MARKERS if shape in picture.shapes]
    handles = [Line2D([], [], marker=marker, color=colour, ls="", label=name) for marker, colour, name in found]
    for colour, name, occurs in (
        (BLUE, "excites", bool((picture.weights > 0).any())),
        (VERMILLION, "inhibits", bool((picture.weights < 0).any())),
    ):
        handles += [Line2D([], [], color=colour, linewidth=1.6, label=name)] if occurs else []
    key = canvas.ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-4, -_BELOW + 14),
        bbox_transform=canvas.ax.transData,
        ncols=len(handles),
        fontsize=_KEY_FONT * canvas.scale,
        markerscale=0.7 * canvas.scale,
        handlelength=1.2,
        columnspacing=1.4,
        borderpad=0,
        borderaxespad=0,
    )
    key.set_zorder(6)
    canvas.text(0.0, -_BELOW + 7, _caption(picture), _KEY_FONT, ha="left", color=GREY)
