"""The budget: blocks of rows give the influence that edges give, and unexplored features count as errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from open_clt import memory
from open_clt.attribution.adjoint import attribute_rows, feature_seeds
from open_clt.attribution.budget import block_influence, explore
from open_clt.attribution.rows_to_edges import Block
from open_clt.attribution.sources import Sources, find_sources
from open_clt.attribution.targets import Resolved, resolve_targets
from open_clt.errors import ResourceError
from open_clt.graphs.edges import Edges
from open_clt.graphs.influence import InfluenceGraph, influence
from open_clt.graphs.targets import SalientLogits
from open_clt.language.language_model import LanguageModel
from open_clt.language.linear_path import read_linear_path
from tests.attribution.cases import KINDS, PROMPT
from tests.random_transcoders import random_architecture
from tests.reference.dense_influence import SlowGraph, slow_influence
from tests.refusals import refuses

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
@torch.no_grad()
def sources(tiny_gpt2: LanguageModel) -> Sources:
    path = read_linear_path(tiny_gpt2, tiny_gpt2.tokenize(PROMPT), "hook_resid_mid")
    return find_sources(path, random_architecture(KINDS["clt"]))


@pytest.fixture(scope="module")
def resolved(tiny_gpt2: LanguageModel, sources: Sources) -> Resolved:
    return resolve_targets(tiny_gpt2, sources, [SalientLogits(max_count=3)])


def dense_rows(sources: Sources) -> Tensor:
    """The rows of all active features."""
    features = sources.features
    seeds = feature_seeds(sources, features.layer, features.position, features.index)
    rows = torch.zeros(len(seeds), sources.n_columns)
    for batch in attribute_rows(sources, seeds, batch_size=5):
        rows[batch.targets] = batch.rows
    return rows


def test_influence_over_blocks_is_influence_over_edges() -> None:
    """Six features on three levels and one output; the last two features have no rows yet."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.zeros(10).index_fill(0, torch.tensor([9]), 0.7)
    level = torch.tensor([0, 0, 1, 1, 2, 0, 0, 0, 0, 3])
    weights = torch.randn(10, 10, generator=generator)
    below = (level[:, None] > level) | ((level[:, None] > 0) & (torch.arange(10) >= 6) & (torch.arange(10) < 9))
    weights = weights * below
    weights[:, 9] = 0
    blocks = [
        Block(numbers, level[numbers], weights[numbers, :6], weights[numbers, 6:9], weights[numbers].abs().sum(1))
        for numbers in (torch.tensor([9]), torch.tensor([4, 2]), torch.tensor([3]))
    ]
    known = torch.zeros(10, 10)
    for block in blocks:
        known[block.numbers] = weights[block.numbers]
    target, source = known.nonzero(as_tuple=True)
    edges = Edges(target, source, known[target, source])
    expected = influence(InfluenceGraph(edges, outputs, torch.zeros(10), level))
    torch.testing.assert_close(block_influence(blocks, outputs)[:6].double(), expected[:6])
    assert float(expected[5]) > 0


@pytest.mark.parametrize("compatible", [False, True])
def test_unexplored_features_are_added_to_their_errors(sources: Sources, resolved: Resolved, compatible: bool) -> None:
    explored = explore(sources, resolved, 9, batch_size=4, compatible=compatible)
    assert int(explored.mask.sum()) == 9
    rows, columns, features = dense_rows(sources), sources.columns, sources.features
    errors = rows[:, columns.errors].unflatten(1, (sources.n_layers, -1))
    for column in (~explored.mask).nonzero().flatten().tolist():
        errors[:, features.layer[column], features.position[column]] += rows[:, column]
    expected = torch.where(explored.mask, rows[:, columns.features], 0.0)
    expected = torch.cat([expected, errors.flatten(1), rows[:, columns.embeddings.start :]], dim=1)
    if compatible:
        expected[:, columns.embeddings.stop :] = 0
    adjacency = torch.zeros(sources.n_columns + len(resolved.seeds), sources.n_columns)
    columns = explored.columns
    adjacency[columns[explored.edges.target], columns[explored.edges.source]] = explored.edges.weight
    chosen = explored.mask.nonzero().flatten()
    torch.testing.assert_close(adjacency[chosen], expected[chosen], atol=1e-6, rtol=1e-5)
    assert not adjacency[: sources.n_columns][~torch.isin(torch.arange(sources.n_columns), chosen)].any()


def test_the_influence_left_out_ends_at_features_without_a_row(sources: Sources, resolved: Resolved) -> None:
    explored = explore(sources, resolved, 9, batch_size=4, compatible=False)
    size, active = sources.n_columns + len(resolved.seeds), len(explored.mask)
    adjacency, outputs = torch.zeros(size, size), torch.zeros(size)
    adjacency[:active, : sources.n_columns] = dense_rows(sources) * explored.mask[:, None]
    for batch in attribute_rows(sources, resolved.seeds, batch_size=4):
        adjacency[sources.n_columns + batch.targets, : sources.n_columns] = batch.rows
    outputs[sources.n_columns :] = resolved.nodes.weight
    influence = slow_influence(SlowGraph(adjacency.double(), outputs.double(), torch.zeros(size, dtype=torch.double)))
    expected = float(influence[:active][~explored.mask].sum() / outputs.sum())
    assert 0 < explored.influence_left_out < 1
    assert explored.influence_left_out == pytest.approx(expected, rel=1e-5)
    assert explore(sources, resolved, None, batch_size=4, compatible=False).influence_left_out == 0


def test_every_edge_is_listed_once(sources: Sources, resolved: Resolved) -> None:
    edges = explore(sources, resolved, 9, batch_size=4, compatible=False).edges
    pairs = edges.target * sources.n_columns + edges.source
    assert len(pairs.unique()) == len(pairs)


def test_totals_are_known_only_for_explored_features(sources: Sources, resolved: Resolved) -> None:
    explored = explore(sources, resolved, 9, batch_size=4, compatible=False)
    assert torch.equal(~explored.totals.isnan(), explored.mask)
    chosen = explored.mask.nonzero().flatten()
    torch.testing.assert_close(dense_rows(sources)[chosen].sum(1), explored.totals[chosen], atol=1e-4, rtol=1e-5)


def test_rows_that_do_not_fit_into_memory_are_refused_before_they_are_computed(
    sources: Sources, resolved: Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = dense_rows(sources)[:, : sources.columns.errors.start] != 0
    monkeypatch.setattr(memory, "available_memory", lambda: 4 * int(entries.sum()) - 1)
    with refuses(ResourceError, "max_feature_nodes"):
        explore(sources, resolved, None, batch_size=5, compatible=False)
    explore(sources, resolved, 1, batch_size=5, compatible=False)
