"""The table of labels: which class of the world's words it names for made examples, and which features it shows."""

from __future__ import annotations

import torch

from benchmarks.labels import World, shown, summary
from open_clt.features.labelling.background import Background
from open_clt.features.records import FeatureExample, FeatureLabel, FeatureRecord
from open_clt.transcoders.feature import Feature

WINDOWS = [(" the", " Texas", " is", " big"), (" Monday", " is", " the", " day"), (" a", " cat", " sat", ".")] * 4


def record_of(
    examples: list[tuple[tuple[str, ...], int]], label: FeatureLabel | None = None, layer: int = 0, index: int = 0
) -> FeatureRecord:
    made = tuple(FeatureExample(tokens, torch.ones(len(tokens)), peak) for tokens, peak in examples)
    return FeatureRecord(Feature(layer, index), 0.1, 1.0, made, (), (), label=label)


def test_the_class_of_most_peaks_is_named() -> None:
    world = World(Background(WINDOWS, torch.zeros(0, 3, dtype=torch.long)))
    days = [((" on", day), 1) for day in (" Monday", " Friday", " Sunday")] + [((" the", " cat"), 1)]
    assert "75% of the peaks on days" in world.says(record_of(days))
    texas = [((" in", place), 1) for place in (" Texas", " Dallas", " Austin", " Houston")]
    assert "Texas and its places" in world.says(record_of(texas))


def test_the_last_named_word_before_the_peak_is_named() -> None:
    world = World(Background(WINDOWS, torch.zeros(0, 3, dtype=torch.long)))
    after = [((" Monday", " comes", " zzz"), 2), ((" Friday", " zzz", " zzz"), 2)]
    assert "after days" in world.says(record_of(after))


def test_examples_without_a_class_get_a_dash() -> None:
    world = World(Background(WINDOWS, torch.zeros(0, 3, dtype=torch.long)))
    assert world.says(record_of([((" zzz", " qqq"), 1)])) == "–"
    assert world.says(record_of([])) == "–"


def test_features_are_shown_at_equal_distances_in_every_layer() -> None:
    records = [record_of([], layer=layer, index=index) for layer in range(2) for index in range(10)]
    assert [record.feature for record in shown(records, 4)] == [(0, 0), (0, 5), (1, 0), (1, 5)]


def test_the_summary_is_of_confident_labels_and_skips_scores_that_are_not_known() -> None:
    labels = [
        FeatureLabel("a", 0.9, 0.9),
        FeatureLabel("b", 0.6, 0.8),
        FeatureLabel("c", 0.7),
        FeatureLabel("d", 0.1, 0.5),
    ]
    means = summary([record_of([], label) for label in [*labels, None]])
    assert means["mean_detection_score"] == 0.85
    assert means["share_confident"] == 3 / 5
    assert means["mean_detection_score_of_all"] == 0.7333
