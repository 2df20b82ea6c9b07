"""Drawing a picture of an attribution graph that has been laid out: bands, edges, nodes, texts, and the key."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.path import Path as Curve
from matplotlib.patheffects import withStroke

from open_clt.visualization.graph.layout import Box, PlacedGraph, Size
from open_clt.visualization.graph.picture import GraphPicture, Shape
from open_clt.visualization.labels import text_size, token_label, wrapped
from open_clt.visualization.style import BLUE, GREY, INK, ORANGE, PALE, VERMILLION

MARKERS: dict[Shape, tuple[str, str, str]] = {
    "feature": ("o", INK, "feature"),
    "error": ("D", ORANGE, "error"),
    "other": ("s", GREY, "bias, position, MLP output"),
    "group": ("o", INK, "supernode"),
}
"""Marker, colour and name in the key."""
TOKEN_FONT, TITLE_FONT = 8.0, 9.5
_NODE_FONT, _NOTE_FONT, _OUTPUT_FONT, _KEY_FONT = 6.5, 5.5, 8.0, 7.0
_SMALLEST, _LARGEST = 3.5, 12.0
"""Diameters of a node without influence and of the most influential one, in points."""
_THINNEST, _WIDEST = 0.3, 3.0
"""Widths of edges, in points."""
_BESIDE = 2.0
"""Between a node and its label."""
_BETWEEN = 1.5
"""Between a label and the note below it."""
_INSET = 3.5
"""Between the border of a supernode and what is in it."""
LEFT, AROUND = 30.0, 8.0
"""Room for the names of layers, and on all sides."""
_CAPTION_LINE = 9.0


class _Anchor(NamedTuple):
    """Where edges leave a node, upwards, and arrive at it, from below; in points."""

    x: float
    top: float
    bottom: float


def node_size(picture: GraphPicture, number: int) -> Size:
    """What a node takes with its label."""
    diameter, (width, height) = _diameter(picture, number), _text_size(picture, number)
    inset = 2 * _INSET if picture.shapes[number] == "group" else 0.0
    beside = _BESIDE + width if width else 0.0
    return diameter + beside + inset, max(diameter, height) + inset


def output_size(picture: GraphPicture, number: int) -> Size:
    """What an output takes with its border."""
    width, height = _text_size(picture, number, 24, _OUTPUT_FONT)
    return width + 7, height + 5


def below(picture: GraphPicture) -> float:
    """Room for the key and the captions."""
    return 27.0 + _CAPTION_LINE * len(_captions(picture))


def narrowest(picture: GraphPicture) -> float:
    """Width that the captions need."""
    return max(text_size(line, _KEY_FONT)[0] for line in _captions(picture))


def _captions(picture: GraphPicture) -> list[str]:
    lines = [f"Area by influence, width by weight. {picture.caption}"]
    return [*lines, picture.missing] if picture.missing else lines


def _diameter(picture: GraphPicture, number: int) -> float:
    """Of a node's marker: areas grow with influence, from the smallest marker that can be seen."""
    inner = picture.influence[picture.of(*MARKERS)]
    share = picture.influence[number] / max(float(np.max(inner, initial=0)), 1e-30)
    return float(np.sqrt(_SMALLEST**2 + (_LARGEST**2 - _SMALLEST**2) * share))


def _text_size(picture: GraphPicture, number: int, longest: int = 16, font: float = _NODE_FONT) -> Size:
    """What a label takes, with the note below it."""
    if not picture.labels[number]:
        return 0.0, 0.0
    width, height = text_size(wrapped(picture.labels[number], longest), font)
    if number not in picture.notes:
        return width, height
    note = text_size(picture.notes[number], _NOTE_FONT)
    return max(width, note[0]), height + _BETWEEN + note[1]


@final
class Canvas:
    """Axes whose units are points; fonts, lines and markers are scaled with them where they are small."""

    def __init__(self, ax: Axes, size: Size, scale: float, floor: float) -> None:
        self.ax, self.scale = ax, scale
        ax.set_axis_off()
        ax.set_xlim(-LEFT, size[0] / scale - LEFT)
        ax.set_ylim(-floor, size[1] / scale - floor)

    def text(self, x: float, y: float, text: str, size: float, **settings: Any) -> None:
        """Write a text, centred unless told otherwise."""
        settings = {"ha": "center", "va": "center", "color": INK} | settings
        self.ax.text(x, y, text, fontsize=size * self.scale, parse_math=False, **settings)

    def text_and_note(self, x: float, y: float, text: tuple[str, float], note: str, **settings: Any) -> None:
        """Write a text of some size and, if there is one, a smaller line below it; both together are centred."""
        if not note:
            return self.text(x, y, *text, **settings)
        half = (text_size(*text)[1] + _BETWEEN + text_size(note, _NOTE_FONT)[1]) / 2
        self.text(x, y + half, *text, **settings, va="top")
        self.text(x, y - half, note, _NOTE_FONT, **settings, va="bottom", color=GREY)

    def rectangle(self, box: Box, *, rounded: float = 0.0, linewidth: float = 0.0, **settings: Any) -> None:
        """Draw a rectangle, its corners rounded by some points."""
        corner = box.x - box.width / 2, box.y - box.height / 2
        settings["linewidth"] = linewidth * self.scale
        if rounded:
            style = f"round,pad=0,rounding_size={rounded}"
            self.ax.add_patch(FancyBboxPatch(corner, box.width, box.height, boxstyle=style, **settings))
        else:
            self.ax.add_patch(Rectangle(corner, box.width, box.height, **settings))


def draw(canvas: Canvas, picture: GraphPicture, placed: PlacedGraph, title: str | None) -> None:
    """Everything, from back to front."""
    for row, (bottom, top) in placed.rows.items():
        layer, middle = math.ceil(row), (bottom + top) / 2
        colour = PALE if layer % 2 == 0 else "white"
        canvas.rectangle(Box(placed.width / 2, middle, placed.width, top - bottom), color=colour, zorder=0)
        if row == layer or layer == picture.n_layers:
            name = "input" if layer < 0 else "end" if layer == picture.n_layers else f"L{layer}"
            canvas.text(-6.0, middle, name, _KEY_FONT, ha="right", color=GREY)
    _draw_edges(canvas, picture, _anchors(picture, placed))
    for number, box in zip(picture.of(*MARKERS), placed.items, strict=True):
        _draw_node(canvas, picture, number, box)
    for box, token in zip(placed.tokens, picture.tokens, strict=True):
        rotation = 90 if placed.upright_tokens else 0
        canvas.text(box.x, box.y, token_label(token), TOKEN_FONT, rotation=rotation)
    for box, number in zip(placed.outputs, picture.of("output"), strict=True):
        canvas.rectangle(box, rounded=2.0, linewidth=0.7, facecolor="white", edgecolor=INK, zorder=4)
        label, note = wrapped(picture.labels[number], 24), picture.notes.get(number, "")
        canvas.text_and_note(box.x, box.y, (label, _OUTPUT_FONT), note, zorder=5)
    _draw_key(canvas, picture)
    if title:
        canvas.text(0.0, placed.height + 5, title, TITLE_FONT, ha="left", va="bottom")


def _anchors(picture: GraphPicture, placed: PlacedGraph) -> dict[int, _Anchor]:
    """Where edges meet each node: the middle of a marker, the borders of what has some."""
    anchors: dict[int, _Anchor] = {}
    for number, box in zip(picture.of(*MARKERS), placed.items, strict=True):
        if picture.shapes[number] == "group":
            anchors[number] = _Anchor(box.x, box.y + box.height / 2, box.y - box.height / 2)
        else:
            anchors[number] = _Anchor(box.x - box.width / 2 + _diameter(picture, number) / 2, box.y, box.y)
    for number in picture.of("token"):
        box = placed.tokens[picture.positions[number]]
        anchors[number] = _Anchor(box.x, box.y + box.height / 2 + 1, box.y)
    for number, box in zip(picture.of("output"), placed.outputs, strict=True):
        anchors[number] = _Anchor(box.x, box.y, box.y - box.height / 2)
    return anchors


def _draw_edges(canvas: Canvas, picture: GraphPicture, anchors: dict[int, _Anchor]) -> None:
    """Edges leave upwards and arrive from below; heavy ones lie on top of light ones."""
    sizes = np.abs(picture.weights) / max(float(np.max(np.abs(picture.weights), initial=0)), 1e-30)
    curves: list[Curve] = []
    order = np.argsort(sizes).tolist()
    for edge in order:
        start, end = anchors[int(picture.sources[edge])], anchors[int(picture.targets[edge])]
        bend = (end.bottom - start.top) / 2
        corners = [
            (start.x, start.top),
            (start.x, start.top + bend),
            (end.x, end.bottom - bend),
            (end.x, end.bottom),
        ]
        curves.append(Curve(corners, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]))
    colours = [
        to_rgba(BLUE if picture.weights[edge] > 0 else VERMILLION, 0.25 + 0.6 * float(sizes[edge])) for edge in order
    ]
    widths = canvas.scale * (_THINNEST + (_WIDEST - _THINNEST) * sizes[order])
    canvas.ax.add_collection(
        PathCollection(curves, facecolors="none", edgecolors=colours, linewidths=widths, zorder=1), autolim=False
    )


def _draw_node(canvas: Canvas, picture: GraphPicture, number: int, box: Box) -> None:
    marker, colour, _ = MARKERS[picture.shapes[number]]
    diameter, left = _diameter(picture, number), box.x - box.width / 2
    if picture.shapes[number] == "group":
        canvas.rectangle(box, rounded=3.0, linewidth=0.8, facecolor="white", edgecolor=INK, zorder=2)
        left += _INSET
    # A diamond of a given size is drawn wider than a circle of it.
    size = canvas.scale * diameter * (0.75 if marker == "D" else 0.88 if marker == "s" else 1)
    middle = left + diameter / 2
    dot = Line2D([middle], [box.y], marker=marker, markersize=size, color=colour, ls="", zorder=3)
    dot.set(markeredgecolor="white", markeredgewidth=0.6 * canvas.scale)
    canvas.ax.add_line(dot)
    if not (label := wrapped(picture.labels[number])):
        return
    halo = [withStroke(linewidth=2.4 * canvas.scale, foreground="white", alpha=0.9)]
    note, right = picture.notes.get(number, ""), left + diameter + _BESIDE
    canvas.text_and_note(right, box.y, (label, _NODE_FONT), note, ha="left", path_effects=halo, zorder=5)


def _draw_key(canvas: Canvas, picture: GraphPicture) -> None:
    """What markers and colours mean, for those that occur, and the captions."""
    found = [MARKERS[shape] for shape in MARKERS if shape in picture.shapes]
    handles = [Line2D([], [], marker=marker, color=colour, ls="", label=name) for marker, colour, name in found]
    if "group" in picture.shapes:
        handles[-1].set(marker="s", markerfacecolor="white", markeredgewidth=0.8 * canvas.scale)
    for colour, name, occurs in (
        (BLUE, "excites", bool((picture.weights > 0).any())),
        (VERMILLION, "inhibits", bool((picture.weights < 0).any())),
    ):
        handles += [Line2D([], [], color=colour, linewidth=1.6, label=name)] if occurs else []
    captions = _captions(picture)
    floor = -below(picture) + 7
    key = canvas.ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-4, floor - 2 + _CAPTION_LINE * len(captions)),
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
    for line, text in enumerate(reversed(captions)):
        colour = VERMILLION if text == picture.missing and picture.alarming else GREY
        canvas.text(0.0, floor + _CAPTION_LINE * line, text, _KEY_FONT, ha="left", color=colour)
