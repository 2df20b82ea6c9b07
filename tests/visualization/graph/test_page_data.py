"""The data of the interactive graph: the nodes and edges of the picture, and layouts without overlaps."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.features.labelling.automatic import in_brief
from open_clt.graphs.consensus import consensus
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.supernodes import Supernode, group
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.feature import Feature
from open_clt.visualization.graph.page_data import graph_data
from open_clt.visualization.graph.picture import picture_of
from open_clt.visualization.labels import wrapped
from tests.graphs.hand_graph import NAMES, hand_graph, weights
from tests.random_transcoders import random_transcoder
from tests.tiny_models import TEXTS


@pytest.fixture(scope="module")
def crowded(tiny_gpt2: LanguageModel) -> AttributionGraph:
    """A graph with many active features."""
    graph = attribute(tiny_gpt2, random_transcoder(tiny_gpt2), TEXTS[1])
    assert graph.n_nodes > 300
    return graph


def overlaps(layout: dict[str, Any]) -> list[tuple[int, int]]:
    """Pairs of boxes of nodes that overlap."""
    boxes = enumerate(layout["boxes"])
    return [
        (one, other)
        for (one, (x, y, width, height)), (other, (x2, y2, width2, height2)) in combinations(boxes, 2)
        if abs(x - x2) < (width + width2) / 2 - 0.2 and abs(y - y2) < (height + height2) / 2 - 0.2
    ]


def test_the_data_hold_the_nodes_and_edges_of_a_graph() -> None:
    graph = hand_graph()
    data = graph_data(graph, automatic=[Feature(0, 7)])
    nodes = data["nodes"]
    drawn = {(nodes[source]["id"], nodes[target]["id"]): weight for source, target, weight in data["edges"]}
    assert {node["id"] for node in nodes} <= set(NAMES)
    expected = weights(graph)
    assert drawn
    assert drawn == pytest.approx({ends: expected[ends] for ends in drawn}, rel=1e-5)
    labelled = {node["id"]: node for node in nodes}["0:2:7"]
    assert labelled["label"] == "animals"
    assert labelled["automatic"]
    assert (labelled["layer"], labelled["position"], labelled["activation"]) == (0, 2, 2.5)
    assert [node["automatic"] for node in nodes].count(True) == 1
    assert {node["id"]: node["note"] for node in nodes if node["note"]} == {"logit:2:40": "60%", "logit:2:41": "20%"}


def test_a_consensus_shows_frequencies_as_opacity_and_as_numbers() -> None:
    whole = hand_graph()
    part = whole.part(torch.tensor([node != "0:2:7" for node in whole.ids()]))
    graph = consensus([whole, part, part, part])
    data = graph_data(graph)
    nodes = {node["id"]: node for node in data["nodes"]}
    assert "Consensus of 4 graphs" in data["caption"]
    assert nodes["0:2:7"]["opacity"] < nodes["0:2:5"]["opacity"] == 1
    assert "in 1 of 4 graphs" in nodes["0:2:7"]["numbers"]
    assert "in 4 of 4 graphs" in nodes["0:2:5"]["numbers"]
    seen = {(data["nodes"][s]["id"], data["nodes"][t]["id"]): share for s, t, _, share in data["edges"]}
    assert {share for (source, _), share in seen.items() if source == "0:2:7"} == {0.25}
    assert {share for ends, share in seen.items() if "0:2:7" not in ends} == {1.0}
    grouped = group(graph, [Supernode("both", ("0:2:5", "0:2:7"))])
    assert next(node for node in graph_data(grouped)["nodes"] if node["id"] == "both")["opacity"] == 1


def test_the_graph_of_one_prompt_is_opaque() -> None:
    data = graph_data(hand_graph())
    assert {node["opacity"] for node in data["nodes"]} == {1}
    assert {len(edge) for edge in data["edges"]} == {3}


def test_limits_are_those_of_the_figure(crowded: AttributionGraph) -> None:
    data = graph_data(crowded, max_nodes=40, max_edges=100)
    picture = picture_of(crowded, 40, 100, ("feature", "error", "other"))
    ids = crowded.ids()
    assert [node["id"] for node in data["nodes"]] == [ids[row] for (row,) in picture.members]
    assert len(data["edges"]) == len(picture.weights)
    assert data["caption"] == picture.caption


@pytest.mark.parametrize("max_nodes", [10, 60, 300])
def test_boxes_do_not_overlap_and_lie_in_the_layout(crowded: AttributionGraph, max_nodes: int) -> None:
    data = graph_data(crowded, max_nodes=max_nodes)
    layouts = data["layouts"]
    assert not layouts[-1]["labelled"]
    for layout in layouts:
        assert overlaps(layout) == []
        assert len(layout["boxes"]) == len(layout["texts"]) == len(layout["diameters"]) == len(data["nodes"])
        for x, y, width, height in layout["boxes"]:
            assert -0.2 <= x - width / 2 <= x + width / 2 <= layout["width"] + 0.2
            assert -0.2 <= y - height / 2 <= y + height / 2 <= layout["height"] + 0.2


def test_labels_are_laid_out_where_they_are_legible(crowded: AttributionGraph) -> None:
    features = {Feature(int(x), int(y)) for x, y in zip(crowded.nodes.layer, crowded.nodes.index, strict=True)}
    long = crowded.with_labels({f: "names of all the capitals" for f in features if min(f) >= 0})
    few, many = graph_data(crowded, max_nodes=10), graph_data(long, max_nodes=300)
    assert [layout["labelled"] for layout in few["layouts"]] == [True, False]
    assert [layout["labelled"] for layout in many["layouts"]] == [False]
    shown = set(few["layouts"][0]["texts"])
    assert {node["feature"].split("/")[1] for node in few["nodes"] if node["feature"]} <= shown


def test_automatic_labels_are_drawn_in_brief_and_listed_in_full() -> None:
    label = "fires on “ is” within 16 tokens after “ capital”; promotes “ Boise”"
    data = graph_data(hand_graph().with_labels({Feature(0, 7): label}))
    node = next(node for node in data["nodes"] if node["feature"] == "L0/7")
    assert node["label"] == label
    text = data["layouts"][0]["texts"][data["nodes"].index(node)]
    assert node["brief"] == in_brief(label) == "“is” after “capital” → “Boise”"
    assert text.endswith("→ “Boise”")
    assert in_brief("fires at dawn") == "at dawn"
    assert in_brief("fires on “The”, “ The” or “ a”; promotes “ a” or “ an”") == "“The” or “a” → “a” or “an”"
    assert in_brief("fires on “The”, “ The” or “,”") == "“The” or “,”"
    assert in_brief("fires on “, ”, “ or ” or “ a”") == "“, ”, “or ” or “a”"
    assert in_brief("fires on “ The”, “ the”, “The” or 11 more") == "“The”, “the” or 11 more"
    assert in_brief("about fires on ships") == "about fires on ships"


def test_a_supernode_is_one_node_that_lists_its_members() -> None:
    graph = hand_graph()
    two = Supernode("<b>two</b> features", ("0:2:5", "0:1:5"))
    grouped = group(graph, [two, Supernode("words", ("token:0:10", "token:1:11")), Supernode("one", ("0:2:7",))])
    data = graph_data(grouped, automatic=[Feature(0, 5)])
    nodes = {node["id"]: node for node in data["nodes"]}
    assert {name: node["shape"] for name, node in nodes.items() if node["members"]} == {
        two.label: "group",
        "words": "group",
        "one": "group",
    }
    box = nodes[two.label]
    assert (box["label"], box["kind"], box["layer"], box["feature"]) == (two.label, "supernode", 0, None)
    assert box["note"] == "2 features, L0"
    influence = dict(zip(graph.ids(), graph.influence().tolist(), strict=True))
    assert [member["id"] for member in box["members"]] == sorted(two.members, key=lambda name: -influence[name])
    assert [member["influence"] for member in box["members"]] == pytest.approx(
        sorted((influence[name] for name in two.members), reverse=True), rel=1e-5
    )
    assert {(member["feature"], member["activation"]) for member in box["members"]} == {("L0/5", 1.5), ("L0/5", 0.1)}
    assert all(member["automatic"] for member in box["members"])
    assert [member["label"] for member in nodes["one"]["members"]] == ["animals"]
    assert {member["label"] for member in nodes["words"]["members"]} == {"<bos>", "·the"}
    ends = [(data["nodes"][source]["id"], data["nodes"][target]["id"]) for source, target, _ in data["edges"]]
    weight = dict(zip(ends, (weight for *_, weight in data["edges"]), strict=True))
    assert weight[two.label, "1:2:3"] == pytest.approx(2.0 + 1.5)  # the edges of the members are added up


def test_boxes_of_supernodes_keep_their_labels_where_nodes_are_dots(crowded: AttributionGraph) -> None:
    features = [name for name in crowded.ids() if name.startswith("0:")][:40]
    pairs = [Supernode(f"group {number}", (features[number], features[-number - 1])) for number in range(20)]
    data = graph_data(group(crowded, pairs), max_nodes=300)
    boxes = [row for row, node in enumerate(data["nodes"]) if node["shape"] == "group"]
    assert len(boxes) > 10
    dots = data["layouts"][-1]
    assert not dots["labelled"]
    assert overlaps(dots) == []
    for row in boxes:
        assert dots["texts"][row].split("\n") == wrapped(data["nodes"][row]["label"]).split("\n")
        assert dots["diameters"][row] == 0


def test_what_is_missing_is_said(crowded: AttributionGraph) -> None:
    assert not graph_data(crowded)["missing"]
    wrong = replace(crowded, nodes=replace(crowded.nodes, total=crowded.nodes.total + 1))
    data = graph_data(wrong)
    assert data["missing"] == wrong.missing()
    assert data["alarming"]
