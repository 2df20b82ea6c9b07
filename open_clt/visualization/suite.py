"""The visualization suite: every figure of a transcoder, drawn from a language model and texts in one call."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from open_clt.config.arguments import Count, Seed, checked_arguments
from open_clt.errors import TextError
from open_clt.features.embedding import EmbeddingMethod
from open_clt.features.figure_data import FeatureDirections, FeaturesOnTexts, TranscodedModel, transcoded_model
from open_clt.features.firing import feature_activations, layer_activity
from open_clt.files import check_results, list_names
from open_clt.language.language_model import LanguageModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.transcoder import Transcoder
from open_clt.visualization.figures import (
    visualize_cross_layer_correlations,
    visualize_feature_density,
    visualize_feature_embedding,
    visualize_feature_heatmap,
    visualize_feature_importance,
    visualize_layer_activity,
)
from open_clt.visualization.style import check_save_path

logger = logging.getLogger(__name__)

_LONGEST_HEATMAP = 40
"""Largest number of prompt tokens that a heatmap shows."""


class VisualizationSuite(NamedTuple):
    """Paths of the pictures that ``run_visualization_suite`` wrote."""

    feature_heatmap: Path
    """Heatmap of the most active features on the prompt."""
    layer_activity: Path
    """Heatmap of how much each layer writes at each token of the prompt."""
    embedding_pca: Path
    """Decoder directions of the most important features, projected by PCA."""
    embedding_tsne: Path
    """Decoder directions of the most important features, projected by t-SNE."""
    layer_correlations: Path
    """Correlations between the amounts that the layers write at each token."""
    feature_correlations: Path
    """Correlations between the activations of the most important features."""
    feature_importance: Path
    """Bars of the most important features."""
    feature_density: Path
    """Histograms of how often features fire, by layer."""

    __repr__ = short_repr

    @property
    def paths(self) -> tuple[Path, ...]:
        """All paths."""
        return tuple(self)


@checked_arguments
def run_visualization_suite(
    model: LanguageModel | None = None,
    transcoder: Transcoder | TranscodedModel | None = None,
    texts: Iterable[str] = (),
    output_dir: str | Path = "visualizations",
    *,
    prompt: str | None = None,
    top_n: Count = 20,
    n_embedded: Count = 500,
    n_correlated: Count = 40,
    max_contexts: Count = 256,
    seed: Seed = 0,
    suffix: Literal[".png", ".svg", ".pdf"] = ".png",
) -> VisualizationSuite:
    """Draw every figure of a transcoder from the activations of its features on ``texts``.

    >>> run_visualization_suite(transcoder=clt, texts=texts, output_dir="visualizations")  # doctest: +SKIP

    ``model`` can be left out if ``transcoder`` is an object that holds both, such as an OpenCrossLayerTranscoder. The
    heatmaps show the beginning of ``prompt``, which defaults to the first text. All other figures use at most
    ``max_contexts`` contexts of 64 tokens; all texts are read first, so limit a stream with ``itertools.islice``.
    Returns the paths of the pictures, which the directory's manifest lists.

    Raises ConfigError if ``model`` or ``transcoder`` is missing, ``suffix`` is not supported, or a picture would
    replace a file of another program, and TextError if there are no texts or the texts hold too few tokens.
    """
    source = transcoded_model(model, transcoder)
    paths = suite_paths(output_dir, suffix)
    check_save_path(paths.feature_heatmap)
    names = [path.name for path in paths]
    check_results(Path(output_dir), names)
    if isinstance(texts, str):
        raise TextError(f"texts is the single string {texts[:40]!r}; give a list of strings.")
    texts = list(texts)
    if not texts:
        raise TextError("texts is empty; give at least one text.")
    list_names(Path(output_dir), names)
    _draw_text(source, prompt or texts[0], top_n, paths)
    features = FeaturesOnTexts(source, texts, max_contexts=max_contexts)
    logger.info("Drawing the figures of %d tokens into %s.", features.statistics.tokens, output_dir)
    visualize_feature_importance(
        features.importance, top_n=top_n, title="Most important features", save_path=paths.feature_importance
    )
    visualize_feature_density(features.statistics.density, title="Feature density", save_path=paths.feature_density)
    _draw_correlations(features, n_correlated, paths)
    _draw_embeddings(features.embedding(n_embedded), seed, paths)
    return paths


def suite_paths(output_dir: str | Path, suffix: str = ".png") -> VisualizationSuite:
    """The paths of the pictures that ``run_visualization_suite`` writes to a directory."""
    return VisualizationSuite(*(Path(output_dir) / f"{name}{suffix}" for name in VisualizationSuite._fields))


def _draw_text(source: TranscodedModel, text: str, top_n: int, paths: VisualizationSuite) -> None:
    model = source.language_model
    beginning = model.token_ids([text])[0][:_LONGEST_HEATMAP]
    activations = feature_activations(model, source.transcoder, torch.tensor([model.bos_token_id, *beginning]))
    visualize_feature_heatmap(activations, top_n=top_n, title="Most active features", save_path=paths.feature_heatmap)
    visualize_layer_activity(
        layer_activity(activations, source.transcoder),
        activations.tokens,
        title="What each layer writes",
        save_path=paths.layer_activity,
    )


def _draw_correlations(features: FeaturesOnTexts, n_correlated: int, paths: VisualizationSuite) -> None:
    figures = (
        (features.layer_correlations(), "Correlation of what layers write", paths.layer_correlations),
        (
            features.feature_correlations(n_correlated),
            "Correlation of the most important features",
            paths.feature_correlations,
        ),
    )
    for correlations, title, path in figures:
        visualize_cross_layer_correlations(
            correlations.matrix, correlations.names, layers=correlations.layers, title=title, save_path=path
        )


def _draw_embeddings(features: FeatureDirections, seed: int, paths: VisualizationSuite) -> None:
    methods: dict[EmbeddingMethod, tuple[str, Path]] = {
        "pca": ("PCA", paths.embedding_pca),
        "tsne": ("t-SNE", paths.embedding_tsne),
    }
    for method, (name, path) in methods.items():
        visualize_feature_embedding(
            features.directions,
            features.layers,
            method=method,
            seed=seed,
            sizes=features.importance,
            n_layers=features.n_layers,
            title=f"Decoder directions, {name}",
            save_path=path,
        )
