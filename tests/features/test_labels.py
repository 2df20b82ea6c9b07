"""Labels of features: they are made of readable tokens, and do not replace labels that users gave."""

from __future__ import annotations

import pytest
import torch

from open_clt.features.labels import describe, label_features
from open_clt.features.records import FeatureExample, FeatureRecord, TokenEffect
from open_clt.graphs.graph import AttributionGraph
from open_clt.transcoders.feature import Feature
from tests.graphs.hand_graph import hand_graph


@pytest.fixture
def graph() -> AttributionGraph:
    return hand_graph()


def record(layer: int, feature: int) -> FeatureRecord:
    peaks = [FeatureExample((" a", token), torch.tensor([0.0, 1.0]), 1) for token in (" dog", " cat", " dog")]
    effects = (TokenEffect(" barks", 2.0), TokenEffect(" runs", 1.0), TokenEffect(" is", 0.5))
    return FeatureRecord(Feature(layer, feature), 0.1, 1.0, tuple(peaks), effects, ())


@pytest.mark.parametrize(
    ("peak_tokens", "raised", "label"),
    [
        ([" dog"], [" barks", "barks", " runs"], "dog → barks, runs"),
        ([" dog", "\ufffd", "\x15"], ["\ufffd", "\x15", " ", " runs"], "dog → runs"),
        ([","], ["'", " \n", "“"], "“,” → “'”, ““”"),
        (["\ufffd"], ["\x15"], "feature 5"),
        (["\ufffd"], [" cat"], "cat"),
    ],
)
def test_labels_skip_tokens_that_cannot_be_read(peak_tokens: list[str], raised: list[str], label: str) -> None:
    peaks = tuple(FeatureExample((token,), torch.ones(1), 0) for token in peak_tokens)
    effects = tuple(TokenEffect(token, 1.0) for token in raised)
    assert describe(FeatureRecord(Feature(0, 5), 0.1, 1.0, peaks, effects, ())) == label


def test_records_label_features_that_the_user_did_not_label(graph: AttributionGraph) -> None:
    assert describe(record(0, 5)) == "dog, cat → barks, runs"
    labelled = label_features(graph, [record(0, 5), record(0, 7)])
    assert [labelled.node(node).label for node in (0, 1, 2)] == [describe(record(0, 5))] * 2 + ["animals"]
