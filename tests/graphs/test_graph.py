"""Graphs: influence, pruning, scores and labels, and graphs that are saved and loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.errors import AttributionError, CheckpointError, ConfigError
from open_clt.graphs.edges import Edges
from open_clt.graphs.formats.circuit_tracer import write_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_schema import GraphCard
from open_clt.graphs.formats.networkx import write_graphml
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.influence import InfluenceGraph, path_steps, smallest_kept
from open_clt.graphs.info import GraphSettings, PruningSettings
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.targets import FeaturePreactivation, LogitDifference, SalientLogits
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.feature import Feature
from tests.attribution.cases import KINDS, PROMPT
from tests.graphs.hand_graph import NAMES, hand_graph
from tests.random_transcoders import random_architecture
from tests.refusals import refuses


@pytest.fixture(scope="module", params=[False, True], ids=["complete", "compatible"])
def graph(request: pytest.FixtureRequest, tiny_gpt2: LanguageModel) -> AttributionGraph:
    return attribute(tiny_gpt2, random_architecture(KINDS["clt"]), PROMPT, compatible=request.param, max_logits=4)


def test_a_row_that_a_graph_does_not_have_is_refused(graph: AttributionGraph) -> None:
    for number in (-1, len(graph.nodes.kind)):
        with refuses(AttributionError, number):
            graph.node(number)


def test_influence_is_the_sum_of_all_powers_of_the_shares(graph: AttributionGraph) -> None:
    shares = graph.adjacency().double().abs()
    shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-30)
    identity = torch.eye(graph.n_nodes, dtype=torch.double)
    expected = graph.nodes.weight.double() @ (torch.linalg.inv(identity - shares) - identity)
    torch.testing.assert_close(graph.influence().double(), expected, atol=1e-6, rtol=1e-4)


def test_influence_is_the_sum_over_path_lengths(graph: AttributionGraph) -> None:
    steps = torch.stack(list(path_steps(graph.influence_graph)))
    torch.testing.assert_close(graph.influence().double(), steps.sum(0), atol=1e-7, rtol=1e-5)


def test_all_influence_ends_in_nodes_without_inputs(graph: AttributionGraph) -> None:
    has_input = torch.zeros(graph.n_nodes, dtype=torch.bool).index_fill(0, graph.edges.target, True)
    torch.testing.assert_close(graph.influence()[~has_input].sum(), graph.nodes.weight.sum(), atol=1e-6, rtol=1e-5)


def test_path_lengths_are_shares_and_no_path_is_longer_than_the_number_of_layers_plus_one(
    graph: AttributionGraph,
) -> None:
    profile = graph.path_lengths()
    assert float(profile.sum()) == pytest.approx(1)
    assert profile.shape[0] <= graph.info.n_layers + 1


def test_path_lengths_equal_those_computed_by_hand() -> None:
    """Paths from the tokens to the logit lead over one feature (two edges) or over two features (three edges)."""
    assert NAMES[-3] == "logit:2:40"
    weight = torch.tensor([0.0] * (len(NAMES) - 3) + [1.0, 0.0, 0.0])
    graph = hand_graph()
    graph = replace(graph, nodes=replace(graph.nodes, weight=weight))
    logit, feature = 0.5 + 0.5 + 3.0 + 1.0 + 0.125, 2.0 + 1.5 + 1.0 + 0.5  # sums of absolute inputs
    two_edges = (0.5 / logit) * 1.0 + (0.5 / logit) * (1.5 / 1.75)
    three_edges = (3.0 / logit) * ((2.0 / feature) * 1.0 + (1.5 / feature) * (1.5 / 1.75) + (1.0 / feature) * 1.0)
    expected = torch.tensor([0.0, two_edges, three_edges]) / (two_edges + three_edges)
    torch.testing.assert_close(graph.path_lengths(), expected)


def test_a_cycle_is_an_error() -> None:
    edges = Edges(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.ones(2))
    cyclic = InfluenceGraph(edges, torch.tensor([1.0, 0.0]), torch.zeros(2), torch.tensor([0, 1]))
    with pytest.raises(AttributionError):
        list(path_steps(cyclic))


def test_the_smallest_kept_score_belongs_to_the_fewest_scores_that_hold_the_share() -> None:
    scores = torch.tensor([1.0, 5.0, 3.0, 1.0])
    assert smallest_kept(scores, 0.5) == 5.0
    assert smallest_kept(scores, 0.51) == 3.0
    assert smallest_kept(scores, 1.0) == 1.0


def test_pruning_keeps_tokens_and_targets_and_leaves_no_dead_ends(graph: AttributionGraph) -> None:
    pruned = graph.prune(0.6, 0.9)
    assert pruned.n_nodes < graph.n_nodes / 2
    for kind in (NodeKind.EMBEDDING, NodeKind.LOGIT):
        assert int(pruned.of_kind(kind).sum()) == int(graph.of_kind(kind).sum())
    has_output = torch.zeros(pruned.n_nodes, dtype=torch.bool).index_fill(0, pruned.edges.source, True)
    has_input = torch.zeros(pruned.n_nodes, dtype=torch.bool).index_fill(0, pruned.edges.target, True)
    features = pruned.of_kind(NodeKind.FEATURE)
    assert bool((has_output & has_input)[features].all())
    assert bool(has_output[pruned.of_kind(NodeKind.ERROR)].all())
    assert bool((pruned.nodes.cumulative[features] <= 1).all())


def test_pruning_does_not_change_the_weights_of_the_remaining_edges(graph: AttributionGraph) -> None:
    pruned = graph.prune(0.6, 0.9)
    row_of = {node_id: row for row, node_id in enumerate(graph.ids())}
    rows = torch.tensor([row_of[node_id] for node_id in pruned.ids()])
    before, after = graph.adjacency()[rows][:, rows], pruned.adjacency()
    torch.testing.assert_close(after[after != 0], before[after != 0])


def test_pruning_with_thresholds_of_1_does_not_change_the_scores(graph: AttributionGraph) -> None:
    pruned = graph.prune(1.0, 1.0)
    assert pruned.scores() == pytest.approx(graph.scores(), abs=1e-6)


def test_scores_fall_as_nodes_are_pruned(graph: AttributionGraph) -> None:
    """Inputs that pruning removes count as errors."""
    previous = graph.scores()
    for threshold in (0.9, 0.7, 0.5):
        scores = graph.prune(threshold).scores()
        assert 0 <= scores.completeness <= 1
        assert 0 <= scores.replacement <= previous.replacement + 1e-6
        previous = scores


def test_rows_of_a_pruned_graph_add_up_with_their_removed_inputs(tiny_gpt2: LanguageModel) -> None:
    graph = attribute(tiny_gpt2, random_architecture(KINDS["clt"]), PROMPT)
    assert graph.prune(0.6).check().relative_to_row < 1e-5


def test_rows_add_up_after_pruning_twice(tiny_gpt2: LanguageModel) -> None:
    graph = attribute(tiny_gpt2, random_architecture(KINDS["clt"]), PROMPT)
    assert graph.prune(0.9).prune(0.5).check().relative_to_row < 1e-5


def test_keep_errors_keeps_more_error_nodes(tiny_gpt2: LanguageModel) -> None:
    graph = attribute(tiny_gpt2, random_architecture(KINDS["clt"]), PROMPT)
    with_errors, without_errors = (graph.prune(0.5, 1.0, keep_errors=keep_errors) for keep_errors in (True, False))
    assert int(with_errors.of_kind(NodeKind.ERROR).sum()) > int(without_errors.of_kind(NodeKind.ERROR).sum())


def test_thresholds_that_are_not_shares_are_refused(graph: AttributionGraph) -> None:
    with refuses(AttributionError, "node_threshold", 0.0):
        graph.prune(node_threshold=0.0)
    with refuses(AttributionError, "edge_threshold", 1.5):
        graph.prune(edge_threshold=1.5)


def test_save_and_load_give_the_same_graph(graph: AttributionGraph, tmp_path: Path) -> None:
    feature = graph.node(0)
    labelled = graph.prune().with_labels({Feature(feature.layer, feature.index): "a name"})
    loaded = AttributionGraph.load(labelled.save(tmp_path / "graph"))
    assert loaded.info == labelled.info
    assert loaded.labels == labelled.labels
    assert loaded.ids() == labelled.ids()
    for column, expected in zip(loaded.edges, labelled.edges, strict=True):
        assert torch.equal(column, expected)
    for name in ("kind", "layer", "position", "index", "value", "weight", "omitted"):
        assert torch.equal(getattr(loaded.nodes, name), getattr(labelled.nodes, name))
    assert sorted(path.suffix for path in (tmp_path / "graph").iterdir()) == [".json", ".safetensors"]


def test_files_of_version_1_are_read(graph: AttributionGraph, tmp_path: Path) -> None:
    """Files of version 1 have their settings in one flat object, no vectors, and labels by ``layer_feature``."""
    feature = Feature(graph.node(0).layer, graph.node(0).index)
    last = len(graph.info.tokens) - 1
    folder = graph.prune(0.7, 0.9).with_labels({feature: "a name"}).save(tmp_path / "graph")
    content = json.loads((folder / "graph.json").read_text())
    settings = {
        "targets": [
            {"max_count": 4, "probability": 0.95, "position": last, "kind": "salient_logits"},
            {"positive": 5, "negative": 9, "position": 3, "kind": "logit_difference"},
            {"name": "probe", "position": last, "kind": "direction"},
            {"layer": 1, "feature": 4, "position": 3, "kind": "feature"},
        ],
        "max_logits": 4,
        "logit_probability": 0.95,
        "max_feature_nodes": 7,
        "skip_first_position": False,
        "batch_size": 256,
        "node_threshold": 0.7,
        "edge_threshold": 0.9,
        "keep_errors": True,
    }
    del content["info"]["faithfulness"]  # the oldest files lack it
    content |= {"format_version": 1, "labels": {f"{feature.layer}_{feature.index}": "a name"}}
    content["info"]["settings"] = settings
    (folder / "graph.json").write_text(json.dumps(content))
    loaded = AttributionGraph.load(folder)
    assert loaded.labels == {feature: "a name"}
    assert loaded.info.faithfulness is None
    assert loaded.info.settings == GraphSettings(
        targets=(
            SalientLogits(max_count=4, position=last),
            LogitDifference(positive=5, negative=9, position=3),
            None,
            FeaturePreactivation(layer=1, feature=4, position=3),
        ),
        max_feature_nodes=7,
        use_first_position=True,
        batch_size=256,
        pruning=PruningSettings(node_threshold=0.7, edge_threshold=0.9, keep_errors=True),
    )


def test_a_saved_edge_takes_eight_bytes(graph: AttributionGraph, tmp_path: Path) -> None:
    size = (graph.save(tmp_path) / "graph.safetensors").stat().st_size
    assert size < 8 * graph.n_edges + 40 * graph.n_nodes + 2000


def test_indices_too_large_for_two_bytes_are_saved_and_loaded(graph: AttributionGraph, tmp_path: Path) -> None:
    index = graph.nodes.index.clone()
    index[:3] = torch.tensor([32767, 32768, 2**40])
    large = replace(graph, nodes=replace(graph.nodes, index=index))
    assert torch.equal(AttributionGraph.load(large.save(tmp_path)).nodes.index, index)


def test_a_pruned_graph_is_a_part_of_the_graph_with_pruning_settings(graph: AttributionGraph) -> None:
    pruned = graph.prune(0.7, 0.9)
    pruning = PruningSettings(node_threshold=0.7, edge_threshold=0.9, keep_errors=not graph.info.compatible)
    assert pruned.info.settings == replace(graph.info.settings, pruning=pruning)
    row_of = {node_id: row for row, node_id in enumerate(graph.ids())}
    rows = torch.tensor([row_of[node_id] for node_id in pruned.ids()])
    nodes = torch.zeros(graph.n_nodes, dtype=torch.bool).index_fill(0, rows, True)
    pruned_edges = set(zip(rows[pruned.edges.target].tolist(), rows[pruned.edges.source].tolist(), strict=True))
    edges = zip(graph.edges.target.tolist(), graph.edges.source.tolist(), strict=True)
    part = graph.part(nodes, torch.tensor([edge in pruned_edges for edge in edges]))
    assert part.ids() == pruned.ids()
    torch.testing.assert_close(part.adjacency(), pruned.adjacency(), atol=0, rtol=0)
    for name in ("omitted", "omitted_sum"):
        assert torch.equal(getattr(part.nodes, name), getattr(pruned.nodes, name))
    assert part.info == graph.info
    assert graph.part(nodes).n_edges > part.n_edges


def test_a_part_has_the_names_of_its_targets(graph: AttributionGraph) -> None:
    outputs = graph.of_kind(NodeKind.LOGIT).nonzero().flatten()
    nodes = torch.ones(graph.n_nodes, dtype=torch.bool).index_fill(0, outputs[1], False)
    part = graph.part(nodes)
    assert part.info.target_names == (graph.info.target_names[0], *graph.info.target_names[2:])
    assert part.node(part.n_nodes - 1).label == graph.node(graph.n_nodes - 1).label


def test_saving_a_graph_whose_rows_do_not_add_up_logs_it_and_writes_it_to_the_file(
    graph: AttributionGraph, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A complete graph logs nothing; a wrong one logs a warning; a compatible one logs information only."""
    assert graph.check().holds is not graph.info.compatible
    weight = graph.edges.weight.clone()
    weight[int(weight.abs().argmax())] *= 1.5
    wrong = replace(graph, edges=graph.edges._replace(weight=weight))
    assert not wrong.check().holds
    for saved, level in ((graph, logging.INFO if graph.info.compatible else None), (wrong, logging.WARNING)):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="open_clt"):
            content = json.loads((saved.save(tmp_path / "graph") / "graph.json").read_text())
        expected = logging.INFO if saved.info.compatible else level
        assert [record.levelno for record in caplog.records] == ([] if expected is None else [expected])
        assert [record.getMessage() for record in caplog.records] == [text for text in [content["missing"]] if text]
    assert f"{wrong.check().relative_to_row:.2g}" in wrong.missing()
    if not graph.info.compatible:
        assert wrong.node(wrong.check().node).id in wrong.missing()


def test_rounding_in_a_tiny_row_is_measured_by_the_largest_row(tiny_gpt2: LanguageModel) -> None:
    """A row whose products nearly cancel rounds as its vectors do; a tiny row that is really wrong is still found."""
    graph = attribute(tiny_gpt2, random_architecture(KINDS["clt"]), PROMPT)
    rows = (~graph.nodes.total.isnan()).nonzero().flatten()
    sums = graph.adjacency().abs().sum(1)
    smallest, largest = rows[sums[rows].argmin()], float(sums[rows].max())
    factor = torch.where(graph.edges.target == smallest, 1e-6 * largest / float(sums[smallest]), 1.0)
    total = graph.nodes.total.clone()
    total[smallest] *= 1e-6 * largest / float(sums[smallest])
    edges = graph.edges._replace(weight=graph.edges.weight * factor)
    former = graph.check().relative_to_row
    for wrong_by, expected in ((1e-9, max(former, 1e-6)), (1e-4, 0.1)):
        changed = total.clone()
        changed[smallest] += wrong_by * largest
        tiny = replace(graph, edges=edges, nodes=replace(graph.nodes, total=changed))
        assert tiny.check().relative_to_row == pytest.approx(expected, rel=0.05)


def test_a_graph_without_known_totals_does_not_claim_that_rows_are_incomplete(graph: AttributionGraph) -> None:
    unknown = torch.full_like(graph.nodes.total, torch.nan)
    assert replace(graph, nodes=replace(graph.nodes, total=unknown)).missing() == ""


def test_a_label_replaces_the_features_number(graph: AttributionGraph) -> None:
    feature = graph.node(0)
    assert feature.label == f"feature {feature.index}"
    labelled = graph.with_labels({Feature(feature.layer, feature.index): "plural nouns"})
    assert labelled.node(0).label == "plural nouns"
    assert graph.node(0).label == feature.label


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param({Feature(0, 5): 3}, marks=pytest.mark.wrong_types),
        pytest.param({(0, 5): "cat"}, marks=pytest.mark.wrong_types),
        {Feature(-1, 5): "cat"},
    ],
    ids=str,
)
def test_labels_that_could_not_be_read_are_refused(labels: Any) -> None:
    with refuses(ConfigError, -1 if Feature(-1, 5) in labels else 5):
        replace(hand_graph(), labels=labels)


@pytest.mark.parametrize("value", [10**30, object(), torch.tensor(1.0)], ids=lambda value: type(value).__name__)
def test_values_that_no_file_holds_are_one_error_of_every_writer(value: object, tmp_path: Path) -> None:
    graph = hand_graph()
    graph = replace(graph, info=replace(graph.info, faithfulness={"slope": value}))
    writers: list[Callable[[], object]] = [
        lambda: graph.save(tmp_path / "graph"),
        lambda: write_graphml(graph, tmp_path / "graph.graphml"),
        lambda: write_circuit_tracer(graph, tmp_path / "viewer", GraphCard(slug="cat")),
    ]
    for write in writers:
        with refuses(CheckpointError):
            write()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_ids_of_nodes_are_unique(graph: AttributionGraph) -> None:
    assert len(set(graph.ids())) == graph.n_nodes


def test_foreign_and_damaged_files_are_refused(graph: AttributionGraph, tmp_path: Path) -> None:
    with refuses(CheckpointError, "graph.json"):
        AttributionGraph.load(tmp_path)
    folder = graph.save(tmp_path / "graph")
    content = json.loads((folder / "graph.json").read_text())
    for change, named in (
        ({"format": "other"}, "open-clt-attribution-graph"),
        ({"format_version": 99}, 99),
    ):
        (folder / "graph.json").write_text(json.dumps({**content, **change}))
        with refuses(CheckpointError, named):
            AttributionGraph.load(folder)
    (folder / "graph.json").write_text(json.dumps(content))
    tensors = (folder / "graph.safetensors").read_bytes()
    (folder / "graph.safetensors").write_bytes(tensors[: len(tensors) // 2])
    with refuses(CheckpointError, "graph.safetensors"):
        AttributionGraph.load(folder)
    (folder / "graph.json").write_text("{")
    with refuses(CheckpointError, "graph.json"):
        AttributionGraph.load(folder)
