"""All figures of a transcoder at once: from a language model and some texts to a folder of pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.activations.language_model import LanguageModel
from open_clt.analysis.directions import EmbeddingMethod, decoder_directions
from open_clt.analysis.features import (
    ActivationStatistics,
    FeatureKey,
    activation_statistics,
    activations_of,
    cross_layer_correlations,
    feature_activations,
    feature_importance,
    feature_name,
    layer_activity,
    most_important,
)
from open_clt.errors import TextError
from open_clt.models.transcoder import Transcoder
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
    model: LanguageModel,
    transcoder: Transcoder,
    texts: Iterable[str],
    output_dir: str | Path,
    *,
    prompt: str | None = None,
    top_n: int = 20,
    n_embedded: int = 500,
    n_correlated: int = 40,
    max_contexts: int = 256,
    seed: int = 0,
    suffix: Literal[".png", ".svg", ".pdf"] = ".png",
) -> VisualizationSuite:
    """Draw every figure there is of a transcoder, from what its features do on ``texts``.

    The heatmaps show the beginning of ``prompt``, by default of the first text; all else is taken from at most
    ``max_contexts`` contexts of 64 tokens (all texts are read: cut a stream short with ``itertools.islice``). Returns
    the paths of the pictures; raises ConfigError if ``suffix`` is no format we write, TextError if there is hardly any
    text.
    """
    check_suffix(f"figure{suffix}")
    if isinstance(texts, str):
        raise TextError(f"texts is one string, {texts[:40]!r}; give a list of strings.")
    texts = list(texts)
    if not texts:
        raise TextError("There are no texts; give at least one.")
    paths = VisualizationSuite(*(Path(output_dir) / f"{name}{suffix}" for name in VisualizationSuite._fields))
    _draw_text(model, transcoder, prompt or texts[0], top_n, paths)
    statistics = activation_statistics(model, transcoder, texts, context_length=64, max_contexts=max_contexts)
    importance = feature_importance(statistics, transcoder)
    logger.info("Drawing from %d tokens into %s.", statistics.tokens, output_dir)
    visualize_feature_importance(
        importance, top_n=top_n, title="Most important features", save_path=paths.feature_importance
    )
    visualize_feature_density(statistics.density, title="Feature density", save_path=paths.feature_density)
    visualize_cross_layer_correlations(
        cross_layer_correlations(statistics.activity),
        [f"L{layer}" for layer in range(transcoder.config.n_layers)],
        title="Correlation of what layers write",
        save_path=paths.layer_correlations,
    )
    _draw_feature_correlations(model, transcoder, statistics, most_important(importance, n_correlated), paths)
    _draw_embeddings(transcoder, importance, most_important(importance, n_embedded), seed, paths)
    return paths


def _draw_text(model: LanguageModel, transcoder: Transcoder, text: str, top_n: int, paths: VisualizationSuite) -> None:
    beginning = model.token_ids([text])[0][:_LONGEST_HEATMAP]
    activations = feature_activations(model, transcoder, torch.tensor([model.bos_token_id, *beginning]))
    visualize_feature_heatmap(activations, top_n=top_n, title="Most active features", save_path=paths.feature_heatmap)
    visualize_layer_activity(
        layer_activity(activations, transcoder),
        activations.tokens,
        title="What each layer writes",
        save_path=paths.layer_activity,
    )


def _draw_feature_correlations(
    model: LanguageModel,
    transcoder: Transcoder,
    statistics: ActivationStatistics,
    chosen: list[FeatureKey],
    paths: VisualizationSuite,
) -> None:
    chosen = sorted(chosen)
    visualize_cross_layer_correlations(
        cross_layer_correlations(activations_of(model, transcoder, statistics.contexts, chosen)),
        [feature_name(*key) for key in chosen],
        layers=[layer for layer, _ in chosen],
        title="Correlation of the most important features",
        save_path=paths.feature_correlations,
    )


def _draw_embeddings(
    transcoder: Transcoder,
    importance: Float[Tensor, "layer feature"],
    chosen: list[FeatureKey],
    seed: int,
    paths: VisualizationSuite,
) -> None:
    methods: dict[EmbeddingMethod, tuple[str, Path]] = {
        "pca": ("PCA", paths.embedding_pca),
        "tsne": ("t-SNE", paths.embedding_tsne),
    }
    directions = decoder_directions(transcoder, chosen)
    for method, (name, path) in methods.items():
        visualize_feature_embedding(
            directions,
            [layer for layer, _ in chosen],
            method=method,
            seed=seed,
            sizes=torch.stack([importance[key] for key in chosen]),
            n_layers=transcoder.config.n_layers,
            title=f"Decoder directions, {name}",
            save_path=path,
        )
