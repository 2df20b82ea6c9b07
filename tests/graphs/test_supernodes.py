"""Supernodes: grouping is a sum over members, suggestions are alike, the same every time, and make no loop."""

from __future__ import annotations

import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.errors import AttributionError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import NodeQuery
from open_clt.graphs.supernodes import Supernode, group, suggest_supernodes, supernode
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.feature import Feature, FeaturePlace
from tests.graphs.hand_graph import hand_graph
from tests.random_transcoders import random_transcoder
from tests.refusals import refuses

PAIR = Supernode("twins", ("0:1:5", "0:2:5"))


@pytest.fixture
def graph() -> AttributionGraph:
    return hand_graph(compatible=True)


def test_edges_between_groups_add_up(graph: AttributionGraph) -> None:
    grouped = group(graph, [PAIR])
    labels = [joined.label for joined in grouped.groups]
    of_group = torch.tensor([[float(name in joined.members) for name in graph.ids()] for joined in grouped.groups])
    expected = (of_group @ graph.adjacency() @ of_group.T).fill_diagonal_(0)
    found = torch.zeros_like(expected)
    found[grouped.edges.target, grouped.edges.source] = grouped.edges.weight
    torch.testing.assert_close(found, expected)
    assert float(found[labels.index("1:2:3"), labels.index("twins")]) == pytest.approx(3.5)


def test_members_may_be_named_as_circuit_tracer_names_them(graph: AttributionGraph) -> None:
    theirs = group(graph, [Supernode("twins", ("0_5_1", "0_5_2"))])
    assert theirs.groups == group(graph, [PAIR]).groups


def test_without_supernodes_nothing_changes(graph: AttributionGraph) -> None:
    grouped = group(graph, [])
    assert grouped.scores() == pytest.approx(graph.scores())
    torch.testing.assert_close(grouped.influence(), graph.influence())


def test_scores_of_a_pruned_graph_still_count_what_was_pruned(graph: AttributionGraph) -> None:
    pruned = graph.prune(0.7, 0.9)
    assert group(pruned, []).scores() == pytest.approx(pruned.scores())


def test_a_group_with_an_error_in_it_is_an_error(graph: AttributionGraph) -> None:
    mixed = group(graph, [Supernode("mixed", ("error:1:2", "token:2:12"))])
    assert mixed.scores().replacement < graph.scores().replacement


def test_tokens_may_be_grouped(graph: AttributionGraph) -> None:
    grouped = group(graph, [Supernode("the prompt", ("token:0:10", "token:1:11"))])
    assert grouped.scores().replacement == pytest.approx(graph.scores().replacement)


def test_a_query_makes_a_supernode(graph: AttributionGraph) -> None:
    query = NodeQuery(kinds=(NodeKind.FEATURE,), layers=(0,))
    assert supernode(graph, "early", query) == Supernode("early", ("0:1:5", "0:2:5", "0:2:7"))
    with refuses(AttributionError, "none"):
        supernode(graph, "none", NodeQuery(layers=(7,)))


@pytest.mark.parametrize(
    ("supernodes", "match"),
    [
        ([Supernode("a", ("9:9:9",))], "9:9:9"),
        ([PAIR, Supernode("b", ("0:2:5",))], "'0:2:5' is in two"),
        ([PAIR, Supernode("twins", ("0:2:7",))], "Two groups are called 'twins'"),
        ([Supernode("1:2:3", ("0:2:7",))], "Two groups are called '1:2:3'"),
        ([Supernode("a", ())], "no members"),
    ],
)
def test_groups_are_disjoint_and_have_names(graph: AttributionGraph, supernodes: list[Supernode], match: str) -> None:
    with pytest.raises(AttributionError, match=match):
        group(graph, supernodes)


def test_a_loop_between_groups_is_an_error(graph: AttributionGraph) -> None:
    grouped = group(graph, [Supernode("around", ("token:1:11", "1:2:3"))])
    with refuses(AttributionError):
        grouped.scores()


def test_features_with_the_same_edges_are_suggested(graph: AttributionGraph) -> None:
    assert suggest_supernodes(graph, min_similarity=0.9) == [Supernode("L0/5", PAIR.members)]
    assert suggest_supernodes(graph, min_similarity=1.0) == []
    named = graph.with_labels({Feature(0, 5): "articles"})
    assert suggest_supernodes(named, min_similarity=0.9)[0].label == "articles"


def test_no_suggestion_makes_a_loop(graph: AttributionGraph) -> None:
    """With no bar at all everything is joined that can be; the rest must still be a graph without loops."""
    (everything,) = suggest_supernodes(graph, min_similarity=-1.0)
    assert len(everything.members) == 4
    group(graph, [everything]).scores()


@pytest.fixture(scope="module")
def traced(tiny_gpt2: LanguageModel) -> AttributionGraph:
    return attribute(tiny_gpt2, random_transcoder(tiny_gpt2), "The cat sat on the dog")


@pytest.mark.parametrize("least", [-1.0, 0.1, 0.4])
def test_suggestions_for_a_model_are_groups_without_loops_and_always_the_same(
    traced: AttributionGraph, tiny_gpt2: LanguageModel, least: float
) -> None:
    transcoder = random_transcoder(tiny_gpt2)
    found = suggest_supernodes(traced, transcoder, min_similarity=least)
    assert found
    assert found == suggest_supernodes(traced, transcoder, min_similarity=least)
    scores = group(traced, found).scores()
    assert 0 < scores.replacement <= 1
    assert 0 < scores.completeness <= 1


def test_decoders_alone_group_one_feature_over_positions(traced: AttributionGraph, tiny_gpt2: LanguageModel) -> None:
    found = suggest_supernodes(traced, random_transcoder(tiny_gpt2), min_similarity=0.999, decoder_share=1.0)
    assert found
    for joined in found:
        assert len({FeaturePlace.parse(name).feature for name in joined.members}) == 1


def test_settings_out_of_range_are_refused(graph: AttributionGraph) -> None:
    with refuses(AttributionError, "decoder_share", 2):
        suggest_supernodes(graph, decoder_share=2.0)
