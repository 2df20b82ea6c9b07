"""Our file has the same content as circuit-tracer's file of the same model, transcoder and prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from open_clt.attribution.attribute import attribute
from open_clt.graphs.formats.circuit_tracer import write_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_reader import read_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_schema import GraphCard, GraphView
from open_clt.language.language_model import load_language_model
from open_clt.transcoders.formats.circuit_tracer import load_circuit_tracer
from open_clt.transcoders.nonlinearities import JumpReLU
from tests.graphs.formats.viewer_schema import broken_rules

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def theirs(reference_folder: Path) -> dict[str, Any]:
    path = reference_folder / "circuit_tracer_tiny" / "graph.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def ours(reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = reference_folder / "circuit_tracer_tiny"
    transcoder = load_circuit_tracer(folder / "clt")
    assert isinstance(transcoder.nonlinearity, JumpReLU)
    with torch.no_grad():
        # One pre-activation equals its threshold exactly, so rounding would decide whether its feature is active.
        transcoder.nonlinearity.log_threshold += 1e-6
    tokens = load_file(folder / "adjacency.safetensors")["input_tokens"]
    graph = attribute(load_language_model(str(folder / "model")), transcoder, tokens, compatible=True)
    card = GraphCard(slug="tiny-random", scan="./features")
    path = write_circuit_tracer(graph.prune(0.8, 0.98), tmp_path_factory.mktemp("graphs"), card)
    return json.loads(path.read_text(encoding="utf-8"))


def test_our_file_follows_the_schema(ours: dict[str, Any]) -> None:
    assert broken_rules(ours) == []


def test_metadata_and_view_are_the_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert {key: ours["metadata"].get(key) for key in theirs["metadata"]} == theirs["metadata"]
    assert ours["qParams"] == theirs["qParams"]
    assert list(ours) == list(theirs)


def test_nodes_and_their_order_are_the_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert len(ours["nodes"]) == len(theirs["nodes"])
    for our, their in zip(ours["nodes"], theirs["nodes"], strict=True):
        assert list(our) == list(their)
        numbers = ("influence", "activation", "token_prob")
        # Errors had different ids when the reference was written.
        ids = () if our["feature_type"] != "mlp reconstruction error" else ("node_id", "jsNodeId")
        for key in their.keys() - {*numbers, *ids}:
            assert our[key] == their[key]
        for key in numbers:
            assert our[key] == pytest.approx(their[key], abs=1e-5), key
            assert isinstance(our[key], type(their[key]))


def test_links_and_their_order_are_the_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    def links_by_row(content: dict[str, Any]) -> Sequence[tuple[int, int, float]]:
        row_of = {node["node_id"]: row for row, node in enumerate(content["nodes"])}
        return [(row_of[link["source"]], row_of[link["target"]], link["weight"]) for link in content["links"]]

    our, their = links_by_row(ours), links_by_row(theirs)
    assert [link[:2] for link in our] == [link[:2] for link in their]
    assert [link[2] for link in our] == pytest.approx([link[2] for link in their], abs=1e-5)


def test_circuit_tracers_file_can_be_read(reference_folder: Path, theirs: dict[str, Any]) -> None:
    graph, view = read_circuit_tracer(reference_folder / "circuit_tracer_tiny" / "graph.json")
    assert (graph.n_nodes, graph.n_edges) == (len(theirs["nodes"]), len(theirs["links"]))
    assert view == GraphView()
    assert graph.info.n_layers == 3
    errors = ["error:0:5", "error:0:6", "error:0:7", "error:1:7", "error:2:7"]
    assert [graph.node(row).id for row in range(7, 12)] == errors
    assert graph.info.target_names[0] == "azing"
