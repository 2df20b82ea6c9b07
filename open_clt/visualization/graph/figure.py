"""The figure of an attribution graph: tokens at the bottom, one row per layer above them, outputs at the top.

Circles are features, diamonds are errors, and squares are the other nodes of a complete graph (biases, positional
embeddings, whole MLP outputs). The area of a marker shows its node's influence. Boxes are supernodes. The width of an
edge shows its weight; edges that excite are blue and edges that inhibit are red. If the rows of the graph do not add
up, a line below the picture says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from open_clt.config.arguments import NotNegative, checked_arguments
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.supernodes import GroupedGraph
from open_clt.visualization.graph.arrangement import AROUND, LEFT, arranged, below, narrowest, title_height
from open_clt.visualization.graph.ink import Canvas, draw
from open_clt.visualization.graph.layout import Page, PlacedGraph, Size
from open_clt.visualization.graph.picture import GraphPicture, Shape, picture_of
from open_clt.visualization.style import NotebookFigure, figure_of, save, styled
from open_clt.visualization.titles import fitted


@checked_arguments
def visualize_attribution_graph(
    graph: AttributionGraph | GroupedGraph | GraphPicture,
    *,
    max_nodes: NotNegative = 60,
    max_edges: NotNegative = 160,
    kinds: Sequence[Shape] = ("feature", "error", "other"),
    title: str | None = None,
    ax: Axes | None = None,
    save_path: str | Path | None = None,
) -> Figure:
    """Draw an attribution graph: its outputs, its tokens, and the ``max_nodes`` most influential nodes between them.

    In a grouped graph (``supernodes.group``), each supernode is a box with its label and its number of members.
    ``kinds`` selects the other nodes that may be drawn: features, errors, other. The ``max_edges`` edges that carry
    most influence are drawn, and also the strongest edges from and to every node. A feature is labelled with its label
    from ``AttributionGraph.with_labels``, or with its index if it has none. A new figure is as large as its labels
    need; in a given ``ax`` everything is scaled to fit. Without a ``title``, a new figure has one with the prompt and
    the model; an empty ``title`` leaves it out. Returns the figure. Raises ConfigError if ``save_path`` does not end in
    .png, .svg or .pdf.
    """
    with styled(save_path):
        picture = graph if isinstance(graph, GraphPicture) else picture_of(graph, max_nodes, max_edges, kinds)
        sides, under = LEFT + AROUND, below(picture) + AROUND
        if ax is None:
            placed = _layout(picture, Page())
            lines = fitted(picture.title if title is None else title, placed.width)
            borders = sides, under + title_height(lines)
            size = placed.width + borders[0], placed.height + borders[1]
            ax = NotebookFigure(figsize=(size[0] / 72, size[1] / 72)).add_axes((0, 0, 1, 1))
        else:
            box = ax.get_window_extent()
            size = box.width / figure_of(ax).dpi * 72, box.height / figure_of(ax).dpi * 72
            lines = fitted(title or "", size[0] - sides)
            borders = sides, under + title_height(lines)
            placed = _layout_to_fit(picture, size, borders)
        draw(Canvas(ax, size, _scale(placed, size, borders), below(picture)), picture, placed, lines)
        save(figure_of(ax), save_path)
    return figure_of(ax)


def _layout(picture: GraphPicture, page: Page) -> PlacedGraph:
    """Place every node on a page that is at least as wide as the caption."""
    return arranged(picture, replace(page, narrowest=max(page.narrowest, narrowest(picture))))


def _scale(placed: PlacedGraph, size: Size, borders: Size) -> float:
    """Return the factor, at most 1, that shrinks a layout with its borders to a given size."""
    return min(1.0, size[0] / (placed.width + borders[0]), size[1] / (placed.height + borders[1]))


def _layout_to_fit(picture: GraphPicture, size: Size, borders: Size) -> PlacedGraph:
    """Return, of several layouts with about the proportions of ``size``, the one that has to be shrunk least to fit."""
    candidates: list[PlacedGraph] = []
    for factor in np.geomspace(1, 3, 7).tolist():
        width, height = size[0] * factor - borders[0], size[1] * factor - borders[1]
        page = Page(widest=width, tallest=height, wider=1.0, narrowest=max(width, Page.narrowest), lowest=height)
        candidates.append(_layout(picture, page))
    return max(candidates, key=lambda placed: _scale(placed, size, borders))
