"""Comparison with circuit-tracer: the same model, transcoder and prompt give the same graph, to 1e-5."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from open_clt.attribution.attribute import attribute
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.language.language_model import load_language_model
from open_clt.transcoders.formats.circuit_tracer import load_circuit_tracer
from open_clt.transcoders.nonlinearities import JumpReLU

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def folder(reference_folder: Path) -> Path:
    return reference_folder / "circuit_tracer_tiny"


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adjacency.safetensors")


@pytest.fixture(scope="module")
def graphs(folder: Path, expected: dict[str, Tensor]) -> dict[str, AttributionGraph]:
    model = load_language_model(str(folder / "model"))
    transcoder = load_circuit_tracer(folder / "clt")
    assert isinstance(transcoder.nonlinearity, JumpReLU)
    with torch.no_grad():
        # One pre-activation equals its threshold exactly, so rounding would decide whether the feature is active.
        transcoder.nonlinearity.log_threshold += 1e-6
    return {
        name: attribute(model, transcoder, expected["input_tokens"], compatible=name == "compatible")
        for name in ("compatible", "complete")
    }


def test_nodes_are_the_same(graphs: dict[str, AttributionGraph], expected: dict[str, Tensor]) -> None:
    nodes = graphs["compatible"].nodes
    features = graphs["compatible"].of_kind(NodeKind.FEATURE)
    table = torch.stack([nodes.layer, nodes.position, nodes.index], dim=1)[features]
    assert torch.equal(table, expected["active_features"][expected["selected_features"]])
    torch.testing.assert_close(nodes.value[features], expected["activation_values"])
    logits = graphs["compatible"].of_kind(NodeKind.LOGIT)
    assert torch.equal(nodes.index[logits], expected["logit_token_ids"])
    torch.testing.assert_close(nodes.weight[logits], expected["logit_probabilities"])


def test_edges_are_the_same(graphs: dict[str, AttributionGraph], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(graphs["compatible"].adjacency(), expected["adjacency"], atol=1e-5, rtol=1e-5)


def test_scores_are_the_same(graphs: dict[str, AttributionGraph]) -> None:
    scores = graphs["compatible"].scores()
    assert scores.replacement == pytest.approx(0.41067, abs=1e-5)
    assert scores.completeness == pytest.approx(0.74360, abs=1e-5)


def test_the_pruned_graph_is_the_same(
    graphs: dict[str, AttributionGraph], expected: dict[str, Tensor], folder: Path
) -> None:
    graph = graphs["compatible"]
    pruned = graph.prune(0.8, 0.98)
    names = graph.ids()
    assert pruned.ids() == [names[i] for i in expected["node_mask"].nonzero().flatten().tolist()]
    torch.testing.assert_close(
        pruned.nodes.cumulative, expected["cumulative_scores"][expected["node_mask"]], atol=1e-5, rtol=1e-5
    )
    written = json.loads((folder / "graph.json").read_text(encoding="utf-8"))
    assert pruned.n_nodes == len(written["nodes"])
    weights = torch.tensor([link["weight"] for link in written["links"]])
    torch.testing.assert_close(pruned.edges.weight.sort().values, weights.sort().values, atol=1e-5, rtol=1e-5)


def test_nodes_that_the_reference_leaves_out_complete_its_rows(graphs: dict[str, AttributionGraph]) -> None:
    assert graphs["complete"].check().relative_to_row < 1e-6
    assert graphs["compatible"].check().relative_to_total > 0.1
