"""Explained attention of a graph: it is saved and loaded with the graph, and what does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from open_clt import files
from open_clt.errors import AttributionError, CheckpointError
from open_clt.graphs.attention import FORMAT, PREFIX, GraphAttention, Look
from open_clt.graphs.graph import AttributionGraph, stored_values
from tests.graphs.hand_graph import hand_attention, hand_graph
from tests.refusals import refuses


def saved(folder: Path, attention: GraphAttention | None) -> Path:
    return replace(hand_graph(), attention=attention).save(folder)


def test_a_graph_keeps_its_explained_attention_on_disk_and_when_it_is_pruned(tmp_path: Path) -> None:
    loaded = AttributionGraph.load(saved(tmp_path, hand_attention()))
    assert loaded.attention == hand_attention()
    assert loaded.prune().attention == hand_attention()
    assert AttributionGraph.load(saved(tmp_path / "without", None)).attention is None
    empty = GraphAttention(0.5, (), (), {})
    assert AttributionGraph.load(saved(tmp_path / "empty", empty)).attention == empty
    assert empty.missing_share() == 0


def test_graphs_without_it_are_stored_as_before(tmp_path: Path) -> None:
    content, tensors = stored_values(hand_graph())
    assert "attention" not in content
    assert not any(name.startswith(PREFIX) for name in tensors)


def test_parts_of_an_edge_and_explanations_are_found() -> None:
    attention = hand_attention()
    part = attention.carried[0]
    assert attention.of_edge(part.source, part.target) == [part]
    assert attention.of_edge(part.target, part.source) == []
    assert attention.explained(part.look) == attention.looks[1]
    with pytest.raises(KeyError, match=r"head 7\.0"):
        attention.explained(Look(7, 0, 0, 0))
    assert "2 looks of 2 heads" in attention.summary()


def test_what_does_not_fit_the_graph_is_refused() -> None:
    attention = hand_attention()
    look = replace(attention.looks[0], look=Look(0, 3, 9, 1))
    with refuses(AttributionError, "position 9"):
        replace(hand_graph(), attention=replace(attention, looks=(look,)))
    part = attention.carried[0]._replace(source=replace(attention.carried[0].source, position=7))
    with refuses(AttributionError, "0:7:5"):
        replace(hand_graph(), attention=replace(attention, carried=(part,)))


def _set(name: str, row: int, column: int, value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[PREFIX + name][row, column] = value

    return change


def _shorter(name: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[PREFIX + name] = tensors[PREFIX + name][1:]

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("pairs", 0, 1, 99),
        _set("pairs", 0, 0, -1),
        _set("carried", 0, 0, 2),
        _set("by_key", 0, 1, 50),
        _set("nodes", 0, 0, 17),
        _set("nodes", 0, 2, -1),
        _set("looks", 0, 0, -1),
        _set("looks", 0, 3, 3),
        _set("scores", 0, 0, torch.nan),
        _set("pair_weights", 0, 0, torch.inf),
        _shorter("pair_weights"),
        _shorter("activations"),
        lambda tensors: tensors.pop(f"{PREFIX}looks"),
        lambda tensors: tensors.update({f"{PREFIX}looks": torch.zeros(2, 3, dtype=torch.int64)}),
        lambda tensors: tensors.update({f"{PREFIX}looks": torch.zeros(2, 4)}),
    ],
)
def test_damaged_tables_are_one_sentence(tmp_path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    saved(tmp_path, hand_attention())
    path = tmp_path / "graph.safetensors"
    tensors = {name: tensor.clone() for name, tensor in files.read_tensors(path).items()}
    change(tensors)
    files.write_tensors(path, tensors)
    with refuses(CheckpointError, "whole attribution graph"):
        AttributionGraph.load(tmp_path)


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({**FORMAT.header(2), "share": 0.5}, "format version 2"),
        ({"share": 0.5}, "open-clt-attention"),
        ([], "open-clt-attention"),
        ({**FORMAT.header(), "share": 2.0}, "share"),
        (FORMAT.header(), "share"),
    ],
)
def test_other_versions_and_values_are_one_sentence(tmp_path: Path, facts: object, named: str) -> None:
    saved(tmp_path, hand_attention())
    path = tmp_path / "graph.json"
    files.write_json(path, {**files.read_json(path), "attention": facts})
    with refuses(CheckpointError, named):
        AttributionGraph.load(tmp_path)
