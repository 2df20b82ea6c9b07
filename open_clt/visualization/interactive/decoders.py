"""Interactive figure of decoders: how much the features of each layer write to each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from open_clt.config.arguments import checked_arguments
from open_clt.visualization.inputs import array
from open_clt.visualization.interactive.frame import (
    COLOUR_BAR_ROOM,
    Margins,
    matrix_trace,
    new_figure,
    ticks_along_x,
    ticks_along_y,
    value_scale,
)
from open_clt.visualization.interactive.saving import check_interactive_path, save_interactive
from open_clt.visualization.preparation import row_layers
from open_clt.visualization.style import Array

_MOST_ANNOTATED = 16
_STATIC = "visualize_report"
"""The static figure that shows decoder norms, but of each source layer only."""


@checked_arguments
def interactive_decoder_norms(
    norms: Float[Array, "source target"],
    *,
    layers: Sequence[int] | None = None,
    title: str | None = None,
    save_path: str | Path | None = None,
) -> go.Figure:
    """Show the mean decoder norms of each source layer (rows, the first at the bottom) to each target layer (columns).

    ``layers`` are the layers of the rows and of the columns, if the transcoder does not have all.
    Pairs of layers without decoders are 0 and stay empty; ``decoder_norms_between_layers`` computes the matrix.
    """
    check_interactive_path(save_path, _STATIC)
    values = np.asarray(array("norms", norms, "source", "target"), dtype=np.float64)
    rows, columns = values.shape
    names = [row_layers(layers, rows), row_layers(layers, columns)]
    is_annotated = max(rows, columns) <= _MOST_ANNOTATED
    cell = float(np.clip(600 / max(rows, columns), 8, 52))
    texts = [
        [
            f"from layer {source} to layer {target}<br>" + (f"mean norm {value:.4g}" if value else "no decoders")
            for target, value in zip(names[1], row, strict=True)
        ]
        for source, row in zip(names[0], values.tolist(), strict=True)
    ]
    trace = matrix_trace(values, texts, "mean decoder norm").update(**value_scale(values))
    if is_annotated:
        written = [[f"{value:.2g}" if value else "" for value in row] for row in values.tolist()]
        trace.update(text=written, texttemplate="%{text}", textfont={"size": 11})
    sources, targets = ([f"L{layer}" for layer in numbered] for numbered in names)
    across, up = ticks_along_x(targets, targets, cell), ticks_along_y(sources, sources, cell)
    figure = new_figure(
        (max(260.0, cell * columns), max(260.0, cell * rows)),
        Margins(left=up.room, right=COLOUR_BAR_ROOM, bottom=across.room),
        title="Mean decoder norms by source and target layer" if title is None else title,
        static=_STATIC,
        traces=[trace],
    )
    figure.update_layout(xaxis=across.axis("target layer", ticks="", showline=False))
    figure.update_layout(yaxis=up.axis("source layer", ticks="", showline=False))
    if save_path is not None:
        save_interactive(figure, save_path)
    return figure
