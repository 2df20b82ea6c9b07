"""Figures of features and of training runs: heatmaps, embeddings, correlations, bars, histograms and curves.

Each function draws arrays into ``ax`` or, without ``ax``, into a new figure, and returns the figure. If ``save_path``
is given, the function also saves the figure as PNG, SVG or PDF; another suffix raises ConfigError. Tick labels never
overlap: where space is short, they stand upright, or only every second or third label is shown.

Four functions also accept a language model with its transcoder instead of the first array, followed by one or more
texts (``features/figure_data.py`` computes the arrays):

    visualize_feature_heatmap(clt, text)              visualize_cross_layer_correlations(clt, texts)
    visualize_feature_embedding(clt, texts)           visualize_feature_importance(clt, texts)

A model without a text raises ConfigError, and so does an array with a text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, PercentFormatter

from open_clt.config.arguments import Count, Perplexity, Seed, checked_arguments
from open_clt.errors import ConfigError
from open_clt.features.embedding import EmbeddingMethod, embed
from open_clt.features.figure_data import FeaturesOnTexts, TranscodedModel, activations_on
from open_clt.features.firing import FeatureActivations, top_features
from open_clt.transcoders.feature import Feature
from open_clt.visualization.inputs import array, labels, layer_numbers
from open_clt.visualization.labels import fit_tick_labels, token_label
from open_clt.visualization.style import (
    BLUE,
    DIVERGING,
    INK,
    Array,
    NotebookFigure,
    add_layer_key,
    drawing,
    figure_of,
    layer_colours,
    numbers,
    save,
    sequential,
    styled,
)


@runtime_checkable
class TrainingCurves(Protocol):
    """Columns of equal length, with one entry per recorded training step."""

    @property
    def step(self) -> Sequence[int]:
        """Numbers of the recorded steps."""
        ...

    @property
    def loss(self) -> Sequence[float]:
        """Total loss at each step."""
        ...

    @property
    def fvu(self) -> Sequence[float]:
        """Fraction of variance unexplained (FVU) at each step."""
        ...

    @property
    def l0(self) -> Sequence[float]:
        """Active features per token and layer (L0) at each step."""
        ...

    @property
    def dead_share(self) -> Sequence[float]:
        """Share of dead features at each step."""
        ...


_MOST_ANNOTATED = 16
"""Number of rows up to which the values of a matrix are also written as numbers."""


@checked_arguments
def visualize_feature_heatmap(
    activations: TranscodedModel | FeatureActivations | Float[Array, "feature position"],
    tokens: str | Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    *,
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
    if isinstance(activations, TranscodedModel):
        activations, tokens = activations_on(activations, tokens), None
    if isinstance(activations, FeatureActivations):
        strongest = top_features(activations, top_n)
        strongest.sort(key=lambda top: (top.feature.layer, -top.position, top.feature.index), reverse=True)
        features = [top.feature for top in strongest]
        tokens = tokens or activations.tokens
        names = names or [str(feature) for feature in features]
        values = numbers(activations.of(features))
    else:
        values = array("activations", activations, "feature", "position")
    tokens, names = labels("tokens", tokens, values.shape[1]), labels("names", names, values.shape[0])
    return _token_heatmap(values, tokens, names, "activation", title=title, ax=ax, save_path=save_path)


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
    values = numbers(activity)[::-1]
    tokens = labels("tokens", tokens, values.shape[1])
    names = [f"L{layer}" for layer in range(len(values))][::-1]
    return _token_heatmap(values, tokens, names, quantity, title=title, ax=ax, save_path=save_path)


@checked_arguments
def visualize_feature_embedding(
    vectors: TranscodedModel | Float[Array, "feature d_model"],
    layers: str | Sequence[str] | Sequence[int] | Int[Array, "feature"] | None = None,
    *,
    method: EmbeddingMethod = "pca",
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
    the decoder directions of the most important features are drawn, with areas proportional to importance. See
    ``open_clt.features.embedding.embed``.
    """
    if isinstance(vectors, TranscodedModel):
        features = FeaturesOnTexts(vectors, layers).embedding()
        vectors, layers = features.directions, features.layers
        sizes, n_layers = features.importance if sizes is None else sizes, n_layers or features.n_layers
    values = array("vectors", vectors, "feature", "d_model")
    layer_of_point = layer_numbers(layers, len(values))
    embedding = embed(torch.as_tensor(values.copy()), method, perplexity=perplexity, seed=seed)
    x, y = numbers(embedding.points).T
    with drawing(ax, (5.6, 4.4), save_path) as ax:
        n_layers = n_layers or int(layer_of_point.max(initial=0)) + 1
        areas = 12.0 if sizes is None else 8 + 72 * numbers(sizes) / max(float(numbers(sizes).max()), 1e-30)
        colours = layer_colours(n_layers)[layer_of_point]
        ax.scatter(x, y, s=areas, c=colours, alpha=0.75, linewidths=0.3, edgecolors="white")
        if embedding.explained is None:
            ax.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
        else:
            first, second = embedding.explained
            ax.set(xlabel=f"PC 1 ({first:.1%} of variance)", ylabel=f"PC 2 ({second:.1%} of variance)")
        add_layer_key(ax, n_layers)
        _set_title(ax, title)
    return figure_of(ax)


@checked_arguments
def visualize_cross_layer_correlations(
    matrix: TranscodedModel | Float[Array, "row row"],
    names: str | Sequence[str] | None = None,
    *,
    layers: Sequence[int] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    save_path: str | Path | None = None,
) -> Figure:
    """Draw a matrix of correlations between layers or features; cells of a small matrix show their values.

    ``layers`` gives the layer of each row, in ascending order; lines are drawn between the layers. If ``matrix`` is a
    model with its transcoder (then ``names`` is one or more texts), the figure shows how strongly the amounts that any
    two layers write at each token are correlated.
    """
    if isinstance(matrix, TranscodedModel):
        matrix, names, layers = FeaturesOnTexts(matrix, names).layer_correlations()
    values = array("matrix", matrix, "row", "row")
    names = labels("names", names, len(values))
    side = float(np.clip(1.6 + 0.2 * len(values), 4, 11))
    with drawing(ax, (side + 0.9, side), save_path) as ax:
        image = ax.imshow(values, cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
        _colour_bar(ax, image, "correlation")
        _hide_frame(ax)
        for boundary in _layer_boundaries(layers or []):
            ax.axhline(boundary, color=INK, linewidth=0.6)
            ax.axvline(boundary, color=INK, linewidth=0.6)
        if len(values) <= _MOST_ANNOTATED:
            for (row, column), value in np.ndenumerate(values):
                text = f"{value:.2f}".replace("-", "−")
                colour = "white" if abs(value) > 0.6 else INK
                ax.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
        _set_title(ax, title)
        fit_tick_labels(ax, x=names, y=names)
    return figure_of(ax)


@checked_arguments
def visualize_feature_importance(
    importance: TranscodedModel | Float[Array, "layer feature"],
    texts: str | Iterable[str] | None = None,
    *,
    top_n: Count = 20,
    title: str | None = None,
    ax: Axes | None = None,
    save_path: str | Path | None = None,
) -> Figure:
    """Draw the ``top_n`` most important features as bars coloured by layer.

    The importance of a feature is its share of everything that all features write. If ``importance`` is a model with
    its transcoder, the importance is measured on ``texts``; an array is drawn as it is, without ``texts``.
    """
    if isinstance(importance, TranscodedModel):
        importance, texts = FeaturesOnTexts(importance, texts).importance, None
    values = array("importance", importance, "layer", "feature")
    if texts is not None:
        raise ConfigError(
            f"texts is {texts!r}, but importance is an array; leave texts out, or give a model with its transcoder."
        )
    flat = values.ravel()
    order = np.argsort(-flat, kind="stable")[: min(top_n, int((flat > 0).sum()))]
    layers, features = np.unravel_index(order, values.shape)
    with drawing(ax, (5.2, 0.9 + 0.19 * max(len(order), 3)), save_path) as ax:
        ax.barh(np.arange(len(order)), 100 * flat[order], color=layer_colours(len(values))[layers], height=0.72)
        ax.set(xlabel="share of everything written (%)", ylim=(len(order) - 0.4, -0.6))
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        add_layer_key(ax, len(values))
        _set_title(ax, title)
        layers_and_indices = zip(layers.tolist(), features.tolist(), strict=True)
        fit_tick_labels(ax, y=[str(Feature(layer, index)) for layer, index in layers_and_indices])
    return figure_of(ax)


@checked_arguments
def visualize_feature_density(
    density: Float[Array, "layer feature"],
    *,
    title: str | None = None,
    ax: Axes | None = None,
    save_path: str | Path | None = None,
) -> Figure:
    """Draw how often features fire: one histogram of log density per layer, titled with the share that never fires."""
    values = array("density", density, "layer", "feature")
    alive = values[values > 0]
    lowest = min(float(np.log10(alive.min())), -1) if alive.size else -1.0
    edges = np.linspace(lowest, 0, 25)
    with drawing(ax, (5.6, 3.6), save_path) as ax:
        for layer, colour in enumerate(layer_colours(len(values))):
            counts, _ = np.histogram(np.log10(values[layer][values[layer] > 0]), edges)
            ax.stairs(counts, 10.0**edges, color=colour, linewidth=1.3, alpha=0.9)
        ax.set(xscale="log", xlabel="share of tokens on which a feature is active", ylabel="features", ylim=(0, None))
        never_active = float((values == 0).mean())
        ax.set_title(f"{never_active:.1%} never active", loc="right", fontsize=8, color=INK)
        add_layer_key(ax, len(values))
        _set_title(ax, title)
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

    Each panel states its last value. The panels are the four ``axes``, or those of a new figure.
    """
    if axes is not None and len(axes) != 4:
        raise ConfigError(
            f"axes has {len(axes)} panels, but training curves need 4; give 4 axes, or none for a new figure."
        )
    with styled(save_path):
        if axes is None:
            figure = NotebookFigure(figsize=(7.2, 4.4), layout="constrained")
            panels: list[Axes] = list(figure.subplots(2, 2, sharex=True).flat)
        else:
            panels = list(axes)
        figure = figure_of(panels[0])
        if title is not None:
            figure.suptitle(title, ha="left", x=0.01, fontsize=9.5, parse_math=False)
        _curve(panels[0], "loss", curves.step, curves.loss)
        _curve(panels[1], "FVU", curves.step, curves.fvu, share=True)
        _curve(panels[2], "active features per token and layer (L0)", curves.step, curves.l0)
        _curve(panels[3], "dead features", curves.step, curves.dead_share, share=True)
        for ax in panels[2:]:
            ax.set_xlabel("step")
        save(figure, save_path)
    return figure


def _curve(ax: Axes, name: str, step: Sequence[int], values: Sequence[float], *, share: bool = False) -> None:
    ax.plot(step, values, color=BLUE, linewidth=1.2)
    ax.set_title(name)
    ax.set_ylim(0, 1.08 * max([*values, 1e-6]))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    if share:
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    if values:
        ax.set_title(f"{values[-1]:.1%}" if share else f"{values[-1]:.3g}", loc="right", color=BLUE)


def _token_heatmap(
    values: Float[Array, "row position"],
    tokens: Sequence[str],
    names: Sequence[str],
    quantity: str,
    *,
    title: str | None,
    ax: Axes | None,
    save_path: str | Path | None,
) -> Figure:
    """Draw a heatmap over the tokens of a text, in which zero is white; negative values have colours of their own."""
    rows, columns = values.shape
    size = float(np.clip(2.2 + 0.3 * columns, 4.5, 16)), float(np.clip(1.4 + 0.2 * rows, 2.8, 12))
    with drawing(ax, size, save_path) as ax:
        top = max(float(np.max(np.abs(values), initial=0)), 1e-30)
        lowest, colours = (0.0, sequential()) if np.min(values, initial=0) >= 0 else (-top, DIVERGING)
        image = ax.imshow(numbers(values), cmap=colours, vmin=lowest, vmax=top, aspect="auto", interpolation="nearest")
        _colour_bar(ax, image, quantity)
        _hide_frame(ax)
        for row in range(1, rows):
            ax.axhline(row - 0.5, color="#E4E4E0", linewidth=0.5)
        _set_title(ax, title)
        fit_tick_labels(ax, [token_label(token) for token in tokens], [token_label(name, 24) for name in names])
    return figure_of(ax)


def _layer_boundaries(layers: Sequence[int]) -> list[float]:
    """Return the coordinates between rows at which the layer changes."""
    return [row + 0.5 for row, (layer, next_layer) in enumerate(pairwise(layers)) if layer != next_layer]


def _colour_bar(ax: Axes, image: AxesImage, label: str) -> None:
    bar = figure_of(ax).colorbar(image, ax=ax, label=label, shrink=0.8, pad=0.02)
    bar.outline.set_visible(False)


def _hide_frame(ax: Axes) -> None:
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _set_title(ax: Axes, title: str | None) -> None:
    if title is not None:
        ax.set_title(title, parse_math=False)
