"""The visualization suite: all figures of a transcoder at once, from a language model and texts to pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from open_clt.errors import TextError
from open_clt.features.embedding import EmbeddingMethod
from open_clt.features.figure_data import FeatureDirections, FeaturesOnTexts, TranscodedModel, transcoded_model
from open_clt.features.firing import feature_activations, layer_activity
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.transcoder import Transcoder
from open_clt.visualization.figures import (
    visualize_cross_layer_correlations,
    visualize_feature_density,
    visualize_feature_embedding,
    visualize_feature_heatmap,
    visualize_feature_importance,
    visualize_layer_activity,
)
from open_clt.visualization.style import check_suffix

logger = logging.getLogger(__name__)

_LONGEST_HEATMAP = 40
"""Tokens of the prompt that are drawn."""


class VisualizationSuite(NamedTuple):
    """Where the pictures are."""

    feature_heatmap: Path
    """The most active features on the prompt."""
    layer_activity: Path
    """How much each layer writes at each token of the prompt."""
    embedding_pca: Path
    """Decoder directions of the most important features."""
    embedding_tsne: Path
    layer_correlations: Path
    """Which layers write much at the same tokens."""
    feature_correlations: Path
    """Which of the most important features fire at the same tokens."""
    feature_importance: Path
    feature_density: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(self)


def run_visualization_suite(
    model: LanguageModel | None = None,
    transcoder: Transcoder | TranscodedModel | None = None,
    texts: Iterable[str] = (),
    output_dir: str | Path = "visualizations",
    *,
    prompt: str | None = None,
    top_n: int = 20,
    n_embedded: int = 500,
    n_correlated: int = 40,
    max_contexts: int = 256,
    seed: int = 0,
    suffix: Literal[".png", ".svg", ".pdf"] = ".png",
) -> VisualizationSuite:
    """Draw every figure of a transcoder, from what its features do on ``texts``.

    >>> run_visualization_suite(transcoder=clt, texts=texts, output_dir="visualizations")  # doctest: +SKIP

    ``model`` is left out where ``transcoder`` is an object that holds both, such as an OpenCrossLayerTranscoder. The
    heatmaps show the beginning of ``prompt``, by default of the first text; all else is taken from at most
    ``max_contexts`` contexts of 64 tokens (all texts are read: cut a stream short with ``itertools.islice``). Returns
    the paths of the pictures. Raises ConfigError if ``model`` or ``transcoder`` is missing or ``suffix`` is not a
    picture format that we write, TextError if the texts hold hardly any tokens.
    """
    source = transcoded_model(model, transcoder)
    check_suffix(f"figure{suffix}")
    if isinstance(texts, str):
        raise TextError(f"texts is one string, {texts[:40]!r}; give a list of strings.")
    texts = list(texts)
    if not texts:
        raise TextError("There are no texts; give at least one.")
    paths = VisualizationSuite(*(Path(output_dir) / f"{name}{suffix}" for name in VisualizationSuite._fields))
    _draw_text(source, prompt or texts[0], top_n, paths)
    features = FeaturesOnTexts(source, texts, max_contexts=max_contexts)
    logger.info("Drawing from %d tokens into %s.", features.statistics.tokens, output_dir)
    visualize_feature_importance(
        features.importance, top_n=top_n, title="Most important features", save_path=paths.feature_importance
    )
    visualize_feature_density(features.statistics.density, title="Feature density", save_path=paths.feature_density)
    _draw_correlations(features, n_correlated, paths)
    _draw_embeddings(features.embedding(n_embedded), seed, paths)
    return paths


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
