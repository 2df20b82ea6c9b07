"""Figures of features and of training runs: heatmaps, embeddings, correlations, bars, histograms and curves.

Each function draws arrays into ``ax`` or, without ``ax``, into a new figure, and returns the figure. If ``save_path``
is given, the function also saves the figure as PNG, SVG or PDF; another suffix raises ConfigError. Tick labels never
overlap: where space is short, they stand upright, or only every second or third label is shown.

Four functions also accept a language model with its transcoder instead of the first array, followed by one or more
texts (``features/figure_data.py`` computes the arrays):

    visualize_feature_heatmap(clt, text)              visualize_cross_layer_correlations(clt, texts)
    visualize_feature_embedding(clt, texts)           visualize_feature_importance(clt, texts)

A model without a text raises ConfigError, and so does an array with a text. ``labels`` gives labels of features, which
stand beside their names (cut if they are long). Without a ``title``, a new figure has one that says what is shown, of
which model and on which text, as far as the function knows; an empty ``title`` leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, PercentFormatter

from open_clt.config.arguments import Count, Perplexity, Seed, checked_arguments
from open_clt.errors import ConfigError
from open_clt.features.embedding import EmbeddingMethod, EmbeddingSpace
from open_clt.features.figure_data import FeatureDirections, TranscodedModel
from open_clt.features.firing import FeatureActivations
from open_clt.visualization.labels import fit_tick_labels, text_size, token_label
from open_clt.visualization.preparation import (
    CorrelationCells,
    CurvePanel,
    FeaturePoints,
    FeatureRows,
    ImportanceBars,
    Labels,
    TrainingCurves,
    correlation_cells,
    curve_panels,
    curves_title,
    density_counts,
    feature_points,
    feature_rows,
    importance_bars,
    layer_rows,
)
from open_clt.visualization.style import (
    BLUE,
    DIVERGING,
    INK,
    Array,
    NotebookFigure,
    add_layer_key,
    figure_of,
    layer_colours,
    numbers,
    save,
    sequential,
    styled,
)
from open_clt.visualization.titles import Titles, drawing, panel_title, title_figure

_MOST_ANNOTATED = 16
"""Number of rows up to which the values of a matrix are also written as numbers."""


@checked_arguments
def visualize_feature_heatmap(
    activations: TranscodedModel | FeatureActivations | Float[Array, "feature position"],
    tokens: str | Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    *,
    labels: Labels | None = None,
    top_n: Count = 20,
    title: str | None = None,
    ax: Axes | None = None,
    save_path: str | Path | None = None,
) -> Figure:
    """Draw the activations of features (rows) at the tokens of a text (columns).

    If ``activations`` is a ``FeatureActivations``, or a model with its transcoder (then ``tokens`` is the text), the
    ``top_n`` most active features are drawn, with later layers above earlier ones. An array is drawn as it is, with its
    first row on top; it needs ``tokens`` and the ``names`` of its features.
    """
    rows = feature_rows(activations, tokens, names, labels=labels, top_n=top_n)
    return draw_rows(rows, "activation", title=title, ax=ax, save_path=save_path)


@checked_arguments
def visualize_layer_activity(
    activity: Float[Array, "layer position"],
    tokens: Sequence[str],
    *,
    quantity: str = "activation × decoder norm",
    title: str | None = None,
    ax: Axes | None = None,
    save_path: str | Path | None = None,
) -> Figure:
    """Draw the activity of each layer (rows, the first at the bottom) at each token; ``quantity`` names the values."""
    return draw_rows(layer_rows(activity, tokens), quantity, title=title, ax=ax, save_path=save_path)


@checked_arguments
def visualize_feature_embedding(
    vectors: TranscodedModel | FeatureDirections | Float[Array, "feature d_model"],
    layers: str | Sequence[str] | Sequence[int] | Int[Array, "feature"] | None = None,
    *,
    method: EmbeddingMethod = "pca",
    space: EmbeddingSpace = "decoder",
    perplexity: Perplexity = 30.0,
    seed: Seed = 0,
    sizes: Float[Array, "feature"] | None = None,
    n_layers: Count | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    save_path: str | Path | None = None,
) -> Figure:
    """Draw features as points in the plane: their vectors projected by PCA or t-SNE, coloured by layer.

    ``sizes``, such as the importance of each feature, sets the areas of the points. ``n_layers`` is the number of
    layers that the colours cover. If ``vectors`` is a model with its transcoder (then ``layers`` is one or more texts),
    the most important features are drawn, with areas proportional to importance: features that write in similar
    directions are close, or with ``space="coactivation"`` features that are active on the same tokens. Directions that
    ``FeaturesOnTexts`` has chosen are drawn as those of a model. See ``open_clt.features.embedding.embed``.
    """
    chosen = feature_points(
        vectors, layers, method=method, space=space, perplexity=perplexity, seed=seed, sizes=sizes, n_layers=n_layers
    )
    return draw_points(chosen, title=title, ax=ax, save_path=save_path)


def draw_points(
    chosen: FeaturePoints, *, title: str | None = None, ax: Axes | None = None, save_path: str | Path | None = None
) -> Figure:
    """Draw prepared points; see ``visualize_feature_embedding``."""
    with drawing(ax, (5.6, 4.4), save_path, Titles(title, chosen.title)) as ax:
        x, y = chosen.points.T
        colours = layer_colours(chosen.n_layers)[chosen.layers]
        ax.scatter(x, y, s=chosen.areas, c=colours, alpha=0.75, linewidths=0.3, edgecolors="white")
        ax.set(xlabel=chosen.axes[0], ylabel=chosen.axes[1])
        if not chosen.has_units:
            ax.set(xticks=[], yticks=[])
        add_layer_key(ax, chosen.n_layers)
    return figure_of(ax)


@checked_arguments
def visualize_cross_layer_correlations(
    matrix: TranscodedModel | Float[Array, "row row"],
    names: str | Sequence[str] | None = None,
    *,
    layers: Sequence[int] | None = None,
    labels: Labels | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    save_path: str | Path | None = None,
) -> Figure:
    """Draw a matrix of correlations between layers or features; cells of a small matrix show their values.

    ``layers`` gives the layer of each row, in ascending order; lines are drawn between the layers. If ``matrix`` is a
    model with its transcoder (then ``names`` is one or more texts), the figure shows how strongly the amounts that any
    two layers write at each token are correlated.
    """
    cells = correlation_cells(matrix, names, layers=layers, labels=labels)
    return draw_cells(cells, title=title, ax=ax, save_path=save_path)


def draw_cells(
    cells: CorrelationCells, *, title: str | None = None, ax: Axes | None = None, save_path: str | Path | None = None
) -> Figure:
    """Draw a prepared matrix; see ``visualize_cross_layer_correlations``."""
    values = cells.values
    side = float(np.clip(1.6 + 0.2 * len(values), 4, 11))
    beside = inches(cells.labelled) - inches(cells.names)
    with drawing(ax, (side + 0.9 + beside, side), save_path, Titles(title, cells.title)) as ax:
        image = ax.imshow(values, cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
        colour_bar(ax, image, "correlation")
        hide_frame(ax)
        for boundary in cells.boundaries:
            ax.axhline(boundary, color=INK, linewidth=0.6)
            ax.axvline(boundary, color=INK, linewidth=0.6)
        if len(values) <= _MOST_ANNOTATED:
            for (row, column), value in np.ndenumerate(values):
                text = f"{value:.2f}".replace("-", "−")
                colour = "white" if abs(value) > 0.6 else INK
                ax.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
        fit_tick_labels(
            ax,
            x=[token_label(name, 48) for name in cells.names],
            y=[token_label(name, 48) for name in cells.labelled],
        )
    return figure_of(ax)


@checked_arguments
def visualize_feature_importance(
    importance: TranscodedModel | Float[Array, "layer feature"],
    texts: str | Iterable[str] | None = None,
    *,
    labels: Labels | None = None,
    top_n: Count = 20,
    layers: Sequence[int] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    save_path: str | Path | None = None,
) -> Figure:
    """Draw the ``top_n`` most important features as bars coloured by layer.

    The importance of a feature is its share of everything that all features write. If ``importance`` is a model with
    its transcoder, the importance is measured on ``texts``; an array is drawn as it is, without ``texts``. ``layers``
    are the layers of an array's rows, if the transcoder does not have all.
    """
    bars = importance_bars(importance, texts, labels=labels, top_n=top_n, layers=layers)
    return draw_bars(bars, title=title, ax=ax, save_path=save_path)


def draw_bars(
    bars: ImportanceBars, *, title: str | None = None, ax: Axes | None = None, save_path: str | Path | None = None
) -> Figure:
    """Draw prepared bars; see ``visualize_feature_importance``."""
    count = len(bars.features)
    size = 4.7 + inches(bars.names), 0.9 + 0.19 * max(count, 3)
    with drawing(ax, size, save_path, Titles(title, bars.title)) as ax:
        colours = layer_colours(bars.n_layers)[[feature.layer for feature in bars.features]]
        ax.barh(np.arange(count), 100 * bars.shares, color=colours, height=0.72)
        ax.set(xlabel="share of everything written (%)", ylim=(count - 0.4, -0.6))
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        add_layer_key(ax, bars.n_layers)
        fit_tick_labels(ax, y=[token_label(name, 48) for name in bars.names])
    return figure_of(ax)


@checked_arguments
def visualize_feature_density(
    density: Float[Array, "layer feature"],
    *,
    layers: Sequence[int] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    save_path: str | Path | None = None,
) -> Figure:
    """Draw how often features fire: one histogram of log density per layer, and the share that never fires.

    ``layers`` are the layers of the rows, if the transcoder does not have all.
    """
    histograms = density_counts(density, layers)
    never_active = f"{histograms.never_active:.1%} never active"
    with drawing(ax, (5.6, 3.6), save_path, Titles(title, histograms.title, never_active)) as ax:
        n_layers = histograms.layers[-1] + 1
        colours = layer_colours(n_layers)[list(histograms.layers)]
        for counts, colour in zip(histograms.counts, colours, strict=True):
            ax.stairs(counts, histograms.edges, color=colour, linewidth=1.3, alpha=0.9)
        ax.set(xscale="log", xlabel="share of tokens on which a feature is active", ylabel="features", ylim=(0, None))
        add_layer_key(ax, n_layers)
    return figure_of(ax)


@checked_arguments
def visualize_training_curves(
    curves: TrainingCurves,
    *,
    title: str | None = None,
    axes: Sequence[Axes] | None = None,
    save_path: str | Path | None = None,
) -> Figure:
    """Draw loss, FVU, L0 and the share of dead features over the steps of a training run, in four panels.

    Each panel states its last value. The panels are the four ``axes``, or those of a new figure, which has a title.
    """
    if axes is not None and len(axes) != 4:
        raise ConfigError(
            f"axes has {len(axes)} panels, but training curves need 4; give 4 axes, or none for a new figure."
        )
    with styled(save_path):
        if axes is None:
            figure = NotebookFigure(figsize=(7.2, 4.4), layout="constrained")
            panels: list[Axes] = list(figure.subplots(2, 2, sharex=True).flat)
            title = curves_title(curves) if title is None else title
        else:
            panels = list(axes)
        figure = figure_of(panels[0])
        title_figure(figure, title or "")
        for ax, panel in zip(panels, curve_panels(curves), strict=True):
            _curve(ax, panel)
        for ax in panels[2:]:
            ax.set_xlabel("step")
        save(figure, save_path)
    return figure


def _curve(ax: Axes, panel: CurvePanel) -> None:
    ax.plot(panel.step, panel.values, color=BLUE, linewidth=1.2)
    ax.set_ylim(0, panel.top)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    if panel.is_share:
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    panel_title(ax, panel.name, panel.last)


def draw_rows(
    rows: FeatureRows,
    quantity: str,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    save_path: str | Path | None = None,
) -> Figure:
    """Draw a heatmap over the tokens of a text, in which zero is white; negative values have colours of their own."""
    values = rows.values
    count, columns = values.shape
    names = [token_label(name, 48) for name in rows.names]
    size = float(np.clip(1.7 + inches(names) + 0.3 * columns, 4.5, 16)), float(np.clip(1.4 + 0.2 * count, 2.8, 12))
    with drawing(ax, size, save_path, Titles(title, rows.title)) as ax:
        top = max(float(np.max(np.abs(values), initial=0)), 1e-30)
        lowest, colours = (0.0, sequential()) if np.min(values, initial=0) >= 0 else (-top, DIVERGING)
        image = ax.imshow(numbers(values), cmap=colours, vmin=lowest, vmax=top, aspect="auto", interpolation="nearest")
        colour_bar(ax, image, quantity)
        hide_frame(ax)
        for row in range(1, count):
            ax.axhline(row - 0.5, color="#E4E4E0", linewidth=0.5)
        fit_tick_labels(ax, [token_label(token) for token in rows.tokens], names)
    return figure_of(ax)


def inches(names: Sequence[str]) -> float:
    """Return the width of the longest name along an axis, in inches."""
    return max((text_size(name, 8.5)[0] for name in names), default=0.0) / 72


def colour_bar(ax: Axes, image: AxesImage, label: str) -> None:
    """Add a colour bar beside an image."""
    bar = figure_of(ax).colorbar(image, ax=ax, label=label, shrink=0.8, pad=0.02)
    bar.outline.set_visible(False)


def hide_frame(ax: Axes) -> None:
    """Hide the frame of axes and the lines of their ticks."""
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
