"""Labels of the embedded model's features: confident ones are right on held-out contexts, as often as they say."""

from __future__ import annotations

import pytest

from open_clt.config import FeatureRecordsConfig
from open_clt.data.contexts import pack_contexts
from open_clt.embedded import TRANSCODER_DIRECTORY
from open_clt.embedded.corpus import generate_texts
from open_clt.features.collecting.collect import collect_features
from open_clt.features.collecting.measured import feature_records
from open_clt.features.labelling.automatic import label_records
from open_clt.features.labelling.background import background_of
from open_clt.features.labelling.single_tokens import single_tokens
from open_clt.features.records import FeatureLabel
from open_clt.language.language_model import load_language_model
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.load import load_transcoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def labels() -> list[FeatureLabel]:
    """The labels of every tenth feature, whose score could be measured."""
    model, transcoder = load_language_model("embedded"), load_transcoder(TRANSCODER_DIRECTORY)
    config = FeatureRecordsConfig(max_tokens=30_000)
    collection = collect_features(model, transcoder, generate_texts(10_000, seed=3), config)
    contexts = pack_contexts(generate_texts(2000, seed=4), model, config.context_length, max_contexts=75)
    background = background_of(model, transcoder, contexts, n_windows=300, window=config.window)
    inputs = single_tokens(model, transcoder)
    chosen = [Feature(layer, index) for layer in range(5) for index in range(0, 768, 10)]
    records = label_records(feature_records(model, transcoder, collection, chosen), background, inputs)
    found = [record.label for record in records]
    return [label for label in found if label is not None and label.score == label.score]


def test_confident_labels_tell_held_out_contexts_apart(labels: list[FeatureLabel]) -> None:
    confident = [label.score for label in labels if label.confidence > 0.5]
    assert len(confident) > 0.25 * len(labels)
    assert sum(confident) / len(confident) >= 0.8


def test_confidence_says_how_often_labels_are_right(labels: list[FeatureLabel]) -> None:
    """In each quarter of the labels, the mean accuracy that the confidence promises is about the mean score."""
    ordered = sorted(labels, key=lambda label: label.confidence)
    size = len(ordered) // 4
    for start in range(0, 4 * size, size):
        quarter = ordered[start : start + size]
        promised = sum((1 + label.confidence) / 2 for label in quarter) / size
        assert sum(label.score for label in quarter) / size == pytest.approx(promised, abs=0.06)
