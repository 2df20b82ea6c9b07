"""Graphs of neurons: rows equal those of autograd with stopped gradients, and are complete without errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.attribution.heads import head_contributions
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.language.language_model import LanguageModel
from open_clt.language.transcoders.neurons import neurons_of
from tests.model_families import load_family
from tests.reference.autograd_neurons import SlowNeuronRow, SlowNeurons

PROMPT = "The cat sat on"
FAMILIES = ("GPT2", "Llama", "Gemma", "Gemma2", "Gemma3Text", "GPTNeoX")


def row_by_kind(graph: AttributionGraph, target: int, shape: tuple[int, int, int]) -> SlowNeuronRow:
    """A row of a graph in the form of the slow one; ``shape`` is that of all neurons."""
    nodes, row = graph.nodes, torch.zeros(graph.n_nodes)
    row[graph.edges.sources_of(target)] = graph.edges.weights_of(target)
    neurons, feature = torch.zeros(shape), graph.of_kind(NodeKind.FEATURE)
    neurons[nodes.layer[feature], nodes.position[feature], nodes.index[feature]] = row[feature]
    positions = torch.zeros(2, shape[1])
    for grid, kind in enumerate((NodeKind.EMBEDDING, NodeKind.POSITIONAL)):
        chosen = graph.of_kind(kind)
        positions[grid][nodes.position[chosen]] = row[chosen]
    biases, chosen = torch.zeros(shape[0] + 1), graph.of_kind(NodeKind.BIAS)
    biases.index_add_(0, nodes.layer[chosen], row[chosen])
    return SlowNeuronRow(neurons, positions[0], positions[1], biases)


def check_rows(model: LanguageModel, graph: AttributionGraph, every: int) -> None:
    """Compare every n-th row of a graph with that of autograd."""
    slow = SlowNeurons(model, torch.tensor(graph.info.tokens))
    shape = (model.n_layers, len(graph.info.tokens), slow.values[0].shape[-1])
    rows = graph.edges.rows.tolist()
    outputs = [row for row in rows if graph.node(row).kind is NodeKind.LOGIT]
    for target in sorted({*rows[::every], *outputs}):
        node = graph.node(target)
        expected = (
            slow.neuron_row(node.layer, node.position, node.index)
            if node.kind is NodeKind.FEATURE
            else slow.logit_row(node.index, node.position)
        )
        for part, of_slow in zip(row_by_kind(graph, target, shape), expected, strict=True):
            torch.testing.assert_close(part, of_slow, atol=1e-5, rtol=1e-4)
    slow.close()


def check_complete(graph: AttributionGraph) -> None:
    """Check that rows add up to their totals, that errors are zero, and that the scores are 1."""
    errors = graph.of_kind(NodeKind.ERROR)
    for target in graph.edges.rows.tolist():
        weights, total = graph.edges.weights_of(target), float(graph.nodes.total[target])
        assert float(weights.sum()) == pytest.approx(total, abs=1e-5 * max(1.0, float(weights.abs().sum())))
        assert not errors[graph.edges.sources_of(target)].any()
    assert graph.scores().replacement == pytest.approx(1, abs=1e-6)
    assert graph.scores().completeness == pytest.approx(1, abs=1e-6)


def test_rows_equal_autograd_with_stopped_gradients(tiny_gpt2: LanguageModel, tiny_llama: LanguageModel) -> None:
    for model in (tiny_gpt2, tiny_llama):
        graph = attribute(model, neurons_of(model), PROMPT, max_logits=2, batch_size=37)
        check_complete(graph)
        check_rows(model, graph, every=len(graph.edges.rows) // 15)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_equals_autograd(tmp_path: Path, family: str) -> None:
    model = load_family(family, tmp_path)
    graph = attribute(model, neurons_of(model), [0, 5, 17, 42], max_logits=3)
    assert len(graph.edges.rows) > 100
    check_complete(graph)
    check_rows(model, graph, every=1)


def test_neurons_that_a_budget_leaves_out_count_as_errors(tiny_gpt2: LanguageModel) -> None:
    neurons = neurons_of(tiny_gpt2)
    whole = attribute(tiny_gpt2, neurons, PROMPT)
    part = attribute(tiny_gpt2, neurons, PROMPT, max_feature_nodes=40)
    assert part.info.n_active_features == whole.info.n_active_features > 40
    assert 0 < part.scores().replacement < 0.999
    assert part.info.left_out()


def test_edges_of_neurons_are_split_by_heads(tiny_gpt2: LanguageModel) -> None:
    neurons = neurons_of(tiny_gpt2)
    graph = attribute(tiny_gpt2, neurons, PROMPT, max_logits=1)
    feature = int(graph.of_kind(NodeKind.FEATURE).nonzero()[-1])
    for target in (feature, graph.n_nodes - 1):
        parts = head_contributions(tiny_gpt2, neurons, graph, target)
        row = torch.zeros(graph.n_nodes)
        row[graph.edges.sources_of(target)] = graph.edges.weights_of(target)
        torch.testing.assert_close(parts.heads.sum((0, 1)) + parts.direct, row, atol=1e-5, rtol=1e-4)
