"""The models of an explorer: a language model, a transcoder, and what is known of its features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

from open_clt.embedded import TRANSCODER_DIRECTORY
from open_clt.features.feature_files import FeatureFiles
from open_clt.features.places import find_records
from open_clt.features.table import FeatureRow
from open_clt.language.language_model import LanguageModel
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.progress import report_progress
from open_clt.replacement.model import ReplacementModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.fingerprint import fingerprint
from open_clt.transcoders.neurons.source import is_neurons
from open_clt.transcoders.transcoder import Transcoder

EMBEDDED = "embedded"


@final
@dataclass(frozen=True, kw_only=True)
class Source:
    """What an explorer shows: where the language model, the transcoder and the feature files are."""

    model: str = EMBEDDED
    """Name, directory or .gguf file of the language model."""
    transcoder: str | None = None
    """Directory or name of the transcoder; None is the one that ships for the model."""
    device: str = "cpu"
    features: Path | None = None
    """Directory of feature files; None means those of the transcoder."""
    trust_code: bool = False
    """Whether the transcoder's directory may name a class to import."""

    @property
    def is_embedded(self) -> bool:
        """Whether both the model and the transcoder are those that ship with the package."""
        return self.model == EMBEDDED and self.transcoder in (None, EMBEDDED)


@final
@dataclass(frozen=True, eq=False)
class Models:
    """A language model and its transcoder, loaded."""

    model: LanguageModel
    transcoder: Transcoder
    records: FeatureFiles | None
    """Feature files of the transcoder; None if there are none."""
    source: Source

    @cached_property
    def replacement(self) -> ReplacementModel:
        """The model whose MLPs are replaced by the transcoder."""
        return ReplacementModel(self.model, self.transcoder)

    @cached_property
    def corrected(self) -> ReplacementModel:
        """The model with features to change; without a change it computes the same as the original model."""
        return ReplacementModel(self.model, self.transcoder, error_correction=True)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the transcoder's weights and settings."""
        return fingerprint(self.transcoder)

    @cached_property
    def rows(self) -> list[FeatureRow]:
        """One row for each feature that has a record; empty without feature files."""
        return [] if self.records is None else self.records.table()

    @cached_property
    def row_of(self) -> dict[Feature, FeatureRow]:
        """The rows by feature."""
        return {row.feature: row for row in self.rows}

    __repr__ = short_repr


def load_models(source: Source) -> Models:
    """Load what a source names, and report each phase to the listener of progress."""
    report_progress(f"loading the language model {source.model}", 0, 3)
    if source.transcoder is None:
        clt = OpenCrossLayerTranscoder.from_pretrained(source.model, device=source.device)
        directory = None
    else:
        clt = OpenCrossLayerTranscoder(source.model, device=source.device)
        report_progress(f"loading the transcoder {source.transcoder}", 1, 3)
        directory = TRANSCODER_DIRECTORY if source.transcoder == EMBEDDED else source.transcoder
        clt.load_model(directory, trust_code=source.trust_code)
    report_progress("reading feature files", 2, 3)
    if source.features is not None:
        records = FeatureFiles(source.features)
    else:
        records = find_records(None if source.is_embedded or is_neurons(directory) else directory, clt.transcoder)
    models = Models(clt.language_model, clt.transcoder, records, source)
    _ = models.fingerprint, models.rows  # read now, so that no page waits for them
    report_progress("ready", 3, 3)
    return models
