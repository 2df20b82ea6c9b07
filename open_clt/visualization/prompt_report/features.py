"""The features of a report: their records from files or from a small pass over texts, and what is shown of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from open_clt import files
from open_clt.config import FeatureRecordsConfig
from open_clt.errors import ConfigError
from open_clt.features.collecting.collect import FeatureCollection
from open_clt.features.collecting.measured import feature_records
from open_clt.features.collecting.outputs import TokenNames, outputs_of
from open_clt.features.feature_data import feature_data
from open_clt.features.feature_files import FeatureFiles
from open_clt.features.firing import encode_contexts
from open_clt.features.labelling.automatic import label_records
from open_clt.features.labelling.background import background_of
from open_clt.features.records import FeatureExample, FeatureRecord
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder

_EXAMPLES, _EFFECTS = 5, 8
_BATCH = 16
_BEFORE, _AFTER = 20, 11
"""Tokens of an example that a page shows before and after the peak."""


def records_on(
    model: LanguageModel,
    transcoder: Transcoder,
    contexts: Int[Tensor, "context position"],
    chosen: Sequence[Feature],
) -> list[FeatureRecord]:
    """Measure the chosen features in one pass over contexts, and label them."""
    config = FeatureRecordsConfig(context_length=contexts.shape[1])
    collection = FeatureCollection(transcoder, contexts.shape[1], config)
    for start in range(0, len(contexts), _BATCH):
        batch = contexts[start : start + _BATCH].to(model.device)
        collection.add(batch, encode_contexts(model, transcoder, batch), start)
    records = feature_records(model, transcoder, collection, chosen, n_tokens=_EFFECTS)
    return list(label_records(records, background_of(model, transcoder, contexts)))


def records_without_text(
    model: LanguageModel, transcoder: Transcoder, chosen: Sequence[Feature]
) -> list[FeatureRecord]:
    """Describe the chosen features by the output tokens that their decoders raise and lower."""
    names = TokenNames(model)
    outputs = (outputs_of(model, transcoder, names, [feature], _EFFECTS)[0] for feature in chosen)
    return [
        FeatureRecord(feature, math.nan, math.nan, (), written.top_tokens, written.bottom_tokens)
        for feature, written in zip(chosen, outputs, strict=True)
    ]


def record_data(record: FeatureRecord, *, per_group: int = 2) -> dict[str, Any]:
    """Return what a report shows of a feature, for ``assets/feature.js``: ``per_group`` examples of each group."""
    groups = [group._replace(examples=tuple(map(_window, group.examples[:per_group]))) for group in record.groups]
    brief = replace(
        record,
        examples=tuple(map(_window, record.examples[:_EXAMPLES])),
        groups=tuple(groups),
        top_tokens=record.top_tokens[:_EFFECTS],
        bottom_tokens=record.bottom_tokens[:_EFFECTS],
        outputs=(),
        fires_on=record.fires_on[:_EFFECTS],
        nearest=record.nearest[:_EFFECTS],
        coactive=record.coactive[:_EFFECTS],
    )
    return feature_data(brief)


def _window(example: FeatureExample) -> FeatureExample:
    """Return the tokens around the peak."""
    start = max(0, example.peak - _BEFORE)
    window = slice(start, example.peak + _AFTER + 1)
    return FeatureExample(example.tokens[window], example.activations[window], example.peak - start)


def check_fits_files(directory: str | Path) -> None:
    """Raise ConfigError or CheckpointError if a directory does not hold feature files that can be read."""
    files.check_readable(Path(directory))
    if not Path(directory).is_dir():
        raise ConfigError(f"There is no directory {directory}; give the one in which `features/` was written.")
    FeatureFiles(directory)
