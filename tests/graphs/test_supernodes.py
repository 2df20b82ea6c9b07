"""Supernodes: grouping adds up the members' edges; suggestions are similar, reproducible and free of cycles."""

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
    labels = [each.label for each in grouped.groups]
    membership = torch.tensor([[float(node in each.members) for node in graph.ids()] for each in grouped.groups])
    expected = (membership @ graph.adjacency() @ membership.T).fill_diagonal_(0)
    adjacency = torch.zeros_like(expected)
    adjacency[grouped.edges.target, grouped.edges.source] = grouped.edges.weight
    torch.testing.assert_close(adjacency, expected)
    assert float(adjacency[labels.index("1:2:3"), labels.index("twins")]) == pytest.approx(3.5)


def test_members_may_have_circuit_tracers_ids(graph: AttributionGraph) -> None:
    grouped = group(graph, [Supernode("twins", ("0_5_1", "0_5_2"))])
    assert grouped.groups == group(graph, [PAIR]).groups


def test_without_supernodes_scores_and_influence_are_those_of_the_graph(graph: AttributionGraph) -> None:
    grouped = group(graph, [])
    assert grouped.scores() == pytest.approx(graph.scores())
    torch.testing.assert_close(grouped.influence(), graph.influence())


def test_scores_of_a_grouped_graph_count_the_inputs_that_pruning_removed(graph: AttributionGraph) -> None:
    pruned = graph.prune(0.7, 0.9)
    assert group(pruned, []).scores() == pytest.approx(pruned.scores())


def test_a_group_with_an_error_node_counts_as_an_error(graph: AttributionGraph) -> None:
    mixed = group(graph, [Supernode("mixed", ("error:1:2", "token:2:12"))])
    assert mixed.scores().replacement < graph.scores().replacement


def test_a_group_of_tokens_counts_as_a_token(graph: AttributionGraph) -> None:
    grouped = group(graph, [Supernode("the prompt", ("token:0:10", "token:1:11"))])
    assert grouped.scores().replacement == pytest.approx(graph.scores().replacement)


def test_a_query_makes_a_supernode(graph: AttributionGraph) -> None:
    query = NodeQuery(kinds=(NodeKind.FEATURE,), layers=(0,))
    assert supernode(graph, "early", query) == Supernode("early", ("0:1:5", "0:2:5", "0:2:7"))
    with refuses(AttributionError, "none"):
        supernode(graph, "none", NodeQuery(layers=(7,)))


@pytest.mark.parametrize(
    ("supernodes", "named"),
    [
        ([Supernode("a", ("9:9:9",))], "9:9:9"),
        ([PAIR, Supernode("b", ("0:2:5",))], "0:2:5"),
        ([PAIR, Supernode("twins", ("0:2:7",))], "twins"),
        ([Supernode("1:2:3", ("0:2:7",))], "1:2:3"),
        ([Supernode("empty", ())], "empty"),
    ],
)
def test_overlapping_empty_and_equally_labelled_groups_are_refused(
    graph: AttributionGraph, supernodes: list[Supernode], named: str
) -> None:
    with refuses(AttributionError, named):
        group(graph, supernodes)


def test_a_cycle_between_groups_is_an_error(graph: AttributionGraph) -> None:
    grouped = group(graph, [Supernode("around", ("token:1:11", "1:2:3"))])
    with refuses(AttributionError):
        grouped.scores()


def test_features_with_the_same_edges_are_suggested(graph: AttributionGraph) -> None:
    assert suggest_supernodes(graph, min_similarity=0.9) == [Supernode("L0/5", PAIR.members)]
    assert suggest_supernodes(graph, min_similarity=1.0) == []
    labelled = graph.with_labels({Feature(0, 5): "articles"})
    assert suggest_supernodes(labelled, min_similarity=0.9)[0].label == "articles"


def test_suggestions_make_no_cycle_even_without_a_limit_on_similarity(graph: AttributionGraph) -> None:
    (largest,) = suggest_supernodes(graph, min_similarity=-1.0)
    assert len(largest.members) == 4
    group(graph, [largest]).scores()


@pytest.fixture(scope="module")
def traced(tiny_gpt2: LanguageModel) -> AttributionGraph:
    return attribute(tiny_gpt2, random_transcoder(tiny_gpt2), "The cat sat on the dog")


@pytest.mark.parametrize("min_similarity", [-1.0, 0.1, 0.4])
def test_suggestions_for_a_model_are_free_of_cycles_and_always_the_same(
    traced: AttributionGraph, tiny_gpt2: LanguageModel, min_similarity: float
) -> None:
    transcoder = random_transcoder(tiny_gpt2)
    suggested = suggest_supernodes(traced, transcoder, min_similarity=min_similarity)
    assert suggested
    assert suggested == suggest_supernodes(traced, transcoder, min_similarity=min_similarity)
    scores = group(traced, suggested).scores()
    assert 0 < scores.replacement <= 1
    assert 0 < scores.completeness <= 1


def test_by_decoders_alone_each_group_is_one_feature_at_several_positions(
    traced: AttributionGraph, tiny_gpt2: LanguageModel
) -> None:
    suggested = suggest_supernodes(traced, random_transcoder(tiny_gpt2), min_similarity=0.999, decoder_share=1.0)
    assert suggested
    for each in suggested:
        assert len({FeaturePlace.parse(node).feature for node in each.members}) == 1


def test_settings_out_of_range_are_refused(graph: AttributionGraph) -> None:
    with refuses(AttributionError, "decoder_share", 2.0):
        suggest_supernodes(graph, decoder_share=2.0)
    with refuses(AttributionError, "min_similarity", -1.5):
        suggest_supernodes(graph, min_similarity=-1.5)
