"""Tests of the consensus of graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from open_clt.errors import AttributionError
from open_clt.graphs.consensus import consensus, contingent, core, with_matched_features
from open_clt.graphs.consensus_table import ConsensusTable
from open_clt.graphs.edges import Edges
from open_clt.graphs.formats.networkx import read_graphml, write_graphml
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import answer_effects
from open_clt.transcoders.feature import Feature
from tests.graphs.hand_graph import assert_same, hand_graph
from tests.reference import consensus as slow
from tests.refusals import refuses

ROLES = ["<bos>", " the", " cat\n"]


def noisy(seed: int, noise: float = 0.5) -> AttributionGraph:
    """The hand graph with other weights, which add up to other totals."""
    graph, generator = hand_graph(), torch.Generator().manual_seed(seed)
    weight = graph.edges.weight * (1 + noise * torch.randn(graph.n_edges, generator=generator))
    edges = Edges(graph.edges.target, graph.edges.source, weight)
    total = torch.zeros(graph.n_nodes).index_add(0, edges.target, weight).where(~graph.nodes.total.isnan(), torch.nan)
    return replace(graph, edges=edges, nodes=replace(graph.nodes, total=total))


def without(graph: AttributionGraph, *ids: str) -> AttributionGraph:
    """The graph without some nodes, whose weights count as omitted."""
    return graph.part(torch.tensor([node not in ids for node in graph.ids()]))


def several() -> list[AttributionGraph]:
    return [noisy(0), without(noisy(1), "0:2:7"), without(noisy(2), "0:2:7", "0:2:5"), noisy(3)]


def table_of(graph: AttributionGraph) -> ConsensusTable:
    assert graph.consensus is not None
    return graph.consensus


def by_id(graph: AttributionGraph, column: torch.Tensor) -> dict[str, float]:
    return dict(zip(graph.ids(), column.tolist(), strict=True))


def test_the_consensus_of_equal_graphs_is_the_graph_with_shares_for_weights() -> None:
    graph = hand_graph()
    averaged = consensus([graph, graph, graph])
    table = table_of(averaged)
    assert averaged.ids() == [name.replace("target:2:1", "target:2:0") for name in graph.ids()]
    assert torch.allclose(averaged.edges.weight.abs(), graph.influence_graph.shares.float())
    assert bool((table.frequency == 1).all())
    assert bool((table.edge_frequency == 1).all())
    assert torch.allclose(averaged.influence(), table.influence, atol=1e-6)
    assert torch.allclose(graph.influence() / graph.nodes.weight.sum(), table.influence, atol=1e-6)
    assert float(table.deviation.abs().max()) < 1e-6
    assert torch.allclose(table.low, table.influence)
    assert torch.allclose(table.high, table.influence)
    assert table.stability == pytest.approx((1.0, 1.0, 1.0))


def test_averages_equal_those_of_the_slow_twin() -> None:
    graphs = several()
    averaged = consensus(graphs)
    table = table_of(averaged)
    roles = [ROLES] * len(graphs)
    names = slow.names(averaged, averaged.info.token_strings)
    expected = slow.influences(graphs, roles)
    assert set(names) == set(expected)
    for row, name in enumerate(names):
        found = [float(column[row]) for column in (table.frequency, table.influence, table.deviation)]
        assert found == pytest.approx(expected[name], abs=1e-6), name
    expected_edges = slow.edges(graphs, roles)
    assert averaged.n_edges == len(expected_edges)
    for edge, (target, source, weight) in enumerate(zip(*(c.tolist() for c in averaged.edges), strict=True)):
        found = [float(table.edge_frequency[edge]), weight, float(table.edge_deviation[edge])]
        assert found == pytest.approx(expected_edges[names[source], names[target]], abs=1e-6)
    assert table.stability == pytest.approx(slow.stability(graphs, roles), abs=1e-6)


def test_rows_of_a_consensus_add_up() -> None:
    averaged = consensus(several())
    assert averaged.check().holds
    assert averaged.missing() == ""
    has_row = ~averaged.nodes.total.isnan()
    assert torch.allclose(averaged.influence_graph.inputs[has_row], torch.ones(int(has_row.sum())).double())


def test_the_interval_holds_the_mean_and_is_wider_where_graphs_differ_more() -> None:
    calm, wild = (table_of(consensus([noisy(seed, noise) for seed in range(6)])) for noise in (0.05, 0.5))
    for table in (calm, wild):
        assert bool((table.low <= table.influence + 1e-7).all())
        assert bool((table.high >= table.influence - 1e-7).all())
    assert float((calm.high - calm.low).sum()) < 0.5 * float((wild.high - wild.low).sum())
    assert float((calm.edge_high - calm.edge_low).sum()) < 0.5 * float((wild.edge_high - wild.edge_low).sum())


@pytest.mark.slow
def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    """The true mean is that of 400 graphs; intervals of 20 graphs are somewhat short, as those of a bootstrap are."""
    truth = table_of(consensus([noisy(1000 + seed, 0.2) for seed in range(400)], resamples=2)).influence
    tables = [table_of(consensus([noisy(20 * r + seed, 0.2) for seed in range(20)])) for r in range(15)]
    varies = truth > 0.01
    covered = torch.stack([(t.low <= truth) & (truth <= t.high) for t in tables])[:, varies].double().mean()
    assert 0.85 <= float(covered) <= 0.99


def test_stability_falls_with_noise_and_lies_between_0_and_1() -> None:
    scores = [sum(table_of(consensus([noisy(s, noise) for s in range(5)])).stability) / 5 for noise in (0.0, 0.1, 0.6)]
    assert scores[0] == pytest.approx(1)
    assert 1 > scores[1] > scores[2] > 0


def test_stability_is_0_without_a_common_feature() -> None:
    other = hand_graph()
    features = other.of_kind(NodeKind.FEATURE)
    renamed = replace(other, nodes=replace(other.nodes, index=other.nodes.index + 100 * features))
    assert table_of(consensus([hand_graph(), renamed])).stability == (0.0, 0.0)


def test_core_and_contingent_parts_divide_the_nodes_by_frequency() -> None:
    averaged = consensus(several())
    inner, outer = core(averaged, 0.75), contingent(averaged, 0.75)
    assert "0:2:7" not in inner.ids()
    assert "0:2:5" in inner.ids()
    assert "0:2:7" in outer.ids()
    assert float(table_of(inner).frequency.min()) >= 0.75
    assert float(table_of(inner).edge_frequency.min()) >= 0.75
    assert float(table_of(outer).edge_frequency.max()) < 0.75
    assert inner.n_edges + outer.n_edges == averaged.n_edges
    assert inner.check().holds


def test_a_core_of_all_graphs_has_the_nodes_of_all_graphs() -> None:
    graphs = several()
    shared = set.intersection(*(set(graph.ids()) for graph in graphs))
    assert {node for node in core(consensus(graphs), 1.0).ids() if node[0].isdigit()} == {
        n for n in shared if n[0].isdigit()
    }


def test_pruning_keeps_the_frequencies_of_the_nodes_that_stay() -> None:
    averaged = consensus(several())
    pruned = averaged.prune(0.6, 0.9)
    assert 0 < pruned.n_nodes < averaged.n_nodes
    whole = by_id(averaged, table_of(averaged).frequency)
    assert by_id(pruned, table_of(pruned).frequency) == {node: whole[node] for node in pruned.ids()}


def answering(name: str, token: int, seed: int) -> AttributionGraph:
    """A graph whose likeliest token is ``name``."""
    graph = noisy(seed)
    index = graph.nodes.index.clone()
    index[graph.ids().index("logit:2:40")] = token
    info = replace(graph.info, target_names=(name, *graph.info.target_names[1:]))
    return replace(graph, nodes=replace(graph.nodes, index=index), info=info).part(~graph.of_kind(NodeKind.TARGET))


def test_prompts_with_different_answers_have_one_output() -> None:
    averaged = consensus([answering(" Austin", 40, 0), answering(" Boston", 60, 1)])
    assert averaged.info.target_names == ("answer",)
    assert table_of(averaged).answers == (" Austin", " Boston")
    assert averaged.ids()[-1] == "target:2:0"
    assert averaged.check().holds


def test_prompts_with_the_same_answer_keep_the_other_outputs() -> None:
    first, second = answering(" Austin", 40, 0), answering(" Austin", 40, 1)
    assert consensus([first, second]).info.target_names == (" Austin", ' "on"')


def test_positions_of_prompts_with_different_lengths_are_aligned() -> None:
    """The second prompt has one more token; its last position has the role of the first prompt's last position."""
    short = hand_graph()
    moved = replace(short.nodes, position=torch.where(short.nodes.position == 2, 3, short.nodes.position))
    tokens = ("<bos>", " the", " big", " cat\n")
    long = replace(short, nodes=moved, info=replace(short.info, tokens=(10, 11, 77, 12), token_strings=tokens))
    averaged = consensus([short, long])
    assert averaged.info.token_strings == ("<bos>", " the", " big", " cat\n")
    assert bool((table_of(averaged).frequency == 1).all())


def test_a_feature_at_several_tokens_of_a_slot_is_one_node() -> None:
    graphs = []
    for tokens in (("<bos>", "a", " b"), ("<bos>", "c", " d")):
        graph = hand_graph(tokens=tokens)
        graphs.append(replace(graph, info=replace(graph.info, prompt="".join(tokens[1:]))))
    averaged = consensus(graphs, template="{name}")
    assert averaged.info.token_strings == ("<bos>", "{name}")
    expected = slow.influences(graphs, [["<bos>", "{name}", "{name}"]] * 2)
    names = slow.names(averaged, averaged.info.token_strings)
    assert table_of(averaged).influence.tolist() == pytest.approx([expected[name].mean for name in names], abs=1e-6)
    value = dict(zip(names, averaged.nodes.value.tolist(), strict=True))
    assert value["feature", "0", "{name}", "5"] == pytest.approx(1.6)
    assert averaged.check().holds


def test_effects_are_sums_over_paths() -> None:
    """By hand: feature 1:2:3 has the activation 3.25 and contributes 3 to the first output."""
    graph = hand_graph().part(~hand_graph().of_kind(NodeKind.TARGET))
    effects = by_id(graph, answer_effects(graph))
    through = {"0:1:5": 2.0, "0:2:5": 1.5, "0:2:7": -1.0}
    direct = {"0:1:5": 0.5, "0:2:5": 0.5, "0:2:7": 0.0}
    assert effects["1:2:3"] == pytest.approx(-3)
    for node, weight in through.items():
        assert effects[node] == pytest.approx(-(direct[node] + weight * 3 / 3.25))
    assert effects["token:1:11"] == pytest.approx(
        effects["0:1:5"] / 1.5 * 1.0 + effects["0:2:5"] / 0.1 * 1.0 + effects["0:2:7"] / 2.5 * 0.8
    )


def test_a_saved_consensus_is_loaded_again(tmp_path: Path) -> None:
    averaged = consensus(several())
    loaded = AttributionGraph.load(averaged.save(tmp_path / "graph"))
    read = read_graphml(write_graphml(averaged, tmp_path / "graph.graphml"))
    for again in (loaded, read):
        assert_same(again, averaged)
        assert table_of(again).facts() == table_of(averaged).facts()
        for name, column in table_of(averaged).columns().items():
            assert torch.equal(table_of(again).columns()[name], column), name


def differing(graph: AttributionGraph, **facts: object) -> AttributionGraph:
    return replace(graph, info=replace(graph.info, **facts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("graphs", "words"),
    [
        ([hand_graph()], ("two", 1)),
        ([hand_graph(), differing(hand_graph(), model="large")], ("model", "'tiny'", "'large'")),
        ([hand_graph(), hand_graph(compatible=True)], ("compatible", "False", "True")),
        (
            [differing(hand_graph(), transcoder_hash="a"), differing(hand_graph(), transcoder_hash="b")],
            ("different transcoders", "with_matched_features"),
        ),
        ([consensus([hand_graph(), noisy(1)]), hand_graph()], ("itself",)),
    ],
)
def test_graphs_that_cannot_be_aligned_are_refused(
    graphs: Sequence[AttributionGraph], words: tuple[object, ...]
) -> None:
    with refuses(AttributionError, *words):
        consensus(graphs)


def test_a_token_and_another_target_are_refused() -> None:
    only_target, only_tokens = (hand_graph().part(~hand_graph().of_kind(k)) for k in (NodeKind.LOGIT, NodeKind.TARGET))
    with refuses(AttributionError, "tokens", "targets"):
        consensus([only_tokens, only_target])


def test_a_core_needs_a_consensus_and_a_share() -> None:
    with refuses(AttributionError, "not a consensus"):
        core(hand_graph())
    with refuses(AttributionError, "frequency", "1.5"):
        core(consensus([hand_graph(), noisy(1)]), 1.5)


def test_renamed_features_are_aligned_with_their_matches() -> None:
    """The other graph numbers the features of a layer in reverse; one of them has no match."""
    graph, other = differing(hand_graph(), transcoder_hash="a"), differing(hand_graph(), transcoder_hash="b")
    reversed_index = torch.where(other.of_kind(NodeKind.FEATURE), 9 - other.nodes.index, other.nodes.index)
    other = replace(other, nodes=replace(other.nodes, index=reversed_index), labels={Feature(0, 4): "five"})
    matches = {Feature(0, 4): Feature(0, 5), Feature(1, 6): Feature(1, 3)}
    renamed = with_matched_features(other, matches, graph)
    averaged = consensus([graph, renamed])
    frequency = by_id(averaged, table_of(averaged).frequency)
    features = {node: share for node, share in frequency.items() if node[0].isdigit()}
    assert features.pop("0:2:7") == 0.5
    unmatched = [node for node in features if node not in graph.ids()]
    assert len(unmatched) == 1
    assert features.pop(unmatched[0]) == 0.5
    assert set(features.values()) == {1.0}
    assert averaged.labels[Feature(0, 5)] == "five"
    assert renamed.check().holds
    with refuses(AttributionError, Feature(0, 4)):
        with_matched_features(other, {Feature(0, 4): Feature(1, 5)}, graph)


def test_damaged_columns_are_refused() -> None:
    averaged = consensus([hand_graph(), noisy(1)])
    table = table_of(averaged)
    for damaged in (
        replace(table, frequency=table.frequency * 2),
        table.part(torch.arange(averaged.n_nodes) > 0, torch.ones(averaged.n_edges, dtype=torch.bool)),
        table.part(torch.ones(averaged.n_nodes, dtype=torch.bool), torch.arange(averaged.n_edges) > 0),
        replace(table, edge_low=table.edge_low.double()),
        replace(table, high=table.high / 0),
    ):
        with refuses(AttributionError, "not valid"):
            replace(averaged, consensus=damaged)


def test_edges_are_those_of_all_graphs() -> None:
    first, second = hand_graph(), hand_graph()
    second = second.part(torch.ones(second.n_nodes, dtype=torch.bool), torch.arange(second.n_edges) > 3)
    assert isinstance(consensus([first, second]).edges, Edges)
    assert consensus([first, second]).n_edges == first.n_edges
