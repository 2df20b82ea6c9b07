"""Targets that are read from text, and the resolved targets in a graph's settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.attribution.targets import read_target
from open_clt.errors import AttributionError
from open_clt.graphs.formats.networkx import read_graphml, write_graphml
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.info import GraphSettings
from open_clt.graphs.targets import (
    Direction,
    FeaturePreactivation,
    LogitDifference,
    SalientLogits,
    Target,
    TokenLogits,
)
from open_clt.language.language_model import LanguageModel
from tests.attribution.cases import KINDS, PROMPT
from tests.random_transcoders import random_architecture
from tests.refusals import refuses


def test_a_text_is_a_feature_or_a_token_or_a_difference(tiny_gpt2: LanguageModel) -> None:
    the, dash = (tiny_gpt2.token_ids([text])[0][0] for text in (" the", "-"))
    written: dict[str, Target] = {
        "2:5:7": FeaturePreactivation(layer=2, feature=7, position=5),
        "2:-1:7": FeaturePreactivation(layer=2, feature=7, position=-1),
        " the": TokenLogits(tokens=(the,), position=3),
        "-": TokenLogits(tokens=(dash,), position=3),
        " the--7": LogitDifference(positive=the, negative=tiny_gpt2.token_ids(["7"])[0][0], position=3),
        " the---": LogitDifference(positive=the, negative=dash, position=3),
    }
    assert {text: read_target(tiny_gpt2, text, position=3) for text in written} == written


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("zebra", "zebra"),
        ("", "''"),
        (" the--", "''"),
        ("--", "''"),
        (" the--zebra", "zebra"),
        ("2:*:7", "2:*:7"),
        ("2:5", "2:5"),
    ],
)
def test_other_texts_are_refused(tiny_gpt2: LanguageModel, text: str, named: str) -> None:
    with refuses(AttributionError, named):
        read_target(tiny_gpt2, text)


def test_a_graph_keeps_its_targets_resolved(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    """Token ids, positions from the start, and vectors are the same in memory and in every file of a whole graph."""
    the = tiny_gpt2.token_ids([" the"])[0][0]
    last = len(tiny_gpt2.tokenize(PROMPT)) - 1
    vector = torch.linspace(-1, 1, 32)
    targets = [
        SalientLogits(max_count=2, probability=0.5),
        TokenLogits(tokens=(" the", 9), position=3),
        LogitDifference(positive=" the", negative=9),
        Direction(vector=vector, name="probe"),
        Direction(vector=vector, name="the same probe", position=3),
        FeaturePreactivation(layer=1, feature=4, position=-2),
    ]
    graph = attribute(tiny_gpt2, random_architecture(KINDS["clt"]), PROMPT, targets=targets, max_feature_nodes=9)
    expected = GraphSettings(
        targets=(
            SalientLogits(max_count=2, probability=0.5, position=last),
            TokenLogits(tokens=(the, 9), position=3),
            LogitDifference(positive=the, negative=9, position=last),
            Direction(vector=vector, name="probe", position=last),
            Direction(vector=vector, name="the same probe", position=3),
            FeaturePreactivation(layer=1, feature=4, position=last - 1),
        ),
        max_feature_nodes=9,
        batch_size=256,
    )
    assert graph.info.settings == expected
    assert AttributionGraph.load(graph.save(tmp_path / "graph")).info == graph.info
    assert read_graphml(write_graphml(graph, tmp_path / "graph.graphml")).info == graph.info


def test_resolved_targets_give_the_same_graph(tiny_gpt2: LanguageModel) -> None:
    """The targets in a graph's settings can be attributed again."""
    transcoder = random_architecture(KINDS["clt"])
    targets = [TokenLogits(tokens=(" the",), position=-1), Direction(vector=torch.ones(32), position=-2)]
    graph = attribute(tiny_gpt2, transcoder, PROMPT, targets=targets)
    resolved = [target for target in graph.info.settings.targets if target is not None]
    again = attribute(tiny_gpt2, transcoder, PROMPT, targets=resolved)
    assert again.info.settings == graph.info.settings
    assert torch.equal(again.edges.weight, graph.edges.weight)


def test_directions_are_equal_if_their_vectors_are() -> None:
    assert Direction(vector=torch.ones(3)) == Direction(vector=torch.ones(3))
    assert Direction(vector=torch.ones(3)) != Direction(vector=torch.zeros(3))
    assert Direction(vector=torch.ones(3)) != Direction(vector=torch.ones(3), position=0)
