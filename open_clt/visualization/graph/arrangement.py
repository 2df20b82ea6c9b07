"""The arrangement of a graph's picture: the sizes of labels and markers, and where everything stands, in points.

Both the static and the interactive figure draw what this module arranges, so that they show the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt

from open_clt.visualization.graph.layout import Item, Output, Page, PlacedGraph, Size, place
from open_clt.visualization.graph.picture import GraphPicture, Shape
from open_clt.visualization.labels import text_size, token_label, wrapped
from open_clt.visualization.style import GREY, INK, ORANGE
from open_clt.visualization.titles import TITLE_FONT

MARKERS: dict[Shape, tuple[str, str, str]] = {
    "feature": ("o", INK, "feature"),
    "error": ("D", ORANGE, "error"),
    "other": ("s", GREY, "bias, position, MLP output"),
    "group": ("o", INK, "supernode"),
}
"""Marker, colour and name in the key of each shape between tokens and outputs."""
LEFT, AROUND = 30.0, 8.0
"""Room for the names of layers on the left, and the margin on the other sides, in points."""
ABOVE = 5.0
"""Distance between the outputs and the title, in points."""
KEY_FONT, CAPTION_LINE = 7.0, 9.0
"""Size of the key's letters, and height of one line of the caption, in points."""


@final
@dataclass(frozen=True, kw_only=True)
class Measures:
    """Sizes of the letters, markers and distances in a picture, in points or in pixels."""

    node_font: float = 6.5
    """Size of the letters of a label."""
    note_font: float = 5.5
    """Size of the letters of the smaller line below a label."""
    output_font: float = 8.0
    """Size of the letters of an output."""
    token_font: float = 8.0
    """Size of the letters of a token."""
    smallest: float = 3.5
    """Diameter of a node without influence."""
    largest: float = 12.0
    """Diameter of the most influential node."""
    beside: float = 2.0
    """Distance between a node and its label."""
    between: float = 1.5
    """Distance between a label and the note below it."""
    inset: float = 3.5
    """Distance between the border of a supernode and its content."""


POINTS = Measures()
"""The sizes of a printed picture, in points."""
PIXELS = Measures(
    node_font=11.0, note_font=11.0, output_font=12.0, token_font=12.0, smallest=6.0, largest=18.0, beside=5.0, inset=5.0
)
"""The sizes of a picture on a screen, in pixels; no letter is smaller than 11 pixels."""


class Anchor(NamedTuple):
    """The points of a node where edges attach: edges leave at ``top`` and arrive at ``bottom``."""

    x: float
    top: float
    bottom: float


def node_size(picture: GraphPicture, node: int, measures: Measures = POINTS) -> Size:
    """Return the size of a node together with its label."""
    diameter = diameter_of(picture, node, measures)
    width, height = _text_size(picture, node, measures, 16, measures.node_font)
    inset = 2 * measures.inset if picture.shapes[node] == "group" else 0.0
    label_width = measures.beside + width if width else 0.0
    return diameter + label_width + inset, max(diameter, height) + inset


def output_size(picture: GraphPicture, node: int, measures: Measures = POINTS) -> Size:
    """Return the size of an output together with its border."""
    width, height = _text_size(picture, node, measures, 24, measures.output_font)
    return width + 7, height + 5


def below(picture: GraphPicture) -> float:
    """Return the height of the key and the captions below the picture."""
    return 27.0 + CAPTION_LINE * len(captions_of(picture))


def title_height(title: str) -> float:
    """Return the height of a title above the picture, with its distance; 0 for an empty one."""
    return text_size(title, TITLE_FONT)[1] + ABOVE if title else 0.0


def narrowest(picture: GraphPicture) -> float:
    """Return the width of the longest line of the caption."""
    return max(text_size(line, KEY_FONT)[0] for line in captions_of(picture))


def captions_of(picture: GraphPicture) -> list[str]:
    """Return the lines below the picture: what is drawn of the graph, and what its rows miss if they miss anything."""
    lines = [f"Area by influence, width by weight. {picture.caption}"]
    lines += [picture.averages] if picture.averages else []
    return [*lines, picture.missing] if picture.missing else lines


def diameter_of(picture: GraphPicture, node: int, measures: Measures = POINTS) -> float:
    """Return the diameter of a node's marker; its area grows with influence, from the smallest visible marker."""
    share = picture.influence[node] / max(picture.largest_influence, 1e-30)
    smallest, largest = measures.smallest**2, measures.largest**2
    return float(np.sqrt(smallest + (largest - smallest) * share))


def _text_size(picture: GraphPicture, node: int, measures: Measures, line_length: int, font: float) -> Size:
    """Return the size of a label together with the note below it."""
    if not picture.labels[node]:
        return 0.0, 0.0
    width, height = text_size(wrapped(picture.labels[node], line_length), font)
    if node not in picture.notes:
        return width, height
    note = text_size(picture.notes[node], measures.note_font)
    return max(width, note[0]), height + measures.between + note[1]


def arranged(picture: GraphPicture, page: Page, measures: Measures = POINTS) -> PlacedGraph:
    """Measure every label and place every node; nodes of a cell are ordered by where their neighbours stand."""
    return place(*measured(picture, measures), page)


class Measured(NamedTuple):
    """What the layouts of a picture on all pages start from: its parts, with their sizes."""

    items: list[Item]
    tokens: list[Size]
    outputs: list[Output]
    rows: list[float]


def measured(picture: GraphPicture, measures: Measures = POINTS) -> Measured:
    """Measure every label, and find the order of nodes in their cells."""
    order = _neighbour_positions(picture)
    items = [
        Item(picture.positions[node], picture.rows[node], node_size(picture, node, measures), order[node])
        for node in picture.of(*MARKERS)
    ]
    outputs = [Output(picture.positions[node], output_size(picture, node, measures)) for node in picture.of("output")]
    tokens = [text_size(token_label(token), measures.token_font) for token in picture.tokens]
    rows = sorted({*map(float, range(picture.n_layers)), *(item.row for item in items)})
    return Measured(items, tokens, outputs, rows)


def anchors_of(picture: GraphPicture, placed: PlacedGraph, measures: Measures = POINTS) -> dict[int, Anchor]:
    """Return where edges meet each node: the middle of a marker, or the border of a box or token."""
    anchors: dict[int, Anchor] = {}
    for node, box in zip(picture.of(*MARKERS), placed.items, strict=True):
        if picture.shapes[node] == "group":
            anchors[node] = Anchor(box.x, box.y + box.height / 2, box.y - box.height / 2)
        else:
            anchors[node] = Anchor(box.x - box.width / 2 + diameter_of(picture, node, measures) / 2, box.y, box.y)
    for node in picture.of("token"):
        box = placed.tokens[picture.positions[node]]
        anchors[node] = Anchor(box.x, box.y + box.height / 2 + 1, box.y)
    for node, box in zip(picture.of("output"), placed.outputs, strict=True):
        anchors[node] = Anchor(box.x, box.y, box.y - box.height / 2)
    return anchors


def edge_curve(start: Anchor, end: Anchor) -> npt.NDArray[np.float64]:
    """Return the four control points of an edge, a cubic Bezier curve that leaves upwards and arrives from below."""
    bend = (end.bottom - start.top) / 2
    return np.array(
        [(start.x, start.top), (start.x, start.top + bend), (end.x, end.bottom - bend), (end.x, end.bottom)]
    )


def relative_sizes(picture: GraphPicture) -> npt.NDArray[np.float64]:
    """Return the absolute weight of each edge, as a share of the largest one."""
    return np.abs(picture.weights) / max(float(np.max(np.abs(picture.weights), initial=0)), 1e-30)


def _neighbour_positions(picture: GraphPicture) -> list[float]:
    """Return the weighted mean position of the neighbours of each node; a node without edges keeps its own position."""
    positions, weights = np.array(picture.positions, dtype=float), np.abs(picture.weights) + 1e-12
    weighted_sums, weight_sums = positions * 1e-12, np.full(len(positions), 1e-12)
    for nodes, neighbours in ((picture.sources, picture.targets), (picture.targets, picture.sources)):
        np.add.at(weighted_sums, nodes, weights * positions[neighbours])
        np.add.at(weight_sums, nodes, weights)
    return (weighted_sums / weight_sums).tolist()
