"""Head contributions: the parts of an edge add up to it, and each is the part that its head carries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.attribution.heads import (
    carried_edges,
    every_carried_edge,
    every_head_contribution,
    head_contributions,
)
from open_clt.errors import AttributionError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.targets import Direction, FeaturePreactivation, LogitDifference, Target, TokenLogits
from open_clt.language.language_model import LanguageModel
from tests.attribution.cases import KINDS, PROMPT
from tests.random_transcoders import random_architecture
from tests.refusals import refuses


def last_feature(graph: AttributionGraph) -> int:
    """The number of the last feature node."""
    return int(graph.of_kind(NodeKind.FEATURE).nonzero().max())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["clt", "normalised clt", "skip, reach 2"])
@pytest.mark.parametrize("settings", [{}, {"compatible": True}, {"max_feature_nodes": 20}], ids=str)
def test_the_parts_add_up_to_the_edges(
    models: dict[str, LanguageModel], name: str, kind: str, settings: dict[str, Any]
) -> None:
    transcoder = random_architecture(KINDS[kind])
    graph = attribute(models[name], transcoder, PROMPT, **settings)
    for target in (graph.n_nodes - 1, last_feature(graph)):
        parts = head_contributions(models[name], transcoder, graph, target)
        row = graph.adjacency()[target]
        torch.testing.assert_close(parts.heads.sum((0, 1)) + parts.direct, row, atol=1e-5, rtol=1e-4)
        assert bool(parts.heads.any())


def test_direct_parts_come_only_from_the_targets_own_position(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    graph = attribute(tiny_gpt2, transcoder, PROMPT)
    parts = head_contributions(tiny_gpt2, transcoder, graph, graph.n_nodes - 1)
    other_positions = graph.nodes.position < len(graph.info.tokens) - 1
    assert not parts.direct[other_positions].any()
    assert parts.direct[~other_positions].any()


def test_a_head_without_output_contributes_nothing(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    graph = attribute(tiny_gpt2, transcoder, PROMPT)
    whole = head_contributions(tiny_gpt2, transcoder, graph, graph.n_nodes - 1)
    weight = tiny_gpt2.bridge.original_model.transformer.h[2].attn.c_proj.weight
    rows = slice(8, 16)  # head 1 of 4, of width 8
    saved = weight[rows].clone()
    try:
        weight.data[rows] = 0
        changed = attribute(tiny_gpt2, transcoder, PROMPT)
        without = head_contributions(tiny_gpt2, transcoder, changed, changed.n_nodes - 1)
    finally:
        weight.data[rows] = saved
    assert not without.heads[2, 1].any()
    assert whole.heads[2, 1].any()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_all_edges_of_a_pruned_graph_can_be_split(models: dict[str, LanguageModel], name: str) -> None:
    transcoder = random_architecture(KINDS["clt"])
    graph = attribute(models[name], transcoder, PROMPT).prune(0.6, 0.9)
    adjacency, n_targets = torch.zeros(graph.n_nodes, graph.n_nodes), 0
    for target, parts in every_head_contribution(models[name], transcoder, graph):
        adjacency[target] = parts.heads.sum((0, 1)) + parts.direct
        n_targets += 1
    assert n_targets == int((graph.adjacency() != 0).any(1).sum())
    torch.testing.assert_close(adjacency, graph.adjacency(), atol=1e-5, rtol=1e-4)


def test_one_edge_is_a_table_of_layers_and_heads(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    graph = attribute(tiny_gpt2, transcoder, PROMPT)
    source = int(graph.of_kind(NodeKind.EMBEDDING).nonzero()[2])
    heads, direct = head_contributions(tiny_gpt2, transcoder, graph, graph.n_nodes - 1).edge(source)
    assert heads.shape == (tiny_gpt2.n_layers, tiny_gpt2.n_heads)
    assert float(heads.sum()) + direct == pytest.approx(float(graph.adjacency()[-1, source]), abs=1e-5)


@pytest.mark.parametrize(
    "target",
    [
        LogitDifference(positive=5, negative=9, position=4),
        Direction(vector=torch.linspace(-1, 1, 32)),
        FeaturePreactivation(layer=2, feature=3),
    ],
    ids=lambda target: target.kind,
)
def test_edges_into_targets_that_are_not_tokens_are_split_too(tiny_llama: LanguageModel, target: Target) -> None:
    transcoder = random_architecture(KINDS["clt"])
    graph = attribute(tiny_llama, transcoder, PROMPT, targets=[TokenLogits(tokens=(7,)), target])
    parts = head_contributions(tiny_llama, transcoder, graph, graph.n_nodes - 1)
    row = graph.adjacency()[-1]
    torch.testing.assert_close(parts.heads.sum((0, 1)) + parts.direct, row, atol=1e-5, rtol=1e-4)


def test_edges_that_cannot_be_split_are_refused(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    graph = attribute(tiny_gpt2, transcoder, PROMPT, targets=Direction(vector=torch.ones(32)), max_feature_nodes=9)

    def fails(graph: AttributionGraph, target: int) -> None:
        with refuses(AttributionError):
            head_contributions(tiny_gpt2, transcoder, graph, target)

    without_targets = replace(graph, info=replace(graph.info, settings=replace(graph.info.settings, targets=(None,))))
    fails(without_targets, graph.n_nodes - 1)
    fails(graph, int(graph.of_kind(NodeKind.EMBEDDING).nonzero()[0]))
    fails(graph.prune(), 0)
    first_used = attribute(tiny_gpt2, random_architecture(replace(KINDS["clt"], use_first_position=True)), PROMPT)
    fails(first_used, first_used.n_nodes - 1)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_heads_carry_an_edge_from_the_positions_that_they_look_at(models: dict[str, LanguageModel], name: str) -> None:
    model, transcoder = models[name], random_architecture(KINDS["clt"])
    graph = attribute(model, transcoder, PROMPT)
    target = graph.n_nodes - 1
    parts = head_contributions(model, transcoder, graph, target)
    heads = torch.zeros_like(parts.heads)
    carried = carried_edges(model, transcoder, graph, target, share=0.0)
    for source, look, weight in carried:
        assert graph.node(source).position <= look.key <= look.query == graph.node(target).position
        heads[look.layer, look.head, source] += weight
    torch.testing.assert_close(heads, parts.heads, atol=1e-5, rtol=1e-4)
    edges = graph.adjacency()[target]
    least = 0.05 * edges.abs()
    large = [part for part in carried if abs(part.weight) >= least[part.source]]
    assert 0 < len(large) < len(carried)
    found = carried_edges(model, transcoder, graph, target, share=0.05)
    assert {part[:2] for part in found} == {part[:2] for part in large}


def test_all_edges_of_a_pruned_graph_are_carried(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    graph = attribute(tiny_gpt2, transcoder, PROMPT).prune(0.6, 0.9)
    every = dict(every_carried_edge(tiny_gpt2, transcoder, graph))
    assert list(every) == graph.edges.rows.tolist()
    target = list(every)[-1]
    assert every[target] == carried_edges(tiny_gpt2, transcoder, graph, target)
    kept = set(graph.edges.sources_of(target).tolist())
    assert {part.source for part in every[target]} <= kept
