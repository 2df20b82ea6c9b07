"""Drawing of an attribution graph after its layout: bands of layers, edges, nodes, texts and the key."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.path import Path as Curve
from matplotlib.patheffects import withStroke

from open_clt.visualization.graph.arrangement import (
    ABOVE,
    CAPTION_LINE,
    KEY_FONT,
    LEFT,
    MARKERS,
    POINTS,
    Anchor,
    anchors_of,
    below,
    captions_of,
    diameter_of,
    edge_curve,
    relative_sizes,
)
from open_clt.visualization.graph.layout import Box, PlacedGraph, Size
from open_clt.visualization.graph.picture import GraphPicture
from open_clt.visualization.labels import text_size, token_label, wrapped
from open_clt.visualization.style import BLUE, GREY, INK, PALE, VERMILLION
from open_clt.visualization.titles import TITLE_FONT

_THINNEST, _WIDEST = 0.3, 3.0
"""Widths of edges, in points."""


@final
class Canvas:
    """Axes whose units are points; where the axes are too small, fonts, lines and markers shrink by ``scale``."""

    def __init__(self, ax: Axes, size: Size, scale: float, floor: float) -> None:
        self.ax, self.scale = ax, scale
        ax.set_axis_off()
        ax.set_xlim(-LEFT, size[0] / scale - LEFT)
        ax.set_ylim(-floor, size[1] / scale - floor)

    def text(self, x: float, y: float, text: str, size: float, **settings: Any) -> None:
        """Write a text; it is centred unless ``settings`` say otherwise."""
        settings = {"ha": "center", "va": "center", "color": INK} | settings
        self.ax.text(x, y, text, fontsize=size * self.scale, parse_math=False, **settings)

    def text_and_note(self, x: float, y: float, text: tuple[str, float], note: str, **settings: Any) -> None:
        """Write a text of a given font size, and a smaller note below it if there is one; both are centred together."""
        if not note:
            return self.text(x, y, *text, **settings)
        half = (text_size(*text)[1] + POINTS.between + text_size(note, POINTS.note_font)[1]) / 2
        self.text(x, y + half, *text, **settings, va="top")
        self.text(x, y - half, note, POINTS.note_font, **settings, va="bottom", color=GREY)

    def rectangle(self, box: Box, *, rounded: float = 0.0, linewidth: float = 0.0, **settings: Any) -> None:
        """Draw a rectangle; its corners are rounded with a radius of ``rounded`` points."""
        corner = box.x - box.width / 2, box.y - box.height / 2
        settings["linewidth"] = linewidth * self.scale
        if rounded:
            style = f"round,pad=0,rounding_size={rounded}"
            self.ax.add_patch(FancyBboxPatch(corner, box.width, box.height, boxstyle=style, **settings))
        else:
            self.ax.add_patch(Rectangle(corner, box.width, box.height, **settings))


def draw(canvas: Canvas, picture: GraphPicture, placed: PlacedGraph, title: str) -> None:
    """Draw the whole picture, from back to front; a title may have several lines."""
    for row, (bottom, top) in placed.rows.items():
        layer, middle = math.ceil(row), (bottom + top) / 2
        colour = PALE if layer % 2 == 0 else "white"
        canvas.rectangle(Box(placed.width / 2, middle, placed.width, top - bottom), color=colour, zorder=0)
        if row == layer or layer == picture.n_layers:
            name = "input" if layer < 0 else "end" if layer == picture.n_layers else f"L{layer}"
            canvas.text(-6.0, middle, name, KEY_FONT, ha="right", color=GREY)
    _draw_edges(canvas, picture, anchors_of(picture, placed))
    for node, box in zip(picture.of(*MARKERS), placed.items, strict=True):
        _draw_node(canvas, picture, node, box)
    for box, token in zip(placed.tokens, picture.tokens, strict=True):
        rotation = 90 if placed.upright_tokens else 0
        canvas.text(box.x, box.y, token_label(token), POINTS.token_font, rotation=rotation)
    for box, node in zip(placed.outputs, picture.of("output"), strict=True):
        canvas.rectangle(box, rounded=2.0, linewidth=0.7, facecolor="white", edgecolor=INK, zorder=4)
        label, note = wrapped(picture.labels[node], 24), picture.notes.get(node, "")
        canvas.text_and_note(box.x, box.y, (label, POINTS.output_font), note, zorder=5)
    _draw_key(canvas, picture)
    if title:
        canvas.text(0.0, placed.height + ABOVE, title, TITLE_FONT, ha="left", va="bottom")


def _draw_edges(canvas: Canvas, picture: GraphPicture, anchors: dict[int, Anchor]) -> None:
    """Draw edges that leave a node upwards and arrive from below; heavy edges lie on top of light ones."""
    sizes = relative_sizes(picture)
    curves: list[Curve] = []
    order = np.argsort(sizes).tolist()
    for edge in order:
        start, end = anchors[int(picture.sources[edge])], anchors[int(picture.targets[edge])]
        curves.append(Curve(edge_curve(start, end), [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]))
    seen = np.ones(len(order)) if picture.edge_frequencies is None else picture.edge_frequencies
    colours = [
        to_rgba(BLUE if picture.weights[edge] > 0 else VERMILLION, float(seen[edge] * (0.25 + 0.6 * sizes[edge])))
        for edge in order
    ]
    widths = canvas.scale * (_THINNEST + (_WIDEST - _THINNEST) * sizes[order])
    canvas.ax.add_collection(
        PathCollection(curves, facecolors="none", edgecolors=colours, linewidths=widths, zorder=1), autolim=False
    )


def _draw_node(canvas: Canvas, picture: GraphPicture, node: int, box: Box) -> None:
    marker, colour, _ = MARKERS[picture.shapes[node]]
    diameter, left = diameter_of(picture, node), box.x - box.width / 2
    if picture.shapes[node] == "group":
        canvas.rectangle(box, rounded=3.0, linewidth=0.8, facecolor="white", edgecolor=INK, zorder=2)
        left += POINTS.inset
    # At the same marker size, matplotlib draws diamonds and squares larger than circles.
    size = canvas.scale * diameter * (0.75 if marker == "D" else 0.88 if marker == "s" else 1)
    middle = left + diameter / 2
    opaque = to_rgba(colour, picture.opacity(node))
    dot = Line2D([middle], [box.y], marker=marker, markersize=size, markerfacecolor=opaque, ls="", zorder=3)
    dot.set(markeredgecolor="white", markeredgewidth=0.6 * canvas.scale)
    canvas.ax.add_line(dot)
    if not (label := wrapped(picture.labels[node])):
        return
    halo = [withStroke(linewidth=2.4 * canvas.scale, foreground="white", alpha=0.9)]
    note, right = picture.notes.get(node, ""), left + diameter + POINTS.beside
    canvas.text_and_note(right, box.y, (label, POINTS.node_font), note, ha="left", path_effects=halo, zorder=5)


def _draw_key(canvas: Canvas, picture: GraphPicture) -> None:
    """Draw the key of all markers and colours that occur, and the captions below it."""
    markers = [MARKERS[shape] for shape in MARKERS if shape in picture.shapes]
    handles = [Line2D([], [], marker=marker, color=colour, ls="", label=name) for marker, colour, name in markers]
    if "group" in picture.shapes:
        handles[-1].set(marker="s", markerfacecolor="white", markeredgewidth=0.8 * canvas.scale)
    for colour, name, occurs in (
        (BLUE, "excites", bool((picture.weights > 0).any())),
        (VERMILLION, "inhibits", bool((picture.weights < 0).any())),
    ):
        handles += [Line2D([], [], color=colour, linewidth=1.6, label=name)] if occurs else []
    captions = captions_of(picture)
    floor = -below(picture) + 7
    key = canvas.ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-4, floor - 2 + CAPTION_LINE * len(captions)),
        bbox_transform=canvas.ax.transData,
        ncols=len(handles),
        fontsize=KEY_FONT * canvas.scale,
        markerscale=0.7 * canvas.scale,
        handlelength=1.2,
        columnspacing=1.4,
        borderpad=0,
        borderaxespad=0,
    )
    key.set_zorder(6)
    for line, text in enumerate(reversed(captions)):
        colour = VERMILLION if text == picture.missing and picture.alarming else GREY
        canvas.text(0.0, floor + CAPTION_LINE * line, text, KEY_FONT, ha="left", color=colour)
