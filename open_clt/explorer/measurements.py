"""Measurements: what the transcoder page shows of a transcoder, computed once and kept.

Each entry of ``FIGURES`` makes one figure, as the values that plotly's program in the browser draws. All of it runs in
the worker, one figure after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, final, runtime_checkable

import torch

from open_clt import files
from open_clt.config import ReportConfig
from open_clt.data.prompts import report_prompts
from open_clt.embedded import TRANSCODER_DIRECTORY
from open_clt.embedded.held_out import HeldOutText
from open_clt.errors import ConfigError
from open_clt.evaluation.report import Report, report
from open_clt.evaluation.report_file import is_report, load_report
from open_clt.explorer.models import EMBEDDED, Models, Source
from open_clt.explorer.training_record import training_curves
from open_clt.features.embedding import EmbeddingMethod
from open_clt.features.figure_data import FeatureDirections, FeaturesOnTexts, ModelAndTranscoder
from open_clt.features.firing import most_important
from open_clt.progress import report_progress
from open_clt.replacement.model import ReplacementModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.directions import decoder_norms_between_layers
from open_clt.transcoders.transcoder import Transcoder
from open_clt.visualization.interactive.decoders import interactive_decoder_norms
from open_clt.visualization.interactive.features import (
    interactive_cross_layer_correlations,
    interactive_feature_density,
    interactive_feature_embedding,
    interactive_feature_importance,
)
from open_clt.visualization.interactive.reports import interactive_report, interactive_training_curves
from open_clt.visualization.preparation import tokens_of_text
from open_clt.visualization.titles import title_of

_MOST_TEXTS, _MOST_CHARACTERS = 20_000, 200_000
"""How much of a text is read for figures of features, which use 256 contexts of 64 tokens."""
_IMPORTANT, _ON_MAP = 20, 500
"""Number of features that the bars and the map show."""
_SEED = 0


@runtime_checkable
class PlotlyFigure(Protocol):
    """An interactive figure."""

    def to_json(self) -> str | None:
        """The figure as JSON that plotly's program reads."""
        ...


class Panel(NamedTuple):
    """What a panel of the transcoder page shows."""

    figure: PlotlyFigure | None
    """The figure; None if there is none."""
    note: str = ""
    """A sentence below the figure, or in its place."""
    features: tuple[str, ...] = ()
    """Names of the features that the figure shows."""

    def as_dict(self) -> dict[str, Any]:
        """The panel as plain values."""
        return {
            "figure": None if self.figure is None else plain(self.figure),
            "note": self.note,
            "features": list(self.features),
        }

    __repr__ = short_repr


@final
@dataclass(eq=False)
class Measurements:
    """The text on which pages measure, and what was measured; only the worker uses it."""

    text: HeldOutText
    report: Report | None = None
    """The report that the page has measured."""
    features: FeaturesOnTexts | None = None
    """Statistics of the features on the text."""
    directions: FeatureDirections | None = None
    """Decoder directions of the features on the map."""
    panels: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """The panels that were made, by the name of the figure."""
    reports: dict[str, Report] = field(default_factory=dict[str, Report])
    """Reports of other transcoders, by their sources."""

    __repr__ = short_repr

    def panel(self, name: str, models: Models) -> dict[str, Any]:
        """A panel of the page as plain values; raises ConfigError if it cannot be made."""
        if name not in self.panels:
            self.panels[name] = FIGURES[name](self, models).as_dict()
        return self.panels[name]

    def evaluate(self, models: Models) -> Report:
        """The report of the explorer's transcoder on the text."""
        if self.report is None:
            self.report = self.measure(models, models.transcoder, own_name(models.source))
            self.panels.pop("evaluation", None)
        return self.report

    def measure(self, models: Models, transcoder: Transcoder, name: str) -> Report:
        """Measure a transcoder of the explorer's language model on the text."""
        report_progress("reading the text", 0, 1)
        contexts = self.text.contexts(models.model)
        settings = ReportConfig()
        return report(
            ReplacementModel(models.model, transcoder),
            contexts,
            name=name,
            text=self.text.description,
            prompts=report_prompts(settings, models.model, contexts),
            max_feature_nodes=settings.max_feature_nodes,
        )

    def on_texts(self, models: Models) -> FeaturesOnTexts:
        """Statistics of the features on the beginning of the text."""
        if self.features is None:
            report_progress("reading the text", 0, 1)
            texts = _beginning(islice(self.text.texts(models.model, sentences=_MOST_TEXTS), _MOST_TEXTS))
            self.features = FeaturesOnTexts(ModelAndTranscoder(models.model, models.transcoder), list(texts))
        return self.features


def plain(figure: PlotlyFigure) -> dict[str, Any]:
    """The values of a figure that plotly's program draws."""
    return cast(dict[str, Any], files.parse_json(str(figure.to_json()).encode()))


def own_name(source: Source) -> str:
    """Name of an explorer's transcoder in tables and titles."""
    return Path(source.transcoder or source.model).resolve().name


def _folder(source: Source) -> Path | None:
    """The directory of an explorer's transcoder; None if it is on the hub."""
    if source.transcoder in (None, EMBEDDED):
        return TRANSCODER_DIRECTORY
    folder = Path(source.transcoder)
    return folder if folder.is_dir() else folder.parent if folder.is_file() else None


def _beginning(texts: Iterable[str]) -> Iterator[str]:
    """Texts up to a number of characters."""
    left = _MOST_CHARACTERS
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def _evaluation(kept: Measurements, models: Models) -> Panel:
    folder, found = _folder(models.source), kept.report
    if found is None and folder is not None and is_report(folder):
        found = load_report(folder)
        return Panel(interactive_report(found), "This report is stored in the transcoder's directory.")
    if found is None:
        return Panel(None, "The transcoder's directory has no report. Press Evaluate to measure it on a text.")
    return Panel(interactive_report(found))


def _curves(kept: Measurements, models: Models) -> Panel:
    folder = _folder(models.source)
    curves = None if folder is None else training_curves(folder)
    if curves is None:
        return Panel(None, "No training curves are stored with this transcoder; open-clt train stores them.")
    return Panel(interactive_training_curves(curves))


def _density(kept: Measurements, models: Models) -> Panel:
    if not models.rows:
        features = kept.on_texts(models)
        title = _title("Density of features by layer", features, models)
        figure = interactive_feature_density(features.statistics.density, layers=features.layers, title=title)
        return Panel(figure)
    config = models.transcoder.config
    density = torch.zeros(config.n_layers, config.n_features)
    for row in models.rows:
        density[config.place_of(row.feature.layer), row.feature.index] = row.density
    if bool(density.isnan().all()):
        raise ConfigError(
            "The feature files do not say how often features fire; write them again with open-clt features."
        )
    title = title_of("Density of features by layer, from their records", model=models.model.name)
    return Panel(interactive_feature_density(density.nan_to_num(), layers=config.model_layers, title=title))


def _norms(kept: Measurements, models: Models) -> Panel:
    norms = decoder_norms_between_layers(models.transcoder)
    return Panel(interactive_decoder_norms(norms, layers=models.transcoder.config.model_layers))


def _correlations(kept: Measurements, models: Models) -> Panel:
    features = kept.on_texts(models)
    matrix, names, _ = features.layer_correlations()
    title = _title("Correlations of what layers write", features, models)
    return Panel(interactive_cross_layer_correlations(matrix, names, title=title))


def _importance(kept: Measurements, models: Models) -> Panel:
    features = kept.on_texts(models)
    chosen = most_important(features.importance, _IMPORTANT, features.layers)
    records = [] if models.records is None else models.records.records(chosen)
    figure = interactive_feature_importance(
        features.importance,
        records=records,
        top_n=_IMPORTANT,
        layers=features.layers,
        title=_title("Most important features", features, models),
    )
    return Panel(figure, features=tuple(map(str, chosen)))


def _map(method: EmbeddingMethod, name: str) -> Callable[[Measurements, Models], Panel]:
    def make(kept: Measurements, models: Models) -> Panel:
        features = kept.on_texts(models)
        if kept.directions is None:
            kept.directions = features.embedding(_ON_MAP)
        chosen = kept.directions.features
        records = [] if models.records is None else models.records.records(chosen)
        report_progress(f"placing features by {name}", 0, 1)
        what = f"Decoder directions of the {len(chosen)} most important features, {name},"
        figure = interactive_feature_embedding(
            kept.directions, method=method, seed=_SEED, records=records, title=_title(what, features, models)
        )
        return Panel(figure, features=tuple(map(str, chosen)))

    return make


def _title(what: str, features: FeaturesOnTexts, models: Models) -> str:
    return title_of(what, text=tokens_of_text(features.statistics.tokens), model=models.model.name)


FIGURES: dict[str, Callable[[Measurements, Models], Panel]] = {
    "evaluation": _evaluation,
    "curves": _curves,
    "density": _density,
    "norms": _norms,
    "correlations": _correlations,
    "importance": _importance,
    "pca": _map("pca", "PCA"),
    "tsne": _map("tsne", "t-SNE"),
}
"""Functions that make the panels of the transcoder page, by the names of the figures."""
