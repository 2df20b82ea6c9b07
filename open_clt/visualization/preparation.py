"""Preparation of figures: what each figure of features shows, as plain columns, whichever library draws it.

A function takes what a user gives to a figure (an array, or a language model with its transcoder and texts), checks it,
and returns a record with the values to draw, the names of rows and columns, and the title of the picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int

from open_clt.errors import ConfigError
from open_clt.features.embedding import EmbeddingMethod, EmbeddingSpace, embed
from open_clt.features.figure_data import FeatureDirections, FeaturesOnTexts, TranscodedModel, activations_on
from open_clt.features.firing import FeatureActivations, top_features
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature
from open_clt.visualization.inputs import array, layer_numbers, strings
from open_clt.visualization.labels import feature_name
from open_clt.visualization.style import Array, numbers
from open_clt.visualization.titles import title_of

Labels: TypeAlias = Mapping[Feature, str]
"""Labels of features, which stand beside their names."""
_BINS = 24
"""Number of bins of a histogram of densities."""


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


class FeatureRows(NamedTuple):
    """The rows of a heatmap over the tokens of a text."""

    values: Float[Array, "row position"]
    """Activation of each row's feature at each token."""
    tokens: Sequence[str]
    """Text of each token."""
    names: Sequence[str]
    """Name of each row, with its label if it has one."""
    features: Sequence[Feature] | None
    """Feature of each row; None if the user gave an array."""
    title: str
    """Title that says what is shown and of what."""

    __repr__ = short_repr


class FeaturePoints(NamedTuple):
    """Features as points in a plane."""

    points: Float[Array, "feature 2"]
    """Coordinates of each feature."""
    layers: Int[Array, "feature"]
    """Layer of each feature."""
    n_layers: int
    """Number of layers that the colours cover."""
    sizes: Float[Array, "feature"] | None
    """Weight of each feature, such as its importance, which sets the area of its point; None if all are equal."""
    axes: tuple[str, str]
    """Names of the axes."""
    has_units: bool
    """Whether distances along the axes have a meaning, as with PCA, or not, as with t-SNE."""
    features: Sequence[Feature] | None
    """Feature of each point; None if the user gave an array."""
    title: str
    """Title that says what is shown and of what."""

    __repr__ = short_repr

    @property
    def areas(self) -> Float[Array, "feature"]:
        """Area of each feature's point, in square points."""
        if self.sizes is None:
            return np.full(len(self.points), 12.0)
        return 8 + 72 * self.sizes / max(float(self.sizes.max()), 1e-30)


class CorrelationCells(NamedTuple):
    """A matrix of correlations with the names of its rows."""

    values: Float[Array, "row row"]
    """Correlation of each row with each column."""
    names: Sequence[str]
    """Short name of each row and column."""
    labelled: Sequence[str]
    """Name of each row, with its label if it is a feature that has one."""
    layers: Sequence[int] | None
    """Layer of each row; None if rows are whole layers."""
    title: str
    """Title that says what is shown and of what."""

    __repr__ = short_repr

    @property
    def boundaries(self) -> list[float]:
        """Coordinates between rows at which the layer changes."""
        return [row + 0.5 for row, (layer, above) in enumerate(pairwise(self.layers or ())) if layer != above]


class ImportanceBars(NamedTuple):
    """The most important features, most important first."""

    features: Sequence[Feature]
    """Feature of each bar."""
    shares: Float[Array, "bar"]
    """Share of each feature in everything that is written."""
    names: Sequence[str]
    """Name of each feature, with its label if it has one."""
    n_layers: int
    """Number of layers that the colours cover."""
    title: str
    """Title that says what is shown and of what."""

    __repr__ = short_repr


class CurvePanel(NamedTuple):
    """One panel of training curves."""

    name: str
    """Name of the quantity."""
    step: Sequence[int]
    """Numbers of the recorded steps."""
    values: Sequence[float]
    """Values at these steps."""
    is_share: bool = False
    """Whether the values are shares, which are written in percent."""

    __repr__ = short_repr

    @property
    def last(self) -> str:
        """The last value as text; empty without values."""
        if not self.values:
            return ""
        return f"{self.values[-1]:.1%}" if self.is_share else f"{self.values[-1]:.3g}"

    @property
    def top(self) -> float:
        """Upper end of the vertical axis, which starts at 0."""
        return 1.08 * max([*self.values, 0.01 if self.is_share else 1e-6])


class DensityCounts(NamedTuple):
    """Histograms of how often the features of each layer are active."""

    edges: Float[Array, "edge"]
    """Borders of the bins: shares of tokens, evenly spaced in their logarithms."""
    counts: Int[Array, "layer bin"]
    """Number of features of each layer in each bin."""
    layers: Sequence[int]
    """The language model's layer of each histogram."""
    never_active: float
    """Share of the features that are never active."""
    title: str
    """Title that says what is shown."""

    __repr__ = short_repr


def feature_rows(
    activations: TranscodedModel | FeatureActivations | Float[Array, "feature position"],
    tokens: str | Sequence[str] | None,
    names: Sequence[str] | None,
    *,
    labels: Labels | None,
    top_n: int,
) -> FeatureRows:
    """Return the rows of a heatmap: the most active features, later layers first, or the rows of an array as given."""
    model, features = "", None
    if isinstance(activations, TranscodedModel):
        model = activations.language_model.name
        activations, tokens = activations_on(activations, tokens), None
    if isinstance(activations, FeatureActivations):
        strongest = top_features(activations, top_n)
        strongest.sort(key=lambda top: (top.feature.layer, -top.position, top.feature.index), reverse=True)
        features = [top.feature for top in strongest]
        tokens = tokens or activations.tokens
        names = names or [str(feature) for feature in features]
        values = numbers(activations.of(features))
        title = title_of("Most active features", prompt=text_of(tokens), model=model)
    else:
        values = array("activations", activations, "feature", "position")
        title = "Activations of features by token"
    tokens, names = strings("tokens", tokens, values.shape[1]), strings("names", names, values.shape[0])
    return FeatureRows(values, tokens, labelled(names, labels), features, title)


def layer_rows(activity: Float[Array, "layer position"], tokens: Sequence[str]) -> FeatureRows:
    """Return the rows of a heatmap of layers, the first layer at the bottom."""
    values = array("activity", activity, "layer", "position")[::-1]
    names = [f"L{layer}" for layer in range(len(values))][::-1]
    tokens = strings("tokens", tokens, values.shape[1])
    return FeatureRows(values, tokens, names, None, "What each layer writes, by token")


def feature_points(
    vectors: TranscodedModel | FeatureDirections | Float[Array, "feature d_model"],
    layers: Any,
    *,
    method: EmbeddingMethod,
    space: EmbeddingSpace,
    perplexity: float,
    seed: int,
    sizes: Float[Array, "feature"] | None,
    n_layers: int | None,
) -> FeaturePoints:
    """Return vectors as points in a plane; of a model, its most important features, by what they write or co-activity.

    Raises ConfigError if an array has no layers, or has a ``space``.
    """
    named, features = "PCA" if method == "pca" else "t-SNE", None
    title = f"Directions of features, {named}"
    if isinstance(vectors, TranscodedModel):
        on_texts = FeaturesOnTexts(vectors, layers)
        chosen = on_texts.embedding(space=space)
        what = {"decoder": "Decoder directions", "coactivation": "Co-activation"}[space]
        title = title_of(
            f"{what} of the {len(chosen.layers)} most important features, {named},",
            text=tokens_of_text(on_texts.statistics.tokens),
            model=vectors.language_model.name,
        )
        vectors = chosen
    elif space != "decoder":
        raise ConfigError(
            f"space is {space!r}, but vectors are given; leave space out, or give a model with its transcoder."
        )
    if isinstance(vectors, FeatureDirections):
        sizes, n_layers = vectors.importance if sizes is None else sizes, n_layers or vectors.n_layers
        vectors, layers, features = vectors.directions, vectors.layers, vectors.features
    values = array("vectors", vectors, "feature", "d_model")
    layer_of_point = layer_numbers(layers, len(values))
    embedding = embed(torch.as_tensor(values.copy()), method, perplexity=perplexity, seed=seed)
    axes = ("t-SNE 1", "t-SNE 2")
    if embedding.explained is not None:
        first, second = embedding.explained
        axes = f"PC 1 ({first:.1%} of variance)", f"PC 2 ({second:.1%} of variance)"
    return FeaturePoints(
        points=numbers(embedding.points),
        layers=layer_of_point,
        n_layers=n_layers or int(layer_of_point.max(initial=0)) + 1,
        sizes=None if sizes is None else numbers(sizes),
        axes=axes,
        has_units=embedding.explained is not None,
        features=features,
        title=title,
    )


def correlation_cells(
    matrix: TranscodedModel | Float[Array, "row row"],
    names: Any,
    *,
    layers: Sequence[int] | None,
    labels: Labels | None,
) -> CorrelationCells:
    """Return a matrix of correlations; of a model, those of the amounts that its layers write at each token."""
    title = "Correlations"
    if isinstance(matrix, TranscodedModel):
        on_texts = FeaturesOnTexts(matrix, names)
        tokens, model = tokens_of_text(on_texts.statistics.tokens), matrix.language_model.name
        title = title_of("Correlations of what layers write", text=tokens, model=model)
        matrix, names, layers = on_texts.layer_correlations()
    values = array("matrix", matrix, "row", "row")
    names = strings("names", names, len(values))
    return CorrelationCells(values, names, labelled(names, labels), layers, title)


def importance_bars(
    importance: TranscodedModel | Float[Array, "layer feature"],
    texts: str | Iterable[str] | None,
    *,
    labels: Labels | None,
    top_n: int,
    layers: Sequence[int] | None,
) -> ImportanceBars:
    """Return the ``top_n`` most important features; those of a model are measured on texts.

    ``layers`` are the language model's layers of the rows of an array, by default all from 0 on.
    """
    title = "Most important features"
    if isinstance(importance, TranscodedModel):
        on_texts = FeaturesOnTexts(importance, texts)
        tokens, model = tokens_of_text(on_texts.statistics.tokens), importance.language_model.name
        title, texts = title_of(title, text=tokens, model=model), None
        importance, layers = on_texts.importance, on_texts.layers
    values = array("importance", importance, "layer", "feature")
    if texts is not None:
        raise ConfigError(
            f"texts is {texts!r}, but importance is an array; leave texts out, or give a model with its transcoder."
        )
    flat = values.ravel()
    order = np.argsort(-flat, kind="stable")[: min(top_n, int((flat > 0).sum()))]
    numbered = row_layers(layers, len(values))
    rows, indices = np.unravel_index(order, values.shape)
    features = [Feature(numbered[row], index) for row, index in zip(rows.tolist(), indices.tolist(), strict=True)]
    names = [feature_name(feature, labels) for feature in features]
    return ImportanceBars(features, flat[order], names, numbered[-1] + 1, title)


def row_layers(layers: Sequence[int] | None, count: int) -> list[int]:
    """The language model's layer of each row of an array; raises ConfigError unless there are ``count`` rising ones."""
    numbered = list(range(count) if layers is None else layers)
    if len(numbered) != count or any(low >= high for low, high in pairwise([-1, *numbered])):
        raise ConfigError(f"layers is {numbered}; give the {count} layers of the array's rows, in rising order.")
    return numbered


def density_counts(density: Float[Array, "layer feature"], layers: Sequence[int] | None = None) -> DensityCounts:
    """Return one histogram of densities for each layer; ``layers`` are the rows' layers, by default all from 0 on."""
    values = array("density", density, "layer", "feature")
    alive = values[values > 0]
    lowest = min(float(np.log10(alive.min())), -1) if alive.size else -1.0
    edges = np.linspace(lowest, 0, _BINS + 1)
    counts: list[npt.NDArray[Any]] = [np.histogram(np.log10(row[row > 0]), edges)[0] for row in values]
    never_active, numbered = float((values == 0).mean()), row_layers(layers, len(values))
    return DensityCounts(10.0**edges, np.stack(counts), numbered, never_active, "Density of features by layer")


def curve_panels(curves: TrainingCurves) -> tuple[CurvePanel, ...]:
    """Return the four panels of training curves."""
    return (
        CurvePanel("loss", curves.step, curves.loss),
        CurvePanel("FVU", curves.step, curves.fvu, is_share=True),
        CurvePanel("active features per token and layer (L0)", curves.step, curves.l0),
        CurvePanel("dead features", curves.step, curves.dead_share, is_share=True),
    )


def curves_title(curves: TrainingCurves) -> str:
    """Return the title of training curves."""
    return f"Training curves of {max([0, *curves.step]):,} steps"


def labelled(names: Sequence[str], labels: Labels | None) -> list[str]:
    """Return names of rows, in which features that have a label are followed by it."""
    by_name = {str(feature): feature for feature in labels or {}}
    return [feature_name(by_name[name], labels) if name in by_name else name for name in names]


def text_of(tokens: str | Sequence[str]) -> str:
    """Return the text of some tokens, without a token for the beginning of the text."""
    if isinstance(tokens, str) or not tokens:
        return str(tokens or "")
    return "".join(tokens[1:] if tokens[0] in ("<|endoftext|>", "<bos>", "<s>") else tokens)


def tokens_of_text(count: int) -> str:
    """Return the description of a text by its length, such as ``16,384 tokens``."""
    return f"{count:,} tokens"
