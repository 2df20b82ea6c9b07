"""Validity: a graph whose tables do not fit together, or that holds a number that is not finite, cannot be made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from open_clt.errors import AttributionError, CheckpointError
from open_clt.graphs.formats.networkx import from_networkx, to_networkx
from open_clt.graphs.graph import AttributionGraph
from tests.graphs.hand_graph import hand_graph
from tests.refusals import refuses

Change = Callable[[dict[str, Tensor]], object]


def _set(name: str, value: float, row: int = 1) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name][row] = value

    return change


CHANGES: dict[str, Change] = {
    "nodes.kind": _set("nodes.kind", 99),
    "nodes.kind -1": _set("nodes.kind", -1),
    "nodes.layer": _set("nodes.layer", 7),
    "nodes.layer of a feature": _set("nodes.layer", -1),
    "nodes.position": _set("nodes.position", 3),
    "nodes.index": _set("nodes.index", -2),
    "nodes.index of a feature": _set("nodes.index", -1),
    "edges.target": _set("edges.target", 999),
    "edges.source": _set("edges.source", -1),
    "edges.source in a cycle": _set("edges.source", 3, 0),
    "edges.weight": _set("edges.weight", torch.nan),
    "edges.weight inf": _set("edges.weight", torch.inf),
    "nodes.value": _set("nodes.value", -torch.inf),
    "nodes.weight": _set("nodes.weight", -1.0),
    "nodes.weight too large": _set("nodes.weight", 2e38),
    "nodes.omitted": _set("nodes.omitted", -1.0),
    "nodes.omitted_sum": _set("nodes.omitted_sum", torch.nan),
    "nodes.total": _set("nodes.total", torch.inf),
    "nodes.cumulative": _set("nodes.cumulative", torch.inf),
    "nodes.confidence": _set("nodes.confidence", 1.5),
    "nodes.confidence -1": _set("nodes.confidence", -1.0),
    "nodes.value length": lambda tensors: tensors.update({"nodes.value": torch.zeros(2)}),
    "nodes.value shape": lambda tensors: tensors.update({"nodes.value": tensors["nodes.value"][None]}),
    "nodes.value dtype": lambda tensors: tensors.update({"nodes.value": tensors["nodes.value"].half()}),
    "edges.target dtype": lambda tensors: tensors.update({"edges.target": tensors["edges.target"].float()}),
    "edges.weight complex": lambda tensors: tensors.update(
        {"edges.weight": tensors["edges.weight"].to(torch.complex64)}
    ),
    "edges.target bool": lambda tensors: tensors.update({"edges.target": tensors["edges.target"].bool()}),
    "edges.target unsigned": lambda tensors: tensors.update({"edges.target": tensors["edges.target"].to(torch.uint64)}),
    "edges.weight missing": lambda tensors: tensors.pop("edges.weight"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_with_tables_that_do_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    hand_graph().save(tmp_path)
    AttributionGraph.load(tmp_path)
    tensors = load_file(tmp_path / "graph.safetensors")
    tensors = {key: tensor if tensor.is_floating_point() else tensor.long() for key, tensor in tensors.items()}
    CHANGES[name](tensors)
    save_file(tensors, tmp_path / "graph.safetensors")
    with pytest.raises(CheckpointError) as raised:
        AttributionGraph.load(tmp_path)
    assert tmp_path.name[-8:] in str(raised.value)
    if " " not in name:
        assert name.partition(".")[2] in str(raised.value)


def test_a_graph_with_more_names_than_outputs_is_refused() -> None:
    graph = hand_graph()
    names = (*graph.info.target_names, "one more")
    with refuses(AttributionError, 3, 4):
        replace(graph, info=replace(graph.info, target_names=names))
    with refuses(AttributionError, 3, 2):
        replace(graph, info=replace(graph.info, tokens=(10, 11)))


def test_a_networkx_graph_with_a_weight_that_is_not_finite_is_refused() -> None:
    network = to_networkx(hand_graph())
    source, target = next(iter(network.edges))
    network.edges[source, target]["weight"] = float("nan")
    with refuses(CheckpointError, "nan"):
        from_networkx(network)


def test_a_row_with_inputs_and_without_a_total_is_refused() -> None:
    graph = hand_graph()
    row = int(graph.edges.target[0])
    total = graph.nodes.total.clone()
    total[row] = torch.nan
    with refuses(AttributionError, row):
        replace(graph, nodes=replace(graph.nodes, total=total))
    unknown = replace(graph, nodes=replace(graph.nodes, total=torch.full_like(total, torch.nan)))
    assert unknown.scores() == graph.scores(), "files of other programs have no totals"


@pytest.mark.parametrize("number", ["check", "scores", "influence"])
def test_no_number_of_a_graph_passes_over_nan(number: str) -> None:
    """A graph cannot be made with NaN, but its tensors can be changed afterwards."""
    graph = hand_graph()
    graph.edges.weight[0] = torch.nan
    with refuses(AttributionError, "nan"):
        getattr(graph, number)()
