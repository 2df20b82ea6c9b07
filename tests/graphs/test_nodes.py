"""Ids of nodes are read in our notation and in circuit-tracer's, and written in ours."""

from __future__ import annotations

import pytest

from open_clt.errors import AttributionError
from open_clt.graphs.nodes import NodeId, NodeKind
from tests.refusals import refuses

WRITTEN = {
    "2:5:417": NodeId(NodeKind.FEATURE, 2, 5, 417),
    "error:2:5": NodeId(NodeKind.ERROR, 2, 5, -1),
    "token:5:330": NodeId(NodeKind.EMBEDDING, -1, 5, 330),
    "position:5": NodeId(NodeKind.POSITIONAL, -1, 5, -1),
    "bias:2:5": NodeId(NodeKind.BIAS, 2, 5, -1),
    "mlp:2:5": NodeId(NodeKind.MLP_OUTPUT, 2, 5, -1),
    "logit:5:1234": NodeId(NodeKind.LOGIT, -1, 5, 1234),
    "target:5:0": NodeId(NodeKind.TARGET, -1, 5, 0),
}


def test_every_kind_has_an_id() -> None:
    assert {node.kind for node in WRITTEN.values()} == set(NodeKind)


@pytest.mark.parametrize(("text", "node"), WRITTEN.items(), ids=WRITTEN)
def test_an_id_is_read_as_it_is_written(text: str, node: NodeId) -> None:
    assert str(node) == text
    assert NodeId.parse(text, n_layers=6) == node


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("2_417_5", "2:5:417"),
        ("6_417_5", "6:5:417"),
        ("2_-1_5", "error:2:5"),
        ("E_330_5", "token:5:330"),
        ("7_1234_5", "logit:5:1234"),
        ("7_-1_5", "target:5:0"),
        ("7_-3_5", "target:5:2"),
    ],
)
def test_circuit_tracers_ids_are_read(theirs: str, ours: str) -> None:
    assert str(NodeId.parse(theirs, n_layers=6)) == ours


def test_an_id_ignores_parts_that_its_kind_does_not_have() -> None:
    assert NodeId.of(NodeKind.LOGIT, 6, 5, 1234) == NodeId.of(NodeKind.LOGIT, -1, 5, 1234)
    assert NodeId.of(NodeKind.ERROR, 2, 5, 9) == NodeId.of(NodeKind.ERROR, 2, 5, -1)
    assert NodeId.of(NodeKind.FEATURE, 2, 5, 9) != NodeId.of(NodeKind.FEATURE, 2, 5, 8)


NOT_OUR_IDS = ["", "2", "2:5", "error:2", "error:2:5:1", "token:5", "logit:-1:3", "other:2:5", "²:1:1", ":2:5:417"]
NOT_CIRCUIT_TRACER_IDS = ["P_5", "2_-7_5", "E_-1_5", "2_417_5 ", "2_417_-1"]


@pytest.mark.parametrize("text", NOT_OUR_IDS + NOT_CIRCUIT_TRACER_IDS)
def test_other_texts_are_refused(text: str) -> None:
    with refuses(AttributionError, repr(text)):
        NodeId.parse(text, n_layers=6)
