"""Labels that users give: read from files, put into records, and kept in graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_clt.errors import ConfigError
from open_clt.features.labelling.given import label_features, read_labels, with_labels
from open_clt.features.records import FeatureExample, FeatureRecord, TokenEffect
from open_clt.transcoders.feature import Feature
from tests.features.rich_record import rich_record
from tests.graphs.hand_graph import hand_graph
from tests.refusals import refuses


def record(layer: int, feature: int) -> FeatureRecord:
    peaks = [FeatureExample((" a", token), torch.tensor([0.0, 1.0]), 1) for token in (" dog", " cat", " dog")]
    effects = (TokenEffect(" barks", 2.0), TokenEffect(" runs", 1.0), TokenEffect(" is", 0.5))
    return FeatureRecord(Feature(layer, feature), 0.1, 1.0, tuple(peaks), effects, ())


def test_records_label_features_that_the_user_did_not_label() -> None:
    labelled = label_features(hand_graph(), [record(0, 5), record(0, 7)])
    assert [labelled.node(node).label for node in (0, 1, 2)] == ["dog, cat → barks, runs"] * 2 + ["animals"]


def test_labels_of_records_travel_into_graphs() -> None:
    labelled = label_features(hand_graph(), with_labels([record(0, 5)], {Feature(0, 5): "pets"}))
    assert labelled.node(0).label == "pets"


def test_labels_of_users_replace_automatic_ones() -> None:
    records = [rich_record(0, 1), rich_record(0, 2)]
    first, second = with_labels(records, {Feature(0, 2): "mine"})
    assert first.label == records[0].label
    assert second.label is not None
    assert second.label.text == "mine"
    assert not second.label.automatic


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.json", '{"L2/417": "Texas, \\"big\\"", "0_3": "a"}'),
        ("labels.csv", 'feature,score,label\nL2/417,1,"Texas, ""big"""\n0/3,,a\nL0/4,,\n'),
        ("LABELS.CSV", 'label,feature\n"Texas, ""big""", L2/417\na,0_3\na,0_3\n'),
    ],
)
def test_labels_are_read_from_json_and_csv(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_labels(tmp_path / name) == {Feature(2, 417): 'Texas, "big"', Feature(0, 3): "a"}


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("labels.csv", "feature\nL0/1\n", "label"),
        ("labels.csv", "feature,label\nTexas,a\n", "Texas"),
        ("labels.csv", "feature,label\nL0/1,a\n0/1,b\n", "L0/1"),
        ("labels.json", '{"L0/1": 3}', "L0/1"),
        ("labels.json", "[]", "list"),
        ("labels.txt", "L0/1 a", "labels.txt"),
    ],
)
def test_files_without_labels_are_refused(tmp_path: Path, name: str, content: str, named: str) -> None:
    (tmp_path / name).write_text(content)
    with refuses(ConfigError, name, named):
        read_labels(tmp_path / name)


@pytest.mark.wrong_types
def test_labels_of_something_else_are_refused() -> None:
    with refuses(ConfigError, "labels"):
        list(with_labels([record(0, 5)], {Feature(0, 5): 3}))  # pyright: ignore[reportArgumentType]
