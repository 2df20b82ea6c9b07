"""The picture of an attribution graph: tokens below, layers upwards, outputs on top, as a paper prints it.

Circles are features and diamonds are errors, their areas by influence; squares are what else a complete graph has
(biases, positions, whole MLP outputs); boxes are supernodes. Edges are as wide as their weights, blue where they excite
and red where they inhibit. A graph whose rows do not add up says so below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.supernodes import GroupedGraph
from open_clt.visualization.graph.ink import (
    AROUND,
    LEFT,
    MARKERS,
    TITLE_FONT,
    TOKEN_FONT,
    Canvas,
    below,
    draw,
    narrowest,
    node_size,
    output_size,
)
from open_clt.visualization.graph.layout import Item, Output, Page, PlacedGraph, Size, place
from open_clt.visualization.graph.picture import GraphPicture, Shape, picture_of
from open_clt.visualization.labels import text_size, token_label
from open_clt.visualization.style import figure_of, save, styled


def visualize_attribution_graph(
    graph: AttributionGraph | GroupedGraph | GraphPicture,
    *,
    max_nodes: int = 60,
    max_edges: int = 160,
    kinds: Sequence[Shape] = ("feature", "error", "other"),
    title: str | None = None,
    ax: Axes | None = None,
    save_path: str | Path | None = None,
) -> Figure:
    """Draw an attribution graph: its outputs, its tokens, and the ``max_nodes`` most influential nodes between them.

    In a graph that was grouped (``supernodes.group``) every supernode is a box with its label and how many members it
    has. ``kinds`` says which other nodes may be drawn: features, errors, other. Of the edges, the ``max_edges`` that
    carry most influence are drawn, and every node's strongest. Labels that ``AttributionGraph.with_labels`` gave to
    features stand beside them, else their index. A figure of its own is as large as its labels need; in a given ``ax``
    everything is scaled to fit. Returns the figure; raises ConfigError if ``save_path`` ends in anything but .png, .svg
    or .pdf.
    """
    with styled(save_path):
        picture = graph if isinstance(graph, GraphPicture) else picture_of(graph, max_nodes, max_edges, kinds)
        outside = LEFT + AROUND, below(picture) + AROUND + (2 * TITLE_FONT if title else 0)
        if ax is None:
            placed = _layout(picture, Page())
            size = placed.width + outside[0], placed.height + outside[1]
            ax = Figure(figsize=(size[0] / 72, size[1] / 72)).add_axes((0, 0, 1, 1))
        else:
            box = ax.get_window_extent()
            size = box.width / figure_of(ax).dpi * 72, box.height / figure_of(ax).dpi * 72
            placed = _fitted(picture, size, outside)
        draw(Canvas(ax, size, _scale(placed, size, outside), below(picture)), picture, placed, title)
        save(figure_of(ax), save_path)
    return figure_of(ax)


def _layout(picture: GraphPicture, page: Page) -> PlacedGraph:
    """Measure every label and place every node; nodes of a cell stand on the side of what they are connected to."""
    across = _across(picture)
    items = [
        Item(picture.positions[n], picture.rows[n], node_size(picture, n), across[n]) for n in picture.of(*MARKERS)
    ]
    outputs = [Output(picture.positions[n], output_size(picture, n)) for n in picture.of("output")]
    tokens = [text_size(token_label(token), TOKEN_FONT) for token in picture.tokens]
    rows = sorted({*map(float, range(picture.n_layers)), *(item.row for item in items)})
    return place(items, tokens, outputs, rows, replace(page, narrowest=max(page.narrowest, narrowest(picture))))


def _scale(placed: PlacedGraph, size: Size, outside: Size) -> float:
    return min(1.0, size[0] / (placed.width + outside[0]), size[1] / (placed.height + outside[1]))


def _fitted(picture: GraphPicture, size: Size, outside: Size) -> PlacedGraph:
    """The layout that has to be made least smaller to fit a given size: as wide for its height as that is."""
    candidates: list[PlacedGraph] = []
    for enlarged in np.geomspace(1, 3, 7).tolist():
        width, height = size[0] * enlarged - outside[0], size[1] * enlarged - outside[1]
        page = Page(widest=width, tallest=height, wider=1.0, narrowest=max(width, Page.narrowest), lowest=height)
        candidates.append(_layout(picture, page))
    return max(candidates, key=lambda placed: _scale(placed, size, outside))


def _across(picture: GraphPicture) -> list[float]:
    """Mean position of what each node is connected to, by weight; its own if it is connected to nothing."""
    positions, weights = np.array(picture.positions, dtype=float), np.abs(picture.weights) + 1e-12
    pulls, sums = positions * 1e-12, np.full(len(positions), 1e-12)
    for here, there in ((picture.sources, picture.targets), (picture.targets, picture.sources)):
        np.add.at(pulls, here, weights * positions[there])
        np.add.at(sums, here, weights)
    return (pulls / sums).tolist()
