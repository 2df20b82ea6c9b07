"""Graphs as the viewers' JSON follow the schema, hold what the graph holds, and can be read again."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from open_clt.errors import AttributionError, CheckpointError, ConfigError
from open_clt.graphs.edges import Edges
from open_clt.graphs.formats.circuit_tracer import circuit_tracer_json, write_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_reader import read_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_schema import GraphCard, GraphView, cantor_pair
from open_clt.graphs.formats.networkx import write_graphml
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import subgraph
from open_clt.graphs.supernodes import Supernode, group
from open_clt.transcoders.feature import Feature
from tests.graphs.formats.viewer_schema import broken_rules
from tests.graphs.hand_graph import hand_attention, hand_graph, weights
from tests.refusals import refuses

CARD = GraphCard(slug="hand-made")
VIEW = GraphView(
    pinned=("0:2:7", "logit:2:40"),
    supernodes=(Supernode("articles", ("0:1:5", "0:2:5")),),
    clicked="1:2:3",
    link_type="either",
    positions="10 20",
    pruning_threshold=0.6,
)


@pytest.fixture(params=[False, True], ids=["complete", "compatible"])
def graph(request: pytest.FixtureRequest) -> AttributionGraph:
    return hand_graph(compatible=request.param)


@pytest.mark.parametrize("pruned", [False, True])
def test_a_file_follows_the_schema(graph: AttributionGraph, pruned: bool, tmp_path: Path) -> None:
    card = GraphCard(
        slug="all-of-it",
        scan="gpt2-small",
        description="a test",
        creator="someone",
        created=datetime(2026, 1, 2, tzinfo=UTC),
        source_set="clt-tiny",
    )
    path = write_circuit_tracer(graph.prune() if pruned else graph, tmp_path, card, GraphView(pinned=("logit:2:40",)))
    content = json.loads(path.read_text(encoding="utf-8"))
    assert broken_rules(content) == []
    assert content["metadata"]["info"]["create_time_ms"] == 1767312000000
    assert content["metadata"]["generation_settings"] == {
        "max_n_logits": 2,
        "desired_logit_prob": 0.95,
        "batch_size": 8,
    }


def test_explained_attention_is_in_the_nodes_that_edges_lead_to(tmp_path: Path) -> None:
    graph = replace(hand_graph(), attention=hand_attention())
    content = circuit_tracer_json(graph, CARD)
    assert broken_rules(content) == []
    results = {node["node_id"]: node["qk_tracing_results"] for node in content["nodes"] if "qk_tracing_results" in node}
    assert results == {
        "0_5_2": {
            "pair_wise_contributors": [["E_12_2", "E_11_1", 0.75]],
            "top_q_marginal_contributors": [],
            "top_k_marginal_contributors": [["E_11_1", 0.5]],
        },
        "1_3_2": {
            "pair_wise_contributors": [
                ["0_7_2", "0_8_1", 1.5],
                ["0_7_2", "0_5_1", -0.5],
                ["0_-1_2", "0_unknown_mlp_output_0", 0.25],
            ],
            "top_q_marginal_contributors": [["0_7_2", 1.0]],
            "top_k_marginal_contributors": [["0_8_1", 1.5], ["0_unknown_mlp_output_0", 0.25]],
        },
    }
    others = content["qk_only_nodes"]
    assert set(others) == {"0_8_1", "0_-1_2", "0_unknown_mlp_output_0"}
    assert others["0_8_1"]["feature"] == cantor_pair(Feature(0, 8))
    assert (others["0_8_1"]["activation"], others["0_8_1"]["feature_type"]) == (0.5, "cross layer transcoder")
    assert "qk_only_nodes" not in circuit_tracer_json(hand_graph(), CARD)
    path = write_circuit_tracer(graph, tmp_path, CARD)
    read = read_circuit_tracer(path).graph
    assert read.ids() == read_circuit_tracer(write_circuit_tracer(hand_graph(), tmp_path, CARD)).graph.ids()
    part = graph.part(torch.tensor([name != "0:1:5" for name in graph.ids()]))
    nodes = {node["node_id"]: node for node in circuit_tracer_json(part, CARD)["nodes"]}
    assert "qk_tracing_results" not in nodes["1_3_2"]  # the only edge that is explained is not shown


def test_the_validator_finds_mistakes(graph: AttributionGraph) -> None:
    """This shows that the validator does not accept everything."""
    for change in (
        lambda c: c["metadata"].pop("prompt"),
        lambda c: c["metadata"].update(slug="a b"),
        lambda c: c["qParams"].update(linkType="some"),
        lambda c: c["qParams"]["pinnedIds"].append("9_9_9"),
        lambda c: c["nodes"][0].update(feature=1),
        lambda c: c["nodes"][0].update(layer=0),
        lambda c: c["nodes"][-1].update(is_target_logit=True),
        lambda c: c["nodes"].append(dict(c["nodes"][0])),
        lambda c: c["links"][0].update(source="P_2"),
    ):
        content = circuit_tracer_json(graph, CARD, VIEW)
        assert broken_rules(content) == []
        change(content)
        assert broken_rules(content)


def test_settings_and_pruning_are_written_to_the_file_and_read_again(graph: AttributionGraph, tmp_path: Path) -> None:
    assert "pruning_settings" not in circuit_tracer_json(graph, CARD)["metadata"]
    pruned = graph.prune(0.7, 0.95)
    path = write_circuit_tracer(pruned, tmp_path, CARD)
    metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    assert metadata["pruning_settings"] == {"node_threshold": 0.7, "edge_threshold": 0.95}
    assert metadata["node_threshold"] == 0.7
    read = read_circuit_tracer(path).graph
    assert pruned.info.settings.pruning is not None
    assert read.info.settings == replace(
        pruned.info.settings, pruning=replace(pruned.info.settings.pruning, keep_errors=None)
    )
    rewritten = circuit_tracer_json(read, CARD)["metadata"]
    assert all(rewritten[key] == metadata[key] for key in ("pruning_settings", "generation_settings"))


def test_files_and_logs_say_that_rows_do_not_add_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    complete = hand_graph()
    wrong = replace(complete, edges=Edges(complete.edges.target, complete.edges.source, 2 * complete.edges.weight))
    for graph in (complete, wrong):
        caplog.clear()
        path = write_circuit_tracer(graph, tmp_path, GraphCard(slug="a", description="By hand."))
        description = json.loads(path.read_text(encoding="utf-8"))["metadata"]["info"]["description"]
        assert description == " ".join(filter(None, ("By hand.", graph.missing())))
        write_graphml(graph, tmp_path / "graph.graphml")
        assert [record.getMessage() for record in caplog.records] == ([graph.missing()] * 2 if graph is wrong else [])


def test_kinds_that_viewers_do_not_show_are_left_out() -> None:
    content = circuit_tracer_json(hand_graph(), CARD)
    ids = [node["node_id"] for node in content["nodes"]]
    shown = {"0_5_1", "0_5_2", "0_7_2", "1_3_2", "0_-1_1", "1_-1_2", "E_10_0", "E_11_1", "E_12_2", "3_40_2", "3_41_2"}
    assert set(ids) == shown | {"3_-2_2"}
    assert {end for link in content["links"] for end in (link["source"], link["target"])} <= set(ids)
    assert content["metadata"]["replacement_score"] == hand_graph().scores().replacement


def test_features_and_errors_without_edges_are_left_out() -> None:
    content = circuit_tracer_json(subgraph(hand_graph(), ["0:2:7", "error:1:2", "token:0:10", "logit:2:40"]), CARD)
    assert [node["node_id"] for node in content["nodes"]] == ["1_-1_2", "E_10_0", "3_40_2"]


def test_graph_metadata_lists_each_graph_of_the_folder_once(graph: AttributionGraph, tmp_path: Path) -> None:
    for slug in ("one", "two", "one"):
        write_circuit_tracer(graph, tmp_path, GraphCard(slug=slug, scan="gpt2-small"))
    listed = json.loads((tmp_path / "graph-metadata.json").read_text())
    assert set(listed) == {"graphs"}
    assert [entry["slug"] for entry in listed["graphs"]] == ["two", "one"]
    assert listed["graphs"][1] == json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))["metadata"]


@pytest.mark.parametrize("pruned", [False, True])
def test_a_compatible_graph_is_written_and_read(pruned: bool, tmp_path: Path) -> None:
    graph = hand_graph(compatible=True)
    graph = graph.prune() if pruned else graph
    read, _ = read_circuit_tracer(write_circuit_tracer(graph, tmp_path, CARD))
    assert read.ids() == graph.ids()
    assert weights(read) == weights(graph)
    for name in ("kind", "layer", "position", "index", "value", "weight"):
        assert torch.equal(getattr(read.nodes, name), getattr(graph.nodes, name)), name
    assert read.labels == graph.labels
    for name in ("prompt", "tokens", "token_strings", "target_names", "n_layers", "compatible"):
        assert getattr(read.info, name) == getattr(graph.info, name), name
    if pruned:
        inner = ~read.of_kind(NodeKind.LOGIT)
        assert torch.equal(read.nodes.cumulative[inner], graph.nodes.cumulative[inner])


def test_a_target_that_is_not_a_token_is_written_and_read(tmp_path: Path) -> None:
    read, _ = read_circuit_tracer(write_circuit_tracer(hand_graph(), tmp_path, CARD))
    assert read.ids()[-3:] == ["logit:2:40", "logit:2:41", "target:2:1"]
    assert read.info.target_names == hand_graph().info.target_names
    assert torch.equal(read.nodes.weight[-3:], hand_graph().nodes.weight[-3:])


def test_a_view_is_written_and_read(graph: AttributionGraph, tmp_path: Path) -> None:
    _, view = read_circuit_tracer(write_circuit_tracer(graph, tmp_path, CARD, VIEW))
    assert view == VIEW


def test_a_view_may_have_the_viewers_ids(graph: AttributionGraph) -> None:
    with_viewer_ids = replace(
        VIEW, pinned=("0_7_2", "3_40_2"), supernodes=(Supernode("articles", ("0_5_1", "0_5_2")),), clicked="1_3_2"
    )
    params = circuit_tracer_json(graph, CARD, with_viewer_ids)["qParams"]
    assert params == circuit_tracer_json(graph, CARD, VIEW)["qParams"]
    assert (params["pinnedIds"], params["clickedId"]) == (["0_7_2", "3_40_2"], "1_3_2")


def test_supernodes_read_from_a_file_group_the_graph_as_before(tmp_path: Path) -> None:
    graph = hand_graph(compatible=True)
    read, view = read_circuit_tracer(write_circuit_tracer(graph, tmp_path, CARD, VIEW))
    before, after = group(graph, VIEW.supernodes), group(read, view.supernodes)
    assert after.groups == before.groups
    assert after.scores() == pytest.approx(before.scores())
    torch.testing.assert_close(after.influence(), before.influence())


def test_neuronpedias_lists_in_the_form_of_text_are_read(graph: AttributionGraph, tmp_path: Path) -> None:
    path = write_circuit_tracer(graph, tmp_path, CARD, VIEW)
    content = json.loads(path.read_text(encoding="utf-8"))
    params = content["qParams"]
    params["pinnedIds"], params["supernodes"] = (
        ",".join(params["pinnedIds"]),
        json.dumps(params["supernodes"]),
    )
    path.write_text(json.dumps(content))
    assert read_circuit_tracer(path).view == VIEW


@pytest.mark.parametrize("neuronpedia", [False, True])
def test_labels_are_written_for_both_viewers_and_labels_given_in_a_viewer_are_read(
    neuronpedia: bool, tmp_path: Path
) -> None:
    graph = hand_graph().with_labels({Feature(0, 5): "articles"})
    path = write_circuit_tracer(graph, tmp_path, CARD)
    content = json.loads(path.read_text(encoding="utf-8"))
    clerps = dict(json.loads(content["qParams"]["clerps"]))
    number = cantor_pair(Feature(0, 5))
    # Circuit-tracer's viewer looks up the feature's number; Neuronpedia looks up its layer, number and position.
    assert clerps[str(number)] == clerps[f"0_{number}_1"] == clerps[f"0_{number}_2"] == "articles"
    assert [node["clerp"] for node in content["nodes"][:3]] == ["articles", "articles", "animals"]
    key = f"0_{number}_1" if neuronpedia else str(number)
    content["qParams"]["clerps"] = json.dumps([[key, "the, a"], ["E_0_0", "a token"], ["0_-1_1", "an error"]])
    path.write_text(json.dumps(content))
    assert read_circuit_tracer(path).graph.labels == {Feature(0, 5): "the, a", Feature(0, 7): "animals"}


def test_older_ids_of_errors_are_read(tmp_path: Path) -> None:
    path = write_circuit_tracer(hand_graph(compatible=True), tmp_path, CARD)
    text = path.read_text(encoding="utf-8").replace('"0_-1_1"', '"0_0_1"').replace('"1_-1_2"', '"0_1_2"')
    path.write_text(text, encoding="utf-8")
    read = read_circuit_tracer(path).graph
    assert read.ids() == hand_graph(compatible=True).ids()
    assert weights(read) == weights(hand_graph(compatible=True))


def test_errors_name_wrong_settings_nodes_and_files(tmp_path: Path) -> None:
    with refuses(ConfigError, "slug", "a b"):
        GraphCard(slug="a b")
    with refuses(ConfigError, "slug", "'..'"):
        GraphCard(slug="..")
    with refuses(ConfigError, "scan", "a model"):
        GraphCard(slug="a", scan="a model")
    with refuses(AttributionError, "9_9_9"):
        circuit_tracer_json(hand_graph(), CARD, GraphView(pinned=("9_9_9",)))
    with refuses(CheckpointError, "none.json"):
        read_circuit_tracer(tmp_path / "none.json")
    for text in ("{", "[]", '{"nodes": []}', '{"metadata": {}, "nodes": [{}], "links": []}'):
        (tmp_path / "bad.json").write_text(text)
        with refuses(CheckpointError, "bad.json"):
            read_circuit_tracer(tmp_path / "bad.json")


def test_numbers_that_are_too_large_are_one_sentence(tmp_path: Path) -> None:
    path = write_circuit_tracer(hand_graph(), tmp_path, GraphCard(slug="cat"))
    path.write_text(re.sub(r'"ctx_idx": ?1\b', '"ctx_idx": 1e999', path.read_text()))
    assert "1e999" in path.read_text()
    with refuses(CheckpointError, "cat.json"):
        read_circuit_tracer(path)
