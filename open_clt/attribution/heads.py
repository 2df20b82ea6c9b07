"""Head contributions: the attention heads that carry an edge.

Every path from a source to a target passes through some attention heads or through none. The last head on a path is
the one that brings the source's contribution to the target's position. An edge is split by the last head of its paths:

    edge = (paths without a head) + sum over layers and heads of (paths whose last head is this one)

The parts add up to the edge exactly, because everything that is not linear is frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.attribution.adjoint import Seeds, add_skipped, before, feature_seeds, read_by, walk
from open_clt.attribution.attention_table import Look
from open_clt.attribution.sources import Sources, attributable, find_sources
from open_clt.attribution.targets import target_seeds
from open_clt.errors import AttributionError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import Node, NodeId, NodeKind
from open_clt.graphs.targets import Direction, FeaturePreactivation, LogitDifference, TokenLogits
from open_clt.language.language_model import LanguageModel
from open_clt.language.linear_path import read_linear_path
from open_clt.short_repr import short_repr
from open_clt.transcoders.transcoder import Transcoder


class EdgeParts(NamedTuple):
    """The parts of one edge, split by the last attention head on each path; they add up to the edge."""

    heads: Float[Tensor, "layer head"]
    """Part that each head carries."""
    direct: float
    """Part that no head carries."""

    __repr__ = short_repr


class HeadContributions(NamedTuple):
    """The edges into one target, split by the last attention head on each path; the parts of an edge add up to it."""

    heads: Float[Tensor, "layer head node"]
    """Part of the edge from each node that each head carries."""
    direct: Float[Tensor, "node"]
    """Part of the edge from each node that no head carries; only sources at the target's own position have one."""

    def edge(self, source: int) -> EdgeParts:
        """The parts of the edge from one node."""
        return EdgeParts(self.heads[:, :, source], float(self.direct[source]))

    __repr__ = short_repr


@torch.no_grad()
def head_contributions(
    model: LanguageModel,
    transcoder: Transcoder | str | Path,
    graph: AttributionGraph,
    target: int,
) -> HeadContributions:
    """Split every edge into node ``target`` of a graph by attention layer and head.

    ``model`` and ``transcoder`` are those that the graph was made with. Raises AttributionError if the node has no
    inputs, if the graph comes from a file that does not hold its targets, or if the graph was made with a budget and
    then pruned: it then does not tell which features the budget left out and which were pruned.
    """
    sources = _sources(model, transcoder, graph)
    return _split(model, sources, _nodes_of_columns(graph, sources), graph, target)


def every_head_contribution(
    model: LanguageModel, transcoder: Transcoder | str | Path, graph: AttributionGraph
) -> Iterator[tuple[int, HeadContributions]]:
    """Yield each node that has inputs, with its edges split as ``head_contributions`` splits them."""
    sources = _sources(model, transcoder, graph)
    columns = _nodes_of_columns(graph, sources)
    for target in graph.edges.rows.tolist():
        yield target, _split(model, sources, columns, graph, target)


class CarriedEdge(NamedTuple):
    """A part of an edge: what one head carries from one key to the target's position."""

    source: int
    """Row of the edge's source among the nodes of the graph."""
    look: Look
    """The head, the target's position as its query, and the position that it takes the source's contribution from."""
    weight: float
    """The part of the edge."""


@torch.no_grad()
def carried_edges(
    model: LanguageModel,
    transcoder: Transcoder | str | Path,
    graph: AttributionGraph,
    target: int,
    *,
    share: float = 0.01,
) -> list[CarriedEdge]:
    """Split every edge into node ``target`` by the last head of its paths, and by the position that this head looks at.

    Parts below ``share`` of the absolute weight of their edge are left out. Raises what ``head_contributions`` raises.
    """
    sources = _sources(model, transcoder, graph)
    return _carried(model, sources, _nodes_of_columns(graph, sources), graph, target, share=share)


def every_carried_edge(
    model: LanguageModel,
    transcoder: Transcoder | str | Path,
    graph: AttributionGraph,
    *,
    share: float = 0.01,
    targets: Sequence[int] | None = None,
) -> Iterator[tuple[int, list[CarriedEdge]]]:
    """Yield each of ``targets``, with its edges split as ``carried_edges`` splits them; all with inputs by default."""
    sources = _sources(model, transcoder, graph)
    columns = _nodes_of_columns(graph, sources)
    for target in graph.edges.rows.tolist() if targets is None else targets:
        yield target, _carried(model, sources, columns, graph, target, share=share)


@torch.no_grad()
def _sources(model: LanguageModel, transcoder: Transcoder | str | Path, graph: AttributionGraph) -> Sources:
    """The sources of a graph's prompt."""
    transcoder = attributable(transcoder, model)
    tokens = torch.tensor(graph.info.tokens, device=model.device)
    path = read_linear_path(model, tokens, transcoder.config.input_hook, transcoder.config.target_hook)
    if graph.info.settings.use_first_position != transcoder.config.use_first_position:
        raise AttributionError(
            f"use_first_position is {transcoder.config.use_first_position} in the transcoder's config and "
            f"{graph.info.settings.use_first_position} in the graph; give the transcoder that the graph was made with."
        )
    return find_sources(path, transcoder)


@torch.no_grad()  # here, because a generator may lose it where every call is checked
def _split(
    model: LanguageModel,
    sources: Sources,
    columns: Int[Tensor, "column"],
    graph: AttributionGraph,
    target: int,
) -> HeadContributions:
    """Split one target's row, by one walk that starts below each head and one walk that passes no head."""
    node, path, n_nodes = graph.node(target), sources.path, graph.n_nodes
    seed = _seed(model, sources, graph, node)
    direct = sources.errors.new_zeros(1, node.position + 1, path.d_model)
    direct[0, node.position] = seed.cotangent[0]
    level = int(seed.level)
    entry = torch.tensor([before(level) if level == model.n_layers else read_by(level)], device=model.device)
    below_heads = _below_heads(sources, direct[0], level)
    levels = torch.tensor(sorted(below_heads, reverse=True), dtype=torch.long, device=model.device)
    # If encoders read the stream before attention, no head comes before that of the first layer; it has no parts.
    parts = torch.cat([direct[:0], *(below_heads[layer] for layer in levels.tolist())])
    rows = walk(sources, parts, before(levels.repeat_interleave(model.n_heads)))
    without_heads = walk(sources, direct, entry, through_attention=False)
    without_heads[:, sources.columns.biases][0, level * path.n_positions + node.position] += seed.bias[0]
    heads = rows.new_zeros(model.n_layers, model.n_heads, n_nodes)
    heads[levels] = _by_node(rows, columns, n_nodes).unflatten(0, (-1, model.n_heads))
    # Pruning also removes edges between nodes that stay in the graph; such an edge has no parts.
    has_edge = torch.zeros(n_nodes).index_fill(0, graph.edges.sources_of(target), 1)
    return HeadContributions(heads.cpu() * has_edge, _by_node(without_heads, columns, n_nodes)[0].cpu() * has_edge)


@torch.no_grad()  # here, because a generator may lose it where every call is checked
def _carried(
    model: LanguageModel,
    sources: Sources,
    columns: Int[Tensor, "column"],
    graph: AttributionGraph,
    target: int,
    *,
    share: float,
) -> list[CarriedEdge]:
    """The parts of one target's edges, by walks that start below each head at each position."""
    node, n_nodes = graph.node(target), graph.n_nodes
    seed = _seed(model, sources, graph, node)
    direct = sources.errors.new_zeros(node.position + 1, sources.path.d_model)
    direct[node.position] = seed.cotangent[0]
    edges = torch.zeros(n_nodes)
    edges[graph.edges.sources_of(target)] = graph.edges.weights_of(target)
    least = share * edges.abs()
    found: list[CarriedEdge] = []
    for layer, heads in _below_heads(sources, direct, int(seed.level)).items():
        n_heads, length = heads.shape[:2]
        keys = torch.arange(length, device=heads.device).repeat(n_heads)
        parts = torch.zeros_like(heads).repeat_interleave(length, dim=0)
        parts[torch.arange(len(keys), device=keys.device), keys] = heads.flatten(0, 1)
        rows = walk(sources, parts, torch.full_like(keys, before(layer)), positions=keys)
        weights = _by_node(rows, columns, n_nodes).cpu()
        for row, source in ((weights.abs() >= least) & (edges != 0) & (weights != 0)).nonzero().tolist():
            look = Look(layer, row // length, node.position, row % length)
            found.append(CarriedEdge(source, look, float(weights[row, source])))
    return found


def _seed(model: LanguageModel, sources: Sources, graph: AttributionGraph, node: Node) -> Seeds:
    """The seed of an output or a feature; raises AttributionError for other nodes."""
    if node.kind is NodeKind.LOGIT:
        return target_seeds(model, sources, TokenLogits(tokens=(node.index,), position=node.position))
    if node.kind is NodeKind.TARGET:
        match graph.info.settings.target(node.index):
            case LogitDifference() | Direction() | FeaturePreactivation() as target:
                return target_seeds(model, sources, target)
            case _:
                raise AttributionError(f"The graph's file does not say what {node.id} is; attribute the prompt again.")
    if node.kind is not NodeKind.FEATURE:
        raise AttributionError(f"Node {node.id} has no inputs; choose a feature or an output.")
    columns = (torch.tensor([entry], device=model.device) for entry in (node.layer, node.position, node.index))
    return feature_seeds(sources, *columns)


def _below_heads(
    sources: Sources, direct: Float[Tensor, "position d_model"], top: int
) -> dict[int, Float[Tensor, "head position d_model"]]:
    """For each block below a target, the target as a function of the stream that each head reads."""
    by_level: dict[int, Tensor] = {}
    stream = direct.clone()[None]
    for level in reversed(range(min(top + 1, sources.n_layers))):
        block, is_reader = sources.path.blocks[level], level == top
        before_attention = sources.path.readers[level].before_attention
        unskipped = stream.clone()
        if not is_reader:
            add_skipped(sources, level, stream)
        # No head of this block comes before an encoder that reads the stream before attention.
        if not (before_attention and is_reader):
            by_level[level] = block.head_adjoints(unskipped[0] if before_attention else stream[0])
    return by_level


def _nodes_of_columns(graph: AttributionGraph, sources: Sources) -> Int[Tensor, "column"]:
    """The row of the node that each column is part of.

    An unexplored feature is part of the error of its layer and position. A column that is not in the graph gets the
    row after the last node.
    """
    budget = graph.info.settings.max_feature_nodes
    folded = budget is not None and budget < graph.info.n_active_features
    if folded and bool(graph.nodes.omitted.any()):
        raise AttributionError(
            f"The graph was made with a budget of {budget} features and then pruned, so the parts of its errors are "
            "not known; compute head contributions on the graph before pruning."
        )
    rows = {node: row for row, node in enumerate(graph.nodes.ids())}
    columns = sources.nodes().ids()
    nodes = [rows.get(column, graph.n_nodes) for column in columns]
    for column, feature in enumerate(columns[: sources.features.value.shape[0]]) if folded else ():
        if nodes[column] == graph.n_nodes:
            error = NodeId.of(NodeKind.ERROR, feature.layer, feature.position, -1)
            nodes[column] = rows.get(error, graph.n_nodes)
    return torch.tensor(nodes, device=sources.features.layer.device)


def _by_node(
    rows: Float[Tensor, "target column"], columns: Int[Tensor, "column"], n_nodes: int
) -> Float[Tensor, "target node"]:
    """Rows over the nodes of a graph: the sums of the columns that are part of each node."""
    return rows.new_zeros(rows.shape[0], n_nodes + 1).index_add_(1, columns, rows)[:, :n_nodes]
