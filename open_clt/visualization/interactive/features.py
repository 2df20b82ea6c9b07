"""Interactive figures of features: heatmaps, maps, correlations, importance and density.

Each function shows what the static function of the same name shows, takes the same arguments apart from axes, and
refuses the same mistakes. Under the mouse stands what is known of a feature: its label, its activation, the output
tokens that it raises and lowers. ``records`` (``features.records``) give these facts, and labels to features without
one; a model with its transcoder gives the output tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from open_clt.config.arguments import Count, Perplexity, Seed, checked_arguments
from open_clt.features.embedding import EmbeddingMethod, EmbeddingSpace
from open_clt.features.figure_data import FeatureDirections, TranscodedModel, output_effects
from open_clt.features.firing import FeatureActivations
from open_clt.features.records import FeatureRecord
from open_clt.visualization.figures import draw_bars, draw_cells, draw_points, draw_rows, visualize_feature_density
from open_clt.visualization.interactive.frame import (
    COLOUR_BAR_ROOM,
    WIDEST,
    Margins,
    correlation_scale,
    layer_hex,
    layer_scale,
    matrix_trace,
    new_figure,
    share_axis,
    ticks_along_x,
    ticks_along_y,
    value_scale,
)
from open_clt.visualization.interactive.hover import FeatureNotes
from open_clt.visualization.interactive.notebook_plot import NotebookPlot
from open_clt.visualization.interactive.saving import check_interactive_path, finished
from open_clt.visualization.interactive.text import BREAK, plain_text, token_text
from open_clt.visualization.labels import token_label
from open_clt.visualization.preparation import (
    FeaturePoints,
    FeatureRows,
    Labels,
    correlation_cells,
    density_counts,
    feature_points,
    feature_rows,
    importance_bars,
    layer_rows,
)
from open_clt.visualization.style import INK, Array

_MOST_ANNOTATED = 16
_MOST_LINES = 24
"""Largest number of traces of a histogram; with more layers, neighbouring layers share a trace and a colour."""
_POINT = 1.7
"""Pixels of the diameter of a point, per square root of a square point."""


@checked_arguments
def interactive_feature_heatmap(
    activations: TranscodedModel | FeatureActivations | Float[Array, "feature position"],
    tokens: str | Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    *,
    labels: Labels | None = None,
    records: Iterable[FeatureRecord] = (),
    top_n: Count = 20,
    title: str | None = None,
    save_path: str | Path | None = None,
) -> go.Figure:
    """Show the activations of features (rows) at the tokens of a text (columns); see ``visualize_feature_heatmap``."""
    check_interactive_path(save_path, "visualize_feature_heatmap")
    notes = FeatureNotes(labels, records)
    rows = feature_rows(activations, tokens, names, labels=notes.labels, top_n=top_n)
    if isinstance(activations, TranscodedModel):
        notes.outputs = output_effects(activations, rows.features or ())
    figure = _heatmap(rows, notes, "visualize_feature_heatmap", title)
    return finished(figure, save_path, partial(draw_rows, rows, "activation", title=title))


@checked_arguments
def interactive_layer_activity(
    activity: Float[Array, "layer position"],
    tokens: Sequence[str],
    *,
    quantity: str = "activation × decoder norm",
    title: str | None = None,
    save_path: str | Path | None = None,
) -> go.Figure:
    """Show the activity of each layer (rows, the first at the bottom) at each token; ``quantity`` names the values."""
    check_interactive_path(save_path, "visualize_layer_activity")
    rows = layer_rows(activity, tokens)
    figure = _heatmap(rows, FeatureNotes(), "visualize_layer_activity", title, quantity=quantity)
    return finished(figure, save_path, partial(draw_rows, rows, quantity, title=title))


@checked_arguments
def interactive_feature_embedding(
    vectors: TranscodedModel | FeatureDirections | Float[Array, "feature d_model"],
    layers: str | Sequence[str] | Sequence[int] | Int[Array, "feature"] | None = None,
    *,
    method: EmbeddingMethod = "pca",
    space: EmbeddingSpace = "decoder",
    perplexity: Perplexity = 30.0,
    seed: Seed = 0,
    sizes: Float[Array, "feature"] | None = None,
    n_layers: Count | None = None,
    labels: Labels | None = None,
    records: Iterable[FeatureRecord] = (),
    title: str | None = None,
    save_path: str | Path | None = None,
) -> go.Figure:
    """Show features as points in the plane, coloured by layer; see ``visualize_feature_embedding``.

    Features that write in similar directions are close, or with ``space="coactivation"`` features that are active on
    the same tokens.
    """
    check_interactive_path(save_path, "visualize_feature_embedding")
    chosen = feature_points(
        vectors, layers, method=method, space=space, perplexity=perplexity, seed=seed, sizes=sizes, n_layers=n_layers
    )
    notes = FeatureNotes(labels, records)
    if isinstance(vectors, TranscodedModel):
        notes.outputs = output_effects(vectors, chosen.features or ())
    x, y = np.asarray(chosen.points, dtype=np.float64).T
    marker = {
        **layer_scale(chosen.n_layers),
        "color": chosen.layers,
        "size": _POINT * np.sqrt(chosen.areas),
        "opacity": 0.75,
        "line": {"width": 0.5, "color": "white"},
    }
    texts = _point_texts(chosen, notes)
    points = go.Scatter(x=x, y=y, mode="markers", marker=marker, hovertext=texts, hoverinfo="text")
    figure = new_figure(
        (700.0, 560.0),
        Margins(right=COLOUR_BAR_ROOM),
        title=chosen.title if title is None else title,
        static="visualize_feature_embedding",
        traces=[points],
    )
    shown = {} if chosen.has_units else {"showticklabels": False, "ticks": ""}
    figure.update_layout(xaxis={"title": {"text": chosen.axes[0]}, **shown})
    figure.update_layout(yaxis={"title": {"text": chosen.axes[1]}, **shown})
    return finished(figure, save_path, partial(draw_points, chosen, title=title))


@checked_arguments
def interactive_cross_layer_correlations(
    matrix: TranscodedModel | Float[Array, "row row"],
    names: str | Sequence[str] | None = None,
    *,
    layers: Sequence[int] | None = None,
    labels: Labels | None = None,
    title: str | None = None,
    save_path: str | Path | None = None,
) -> go.Figure:
    """Show a matrix of correlations between layers or features; see ``visualize_cross_layer_correlations``."""
    check_interactive_path(save_path, "visualize_cross_layer_correlations")
    cells = correlation_cells(matrix, names, layers=layers, labels=labels)
    count = len(cells.values)
    is_annotated = count <= _MOST_ANNOTATED
    side = float(np.clip((36 if is_annotated else 22) * count, 260, 600))
    named = [plain_text(name) for name in cells.labelled]
    texts = [
        [f"{row}<br>{column}<br>correlation {value:.3f}" for column, value in zip(named, values, strict=True)]
        for row, values in zip(named, cells.values.tolist(), strict=True)
    ]
    heatmap = matrix_trace(np.asarray(cells.values), texts, "correlation")
    heatmap.update(colorscale=correlation_scale(), zmin=-1, zmax=1)
    if is_annotated:
        heatmap.update(text=_minus([[f"{value:.2f}" for value in row] for row in cells.values.tolist()]))
        heatmap.update(texttemplate="%{text}", textfont={"size": 11})
    across = ticks_along_x(cells.names, [plain_text(name) for name in cells.names], side / count)
    up = ticks_along_y(cells.labelled, named, side / count)
    figure = new_figure(
        (side, side),
        Margins(left=up.room, right=COLOUR_BAR_ROOM, bottom=across.room),
        title=cells.title if title is None else title,
        static="visualize_cross_layer_correlations",
        traces=[heatmap],
    )
    for boundary in cells.boundaries:
        line = {"color": INK, "width": 1}
        figure.add_shape(type="line", x0=boundary, x1=boundary, y0=-0.5, y1=count - 0.5, line=line)
        figure.add_shape(type="line", y0=boundary, y1=boundary, x0=-0.5, x1=count - 0.5, line=line)
    kind = "layer" if cells.layers is None else "feature"
    figure.update_layout(xaxis=across.axis(kind, ticks="", showline=False))
    figure.update_layout(yaxis=up.axis(kind, ticks="", showline=False, autorange="reversed"))
    return finished(figure, save_path, partial(draw_cells, cells, title=title))


@checked_arguments
def interactive_feature_importance(
    importance: TranscodedModel | Float[Array, "layer feature"],
    texts: str | Iterable[str] | None = None,
    *,
    labels: Labels | None = None,
    records: Iterable[FeatureRecord] = (),
    top_n: Count = 20,
    layers: Sequence[int] | None = None,
    title: str | None = None,
    save_path: str | Path | None = None,
) -> go.Figure:
    """Show the ``top_n`` most important features as bars coloured by layer; see ``visualize_feature_importance``."""
    check_interactive_path(save_path, "visualize_feature_importance")
    notes = FeatureNotes(labels, records)
    bars = importance_bars(importance, texts, labels=notes.labels, top_n=top_n, layers=layers)
    if isinstance(importance, TranscodedModel):
        notes.outputs = output_effects(importance, bars.features)
    count, shares = len(bars.features), 100 * np.asarray(bars.shares, dtype=np.float64)
    hover = [
        notes.text(feature, f"{share:.3g} % of everything written")
        for feature, share in zip(bars.features, shares.tolist(), strict=True)
    ]
    marker = {**layer_scale(bars.n_layers), "color": [feature.layer for feature in bars.features]}
    trace = go.Bar(x=shares, y=np.arange(count), orientation="h", width=0.72, marker=marker)
    trace.update(hovertext=hover, hoverinfo="text", textposition="none")
    height = float(np.clip(20 * count, 100, 1200))
    up = ticks_along_y(bars.names, [plain_text(name) for name in bars.names], height / max(count, 1))
    figure = new_figure(
        (480.0, height),
        Margins(left=up.room, right=COLOUR_BAR_ROOM),
        title=bars.title if title is None else title,
        static="visualize_feature_importance",
        traces=[trace],
    )
    figure.update_layout(xaxis={"title": {"text": "share of everything written (%)"}, "rangemode": "tozero"})
    figure.update_layout(yaxis=up.axis("feature", ticks="", showline=False, range=[count - 0.4, -0.6]))
    return finished(figure, save_path, partial(draw_bars, bars, title=title))


@checked_arguments
def interactive_feature_density(
    density: Float[Array, "layer feature"],
    *,
    layers: Sequence[int] | None = None,
    title: str | None = None,
    save_path: str | Path | None = None,
) -> go.Figure:
    """Show how often features fire: one histogram of log density per layer; see ``visualize_feature_density``."""
    check_interactive_path(save_path, "visualize_feature_density")
    histograms = density_counts(density, layers)
    count, n_layers = len(histograms.counts), histograms.layers[-1] + 1
    per_trace = -(-count // _MOST_LINES)
    edges = np.asarray(histograms.edges)
    bins = [f"{low:.3%} to {high:.3%} of tokens" for low, high in pairwise(edges.tolist())]
    colours = layer_hex(n_layers)
    traces = [go.Scatter(x=[None], y=[None], mode="markers", hoverinfo="skip", marker=_key(n_layers))]
    for start in range(0, count, per_trace):
        x, y, texts = list[float](), list[float](), list[str]()
        for row in range(start, min(start + per_trace, count)):
            layer, counts = histograms.layers[row], histograms.counts[row].tolist()
            x += [*np.repeat(edges, 2).tolist(), float("nan")]
            y += [0.0, *np.repeat(counts, 2).tolist(), 0.0, float("nan")]
            about = [f"layer {layer}: {n} features<br>active on {share}" for n, share in zip(counts, bins, strict=True)]
            texts += [about[0], *np.repeat(about, 2).tolist(), about[-1], ""]
        line = {"color": colours[histograms.layers[start]], "width": 1.6}
        trace = go.Scatter(x=x, y=y, mode="lines", line=line, opacity=0.9, hovertext=texts, hoverinfo="text")
        traces.append(trace)
    never_active = f"{histograms.never_active:.1%} never active"
    shown = histograms.title if title is None else title
    figure = new_figure(
        (640.0, 400.0),
        Margins(left=70.0, right=COLOUR_BAR_ROOM),
        title=f"{shown}, {never_active}" if shown else never_active,
        static="visualize_feature_density",
        traces=traces,
    )
    share = "share of tokens on which a feature is active"
    figure.update_layout(xaxis=share_axis(share, float(edges[0])))
    figure.update_layout(yaxis={"title": {"text": "features"}, "rangemode": "tozero"})
    return finished(figure, save_path, partial(visualize_feature_density, density, layers=layers, title=title))


def _heatmap(
    rows: FeatureRows, notes: FeatureNotes, static: str, title: str | None, *, quantity: str = "activation"
) -> NotebookPlot:
    """Return a heatmap over the tokens of a text."""
    values = np.asarray(rows.values, dtype=np.float64)
    count, columns = values.shape
    height = float(np.clip(23 * count, 200, 1200))
    names = [token_label(name, 36, any_font=True) for name in rows.names]
    up = ticks_along_y(names, [plain_text(name) for name in names], height / count)
    width = float(np.clip(34 * columns, 420, WIDEST - up.room - COLOUR_BAR_ROOM))
    across = ticks_along_x(
        [token_label(token, any_font=True) for token in rows.tokens],
        [token_text(token, 14) for token in rows.tokens],
        width / columns,
    )
    trace = matrix_trace(values, _cell_texts(rows, notes, quantity), quantity)
    trace.update(**value_scale(values), xgap=1, ygap=1)
    figure = new_figure(
        (width, height),
        Margins(left=up.room, right=COLOUR_BAR_ROOM, bottom=across.room),
        title=rows.title if title is None else title,
        static=static,
        traces=[trace],
    )
    figure.update_layout(xaxis=across.axis("token", ticks="", showline=False))
    kind = "layer" if static == "visualize_layer_activity" else "feature"
    figure.update_layout(yaxis=up.axis(kind, ticks="", showline=False, autorange="reversed"))
    return figure


def _cell_texts(rows: FeatureRows, notes: FeatureNotes, quantity: str) -> list[list[str]]:
    """Return the hover text of each cell; a cell in which nothing is active has a short one."""
    places = [f"at token {position}: {token_text(token)}" for position, token in enumerate(rows.tokens)]
    texts: list[list[str]] = []
    for row, values in enumerate(rows.values.tolist()):
        name = plain_text(rows.names[row])
        feature = rows.features[row] if rows.features else None
        quiet = "not active" if feature is not None else f"{quantity} 0"
        texts.append(
            [
                BREAK.join([f"<b>{name}</b>", place, quiet])
                if value == 0
                else BREAK.join([f"<b>{name}</b>", place, f"{plain_text(quantity)} {value:.3g}"])
                if feature is None
                else BREAK.join([*notes.lines(feature, value), place])
                for value, place in zip(values, places, strict=True)
            ]
        )
    return texts


def _point_texts(chosen: FeaturePoints, notes: FeatureNotes) -> list[str]:
    layers = [f"layer {layer}" for layer in chosen.layers.tolist()]
    sizes = ["" for _ in layers]
    if chosen.sizes is not None and chosen.features:
        sizes = [f"{share:.3%} of everything written" for share in chosen.sizes.tolist()]
    if not chosen.features:
        return [f"<b>vector {row}</b><br>{layer}" for row, layer in enumerate(layers)]
    facts = zip(chosen.features, layers, sizes, strict=True)
    return [notes.text(feature, layer, size).removesuffix(BREAK) for feature, layer, size in facts]


def _key(n_layers: int) -> dict[str, object]:
    return {**layer_scale(n_layers), "color": [0]}


def _minus(texts: list[list[str]]) -> list[list[str]]:
    return [[text.replace("-", "−") for text in row] for row in texts]
