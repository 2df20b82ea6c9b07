"""A feature has one printed form and one order, and notations of other programs are read too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from open_clt.errors import ConfigError
from open_clt.transcoders.feature import Feature, FeaturePlace, labels_json, read_labels
from tests.refusals import refuses

naturals = st.integers(0, 10**9)


@given(layer=naturals, index=naturals)
def test_a_printed_feature_is_parsed_to_the_same_feature(layer: int, index: int) -> None:
    feature = Feature(layer, index)
    assert Feature.parse(str(feature)) == Feature.parse(f"{layer}_{index}") == feature


@given(layer=naturals, index=naturals, position=st.none() | st.integers(-(10**6), 10**6))
def test_a_printed_place_is_parsed_to_the_same_place(layer: int, index: int, position: int | None) -> None:
    place = FeaturePlace(Feature(layer, index), position)
    assert FeaturePlace.parse(str(place)) == place


def test_the_position_is_in_the_middle_in_our_notation_and_last_in_circuit_tracers() -> None:
    assert FeaturePlace.parse("2:5:417") == FeaturePlace.parse("2_417_5") == FeaturePlace(Feature(2, 417), 5)
    assert FeaturePlace.parse("2:*:417") == FeaturePlace.parse("L2/417") == FeaturePlace(Feature(2, 417), None)


@pytest.mark.parametrize(
    "text", ["", "2", "L2", "2:417", "L-1/3", "2/x", "2:5:-1", "E_3_1", "2_-1_5", "²:1:1", "2:5:4 "]
)
def test_any_other_text_is_refused(text: str) -> None:
    with refuses(ConfigError, repr(text)):
        FeaturePlace.parse(text)


def test_a_feature_indexes_a_table_of_features() -> None:
    table = torch.arange(12).view(3, 4)
    assert int(table[Feature(2, 1)]) == 9


def test_labels_of_features_are_read_as_they_are_written() -> None:
    labels = {Feature(2, 417): "Texas", Feature(0, 3): "articles"}
    assert labels_json(labels) == {"L2/417": "Texas", "L0/3": "articles"}
    assert read_labels(labels_json(labels)) == read_labels({"2_417": "Texas", "0_3": "articles"}) == labels


@pytest.mark.parametrize("content", [[], "L2/417", {"L2": "a"}, {"L2/417": 3}, {"E_3_1": "a"}])
def test_other_content_is_refused(content: object) -> None:
    with pytest.raises(ConfigError):
        read_labels(content)
