"""Head contributions: the attention heads that carry an edge.

Every path from a source to a target moves between positions through attention heads, or through none. Sorted by the
last head on the way, the one that hands the source's contribution to the target's position, the paths of an edge are

    edge = (no head) + sum over layers and heads (last head)

and the parts add up to the edge exactly, because all that is not linear is frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.attribution.adjoint import Seeds, add_skipped, before, feature_seeds, read_by, walk
from open_clt.attribution.sources import Sources, attributable, find_sources
from open_clt.attribution.targets import target_seeds
from open_clt.errors import AttributionError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import Node, NodeId, NodeKind
from open_clt.graphs.targets import Direction, FeaturePreactivation, LogitDifference, TokenLogits
from open_clt.language.language_model import LanguageModel
from open_clt.language.linear_path import read_linear_path
from open_clt.transcoders.transcoder import Transcoder


class EdgeParts(NamedTuple):
    """One edge, split by the last attention head on the way; the parts add up to it."""

    heads: Float[Tensor, "layer head"]
    direct: float


class HeadContributions(NamedTuple):
    """The edges into one target, split by the last attention head on the way; the parts of an edge add up to it."""

    heads: Float[Tensor, "layer head node"]
    direct: Float[Tensor, "node"]
    """The part that does not pass a head: what comes from the target's own position, and constants."""

    def edge(self, source: int) -> EdgeParts:
        """The parts of the edge from one node."""
        return EdgeParts(self.heads[:, :, source], float(self.direct[source]))


@torch.no_grad()
def head_contributions(
    model: LanguageModel,
    transcoder: Transcoder,
    graph: AttributionGraph,
    target: int,
) -> HeadContributions:
    """Split every edge into node ``target`` of a graph by attention layer and head.

    ``model`` and ``transcoder`` are those that the graph was made with. Raises AttributionError if the node has no
    inputs, if the graph comes from a file that does not hold its targets, or if a pruned graph does not tell pruned
    features from those that its budget never explored.
    """
    sources = _sources(model, transcoder, graph)
    return _split(model, sources, _nodes_of_columns(graph, sources), graph, target)


@torch.no_grad()
def every_head_contribution(
    model: LanguageModel, transcoder: Transcoder, graph: AttributionGraph
) -> Iterator[tuple[int, HeadContributions]]:
    """Split all edges of a graph: each node that has inputs, and its edges as ``head_contributions`` splits them."""
    sources = _sources(model, transcoder, graph)
    columns = _nodes_of_columns(graph, sources)
    for target in graph.edges.target.unique().tolist():
        yield target, _split(model, sources, columns, graph, target)


def _sources(model: LanguageModel, transcoder: Transcoder, graph: AttributionGraph) -> Sources:
    transcoder = attributable(transcoder)
    path = read_linear_path(model, torch.tensor(graph.info.tokens, device=model.device), transcoder.config.input_hook)
    if graph.info.settings.use_first_position != transcoder.config.use_first_position:
        raise AttributionError(
            "Of the graph and the transcoder, one uses features at the first position and the other does not; use the "
            "transcoder that the graph was made with."
        )
    return find_sources(path, transcoder)


def _split(
    model: LanguageModel,
    sources: Sources,
    columns: Int[Tensor, "column"],
    graph: AttributionGraph,
    target: int,
) -> HeadContributions:
    """One target's row, walked down once for every head that hands it on, and once past all of them."""
    node, path, n_nodes = graph.node(target), sources.path, graph.n_nodes
    seed = _seed(model, sources, graph, node)
    direct = sources.errors.new_zeros(1, node.position + 1, path.d_model)
    direct[0, node.position] = seed.cotangent[0]
    level = int(seed.level)
    entry = torch.tensor([before(level) if level == model.n_layers else read_by(level)], device=model.device)
    handed = _handed_on(sources, direct[0], level)
    levels = torch.tensor(sorted(handed, reverse=True), dtype=torch.long, device=model.device)
    # No head stands before the first layer of a model whose MLPs read beside attention: there are no parts then.
    parts = torch.cat([direct[:0], *(handed[number] for number in levels.tolist())])
    rows = walk(sources, parts, before(levels.repeat_interleave(model.n_heads)))
    alone = walk(sources, direct, entry, through_attention=False)
    alone[:, sources.columns.biases][0, model.n_layers * path.n_positions + node.position] += seed.bias[0]
    heads = rows.new_zeros(model.n_layers, model.n_heads, n_nodes)
    heads[levels] = _by_node(rows, columns, n_nodes).unflatten(0, (-1, model.n_heads))
    # Pruning takes edges between nodes that stay, and then there is nothing to split.
    there = torch.zeros(n_nodes).index_fill(0, graph.edges.source[graph.edges.target == target], 1)
    return HeadContributions(heads.cpu() * there, _by_node(alone, columns, n_nodes)[0].cpu() * there)


def _seed(model: LanguageModel, sources: Sources, graph: AttributionGraph, node: Node) -> Seeds:
    """What an output or a feature is as a function of the residual stream."""
    if node.kind is NodeKind.LOGIT:
        return target_seeds(model, sources, TokenLogits(tokens=(node.index,), position=node.position))
    if node.kind is NodeKind.TARGET:
        match graph.info.settings.target(node.index):
            case LogitDifference() | Direction() | FeaturePreactivation() as target:
                return target_seeds(model, sources, target)
            case _:
                raise AttributionError(f"The graph's file does not tell what {node.id} is; attribute the prompt again.")
    if node.kind is not NodeKind.FEATURE:
        raise AttributionError(f"{node.id} has no inputs; head contributions need a feature or an output.")
    facts = (torch.tensor([fact], device=model.device) for fact in (node.layer, node.position, node.index))
    return feature_seeds(sources, *facts)


def _handed_on(
    sources: Sources, direct: Float[Tensor, "position d_model"], top: int
) -> dict[int, Float[Tensor, "head position d_model"]]:
    """For every block below a target, the target as a function of the stream that each of its heads reads."""
    handed: dict[int, Tensor] = {}
    stream = direct.clone()[None]
    for level in reversed(range(min(top + 1, sources.n_layers))):
        block, is_reader = sources.path.blocks[level], level == top
        unskipped = stream.clone()
        if not is_reader:
            add_skipped(sources, level, stream)
        # A parallel block's encoder reads what its attention reads, so no head comes between.
        if not (block.parallel and is_reader):
            handed[level] = block.head_adjoints(unskipped[0] if block.parallel else stream[0])
    return handed


def _nodes_of_columns(graph: AttributionGraph, sources: Sources) -> Int[Tensor, "column"]:
    """The node that each column adds to.

    An unexplored feature adds to its error; a column that the graph lacks has the number after the last node.
    """
    budget = graph.info.settings.max_feature_nodes
    folded = budget is not None and budget < graph.info.n_active_features
    if folded and bool(graph.nodes.omitted.any()):
        raise AttributionError(
            "The graph was made with a budget and then pruned, so its errors' parts are not known; "
            "ask the graph that it was pruned from for head contributions."
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
    return rows.new_zeros(rows.shape[0], n_nodes + 1).index_add_(1, columns, rows)[:, :n_nodes]
