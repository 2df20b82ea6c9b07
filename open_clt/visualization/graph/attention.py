"""The picture of why an attention head looked at a position: a heat map of pairs of sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from open_clt.attribution.attention_table import AttentionExplanation, Labels
from open_clt.config.arguments import Count, checked_arguments
from open_clt.visualization.figures import colour_bar, hide_frame, inches
from open_clt.visualization.labels import fit_tick_labels, token_label
from open_clt.visualization.style import DIVERGING, INK, figure_of
from open_clt.visualization.titles import Titles, drawing, title_of


@checked_arguments
def visualize_attention(
    explanation: AttentionExplanation,
    *,
    labels: Labels | None = None,
    top_n: Count = 12,
    constants: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
    save_path: str | Path | None = None,
) -> Figure:
    """Draw the part of an attention score that pairs of sources make, for the ``top_n`` sources of each side.

    Rows are the sources of the query that have the largest entries, columns those of the key. Without ``constants``,
    biases and positional embeddings are left out, which are the same for every text.
    """
    table = explanation.table() if constants else explanation.table_of_text()
    rows, columns = (_largest(table, axis, top_n) for axis in (1, 0))
    values = table[rows][:, columns]
    names = [
        [explanation.name(node, labels) for node in nodes[chosen].ids()]
        for nodes, chosen in ((explanation.query_nodes, rows), (explanation.key_nodes, columns))
    ]
    look, tokens = explanation.look, explanation.token_strings
    what = f"Why head {look.layer}.{look.head} looks from {tokens[look.query]!r} at {tokens[look.key]!r}"
    what += "" if look.versus is None else f" rather than {tokens[look.versus]!r}"
    default = title_of(what, prompt=explanation.prompt, model=explanation.model)
    size, measured = _size(names, values), "score" if look.versus is None else "difference of scores"
    with drawing(ax, size, save_path, Titles(title, default, beside=f"{measured} {explanation.score:.2f}")) as ax:
        largest = max(float(values.abs().max()), 1e-30)
        image = ax.imshow(values.numpy(), cmap=DIVERGING, vmin=-largest, vmax=largest, interpolation="nearest")
        colour_bar(ax, image, "part of the score")
        hide_frame(ax)
        for (row, column), value in np.ndenumerate(values.numpy()):
            colour = "white" if abs(value) > 0.6 * largest else INK
            text = f"{value:.2f}".replace("-", "−")
            ax.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
        ax.set_ylabel("source of the query")
        ax.set_xlabel("source of the key")
        fit_tick_labels(ax, *([token_label(name, 32) for name in side] for side in reversed(names)))
    return figure_of(ax)


def _largest(table: Float[Tensor, "row column"], axis: int, count: int) -> Int[Tensor, "chosen"]:
    """The rows (``axis`` 1) or columns (0) with the largest sums of absolute entries, in their order."""
    sizes = table.abs().sum(axis)
    return sizes.topk(min(count, len(sizes))).indices.sort().values


def _size(names: Sequence[Sequence[str]], values: Float[Tensor, "row column"]) -> tuple[float, float]:
    """Width and height of a new figure in inches."""
    rows, columns = values.shape
    beside, below = (inches([token_label(name, 32) for name in side]) for side in names)
    return float(np.clip(2.0 + beside + 0.42 * columns, 4.5, 14)), float(np.clip(1.6 + below + 0.3 * rows, 3, 12))
