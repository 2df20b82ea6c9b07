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
from open_clt.features.figure_data import FeaturesOnTexts, TranscodedModel, transcoded_model
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
from open_clt.visualization.preparation import Labels, text_of, tokens_of_text
from open_clt.visualization.style import check_save_path
from open_clt.visualization.titles import title_of

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
    labels: Labels | None = None,
) -> VisualizationSuite:
    """Draw every figure of a transcoder from the activations of its features on ``texts``.

    >>> run_visualization_suite(transcoder=clt, texts=texts, output_dir="visualizations")  # doctest: +SKIP

    ``model`` can be left out if ``transcoder`` is an object that holds both, such as an OpenCrossLayerTranscoder. The
    heatmaps show the beginning of ``prompt``, which defaults to the first text. All other figures use at most
    ``max_contexts`` contexts of 64 tokens; all texts are read first, so limit a stream with ``itertools.islice``.
    ``labels`` are labels of features, which stand beside their names. Titles state the model and the prompt or text.
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
    drawing = _Drawing(source, paths, labels)
    drawing.text(prompt or texts[0], top_n)
    features = FeaturesOnTexts(source, texts, max_contexts=max_contexts)
    logger.info("Drawing the figures of %d tokens into %s.", features.statistics.tokens, output_dir)
    drawing.statistics(features, top_n)
    drawing.correlations(features, n_correlated)
    drawing.embeddings(features, n_embedded, seed)
    return paths


def suite_paths(output_dir: str | Path, suffix: str = ".png") -> VisualizationSuite:
    """The paths of the pictures that ``run_visualization_suite`` writes to a directory."""
    return VisualizationSuite(*(Path(output_dir) / f"{name}{suffix}" for name in VisualizationSuite._fields))


class _Drawing(NamedTuple):
    """The model, the paths of its pictures, and the labels of its features."""

    source: TranscodedModel
    paths: VisualizationSuite
    labels: Labels | None

    def text(self, text: str, top_n: int) -> None:
        """Draw the features and the layers on the beginning of a text."""
        model = self.source.language_model
        beginning = model.token_ids([text])[0][:_LONGEST_HEATMAP]
        tokens = torch.tensor([model.bos_token_id, *beginning])
        activations = feature_activations(model, self.source.transcoder, tokens)
        shown = text_of(activations.tokens)
        visualize_feature_heatmap(
            activations,
            labels=self.labels,
            top_n=top_n,
            title=title_of("Most active features", prompt=shown, model=model.name),
            save_path=self.paths.feature_heatmap,
        )
        visualize_layer_activity(
            layer_activity(activations, self.source.transcoder),
            activations.tokens,
            title=title_of("What each layer writes", prompt=shown, model=model.name),
            save_path=self.paths.layer_activity,
        )

    def statistics(self, features: FeaturesOnTexts, top_n: int) -> None:
        """Draw the importance of features and how often they fire."""
        visualize_feature_importance(
            features.importance,
            labels=self.labels,
            top_n=top_n,
            title=self._title("Most important features", features),
            save_path=self.paths.feature_importance,
        )
        title = self._title("Density of features by layer", features)
        visualize_feature_density(features.statistics.density, title=title, save_path=self.paths.feature_density)

    def correlations(self, features: FeaturesOnTexts, n_correlated: int) -> None:
        """Draw the correlations of layers and of features."""
        of_features, most = features.feature_correlations(n_correlated), "Correlations of the most important features"
        figures = (
            (features.layer_correlations(), "Correlations of what layers write", self.paths.layer_correlations),
            (of_features, most, self.paths.feature_correlations),
        )
        for correlations, what, path in figures:
            visualize_cross_layer_correlations(
                correlations.matrix,
                correlations.names,
                layers=correlations.layers,
                labels=self.labels,
                title=self._title(what, features),
                save_path=path,
            )

    def embeddings(self, features: FeaturesOnTexts, n_embedded: int, seed: int) -> None:
        """Draw the decoder directions of the most important features, by two methods."""
        methods: dict[EmbeddingMethod, tuple[str, Path]] = {
            "pca": ("PCA", self.paths.embedding_pca),
            "tsne": ("t-SNE", self.paths.embedding_tsne),
        }
        chosen = features.embedding(n_embedded)
        for method, (name, path) in methods.items():
            what = f"Decoder directions of the {len(chosen.layers)} most important features, {name},"
            visualize_feature_embedding(
                chosen.directions,
                chosen.layers,
                method=method,
                seed=seed,
                sizes=chosen.importance,
                n_layers=chosen.n_layers,
                title=self._title(what, features),
                save_path=path,
            )

    def _title(self, what: str, features: FeaturesOnTexts) -> str:
        text = tokens_of_text(features.statistics.tokens)
        return title_of(what, text=text, model=self.source.language_model.name)
