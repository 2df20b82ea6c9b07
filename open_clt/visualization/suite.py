"""The visualization suite: every figure of a transcoder, drawn from a language model and texts in one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from matplotlib.figure import Figure

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
from open_clt.visualization.index_page import Entry, write_index
from open_clt.visualization.interactive.features import (
    interactive_cross_layer_correlations,
    interactive_feature_density,
    interactive_feature_embedding,
    interactive_feature_heatmap,
    interactive_feature_importance,
    interactive_layer_activity,
)
from open_clt.visualization.interactive.saving import page_of_all
from open_clt.visualization.page import write_page
from open_clt.visualization.preparation import Labels, text_of, tokens_of_text
from open_clt.visualization.style import check_save_path
from open_clt.visualization.titles import title_of

logger = logging.getLogger(__name__)

_LONGEST_HEATMAP = 40
"""Largest number of prompt tokens that a heatmap shows."""


class VisualizationSuite(NamedTuple):
    """Paths of the pictures and pages that ``run_visualization_suite`` wrote."""

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
    interactive: Path
    """One page with all these figures as interactive ones, which opens without a network."""
    index: Path  # pyright: ignore[reportIncompatibleMethodOverride] (hides tuple.index, which has no use here)
    """Page that shows the pictures and links to the interactive ones."""

    __repr__ = short_repr

    @property
    def paths(self) -> tuple[Path, ...]:
        """All paths."""
        return tuple(self)

    @property
    def pictures(self) -> tuple[Path, ...]:
        """Paths of the static figures."""
        return tuple(path for path in self if path.suffix != ".html")


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
    """Draw every figure of a transcoder from the activations of its features on ``texts``, and make a page of them.

    >>> run_visualization_suite(transcoder=clt, texts=texts, output_dir="visualizations")  # doctest: +SKIP

    ``model`` can be left out if ``transcoder`` is an object that holds both, such as an OpenCrossLayerTranscoder. The
    heatmaps show the beginning of ``prompt``, which defaults to the first text. All other figures use at most
    ``max_contexts`` contexts of 64 tokens; all texts are read first, so limit a stream with ``itertools.islice``.
    ``labels`` are labels of features, which stand beside their names. Titles state the model and the prompt or text.
    The interactive figures are on one page, and ``index.html`` shows all pictures. Returns the paths of the files,
    which the directory's manifest lists.

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
    features = FeaturesOnTexts(source, texts, max_contexts=max_contexts)
    logger.info("Drawing the figures of %d tokens into %s.", features.statistics.tokens, output_dir)
    chosen = _Chosen(source, features, labels)
    shown = [
        *chosen.on_text(prompt or texts[0], top_n),
        *chosen.on_texts(top_n, n_correlated),
        *chosen.embeddings(n_embedded, seed),
    ]
    _write(paths, shown, source.language_model.name)
    return paths


def suite_paths(output_dir: str | Path, suffix: str = ".png") -> VisualizationSuite:
    """The paths of the pictures and pages that ``run_visualization_suite`` writes to a directory."""
    suffixes = {"interactive": ".html", "index": ".html"}
    names = (f"{name}{suffixes.get(name, suffix)}" for name in VisualizationSuite._fields)
    return VisualizationSuite(*(Path(output_dir) / name for name in names))


class _Shown(NamedTuple):
    """One figure: the functions that draw it, and what they draw."""

    field: str
    """Name of the picture's path in ``VisualizationSuite``."""
    draw: Callable[..., Figure]
    show: Callable[..., Any]
    arrays: tuple[Any, ...]
    settings: dict[str, Any]
    """Settings of both functions, with the title."""
    labels: dict[str, Any]
    """Labels, for the functions that take them."""


def _write(paths: VisualizationSuite, shown: Sequence[_Shown], model: str) -> None:
    """Write all pictures, the page of interactive figures, and the index."""
    entries: list[Entry] = []
    interactive: list[Any] = []
    for figure in shown:
        path: Path = getattr(paths, figure.field)
        figure.draw(*figure.arrays, **figure.settings, **figure.labels, save_path=path)
        interactive.append(figure.show(*figure.arrays, **figure.settings, **figure.labels))
        entries.append(Entry(path, figure.settings["title"]))
    title = title_of("Figures of a transcoder", model=model)
    write_page(paths.interactive, page_of_all(interactive, title))
    link = Entry(paths.interactive, "The same figures as interactive ones, with facts under the mouse")
    write_index(paths.index, title, [link, *entries])


class _Chosen(NamedTuple):
    """The model, the statistics of its features, and their labels: all that the figures are made from."""

    source: TranscodedModel
    features: FeaturesOnTexts
    labels: Labels | None

    def on_text(self, text: str, top_n: int) -> list[_Shown]:
        """The features and the layers on the beginning of a text."""
        model = self.source.language_model
        beginning = model.token_ids([text])[0][:_LONGEST_HEATMAP]
        tokens = torch.tensor([model.bos_token_id, *beginning])
        activations = feature_activations(model, self.source.transcoder, tokens)
        shown, labels = text_of(activations.tokens), {"labels": self.labels}
        heatmap = {"top_n": top_n, "title": title_of("Most active features", prompt=shown, model=model.name)}
        layers = {"title": title_of("What each layer writes", prompt=shown, model=model.name)}
        activity = layer_activity(activations, self.source.transcoder), activations.tokens
        return [
            _Shown(
                "feature_heatmap",
                visualize_feature_heatmap,
                interactive_feature_heatmap,
                (activations,),
                heatmap,
                labels,
            ),
            _Shown("layer_activity", visualize_layer_activity, interactive_layer_activity, activity, layers, {}),
        ]

    def on_texts(self, top_n: int, n_correlated: int) -> list[_Shown]:
        """The importance and density of features, and the correlations of layers and of features."""
        labels = {"labels": self.labels}
        rows = {"layers": self.features.layers}
        importance = {**rows, "top_n": top_n, "title": self._title("Most important features")}
        density = {**rows, "title": self._title("Density of features by layer")}
        shown = [
            _Shown(
                "feature_importance",
                visualize_feature_importance,
                interactive_feature_importance,
                (self.features.importance,),
                importance,
                labels,
            ),
            _Shown(
                "feature_density",
                visualize_feature_density,
                interactive_feature_density,
                (self.features.statistics.density,),
                density,
                {},
            ),
        ]
        of_features = self.features.feature_correlations(n_correlated)
        for field, correlations, what in (
            ("layer_correlations", self.features.layer_correlations(), "Correlations of what layers write"),
            ("feature_correlations", of_features, "Correlations of the most important features"),
        ):
            settings = {"layers": correlations.layers, "title": self._title(what)}
            arrays = correlations.matrix, correlations.names
            draw, show = visualize_cross_layer_correlations, interactive_cross_layer_correlations
            shown.append(_Shown(field, draw, show, arrays, settings, labels))
        return shown

    def embeddings(self, n_embedded: int, seed: int) -> list[_Shown]:
        """The decoder directions of the most important features, by two methods."""
        methods: dict[EmbeddingMethod, str] = {"pca": "PCA", "tsne": "t-SNE"}
        chosen = self.features.embedding(n_embedded)
        shown: list[_Shown] = []
        for method, name in methods.items():
            what = f"Decoder directions of the {len(chosen.layers)} most important features, {name},"
            settings = {
                "method": method,
                "seed": seed,
                "sizes": chosen.importance,
                "n_layers": chosen.n_layers,
                "title": self._title(what),
            }
            arrays = chosen.directions, chosen.layers
            draw, show = visualize_feature_embedding, interactive_feature_embedding
            shown.append(_Shown(f"embedding_{method}", draw, show, arrays, settings, {}))
        return shown

    def _title(self, what: str) -> str:
        text = tokens_of_text(self.features.statistics.tokens)
        return title_of(what, text=text, model=self.source.language_model.name)
