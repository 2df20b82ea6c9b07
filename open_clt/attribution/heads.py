"""Which attention heads carry an edge.

Every path from a source to a target moves between positions through attention heads, or through none. Sorted by the
last head on the way, the one that hands the source's contribution to the target's position, the paths of an edge are

    edge = (no head) + sum over layers and heads (last head)

and the parts add up to the edge exactly, because all that is not linear is frozen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.activations.language_model import LanguageModel
from open_clt.activations.linear_path import read_linear_path
from open_clt.attribution.adjoint import Seeds, add_skipped, before, feature_seeds, read_by, walk
from open_clt.attribution.graph import AttributionGraph
from open_clt.attribution.nodes import Node, NodeKind, node_id
from open_clt.attribution.sources import Sources, find_sources
from open_clt.attribution.targets import TokenLogits, resolve_targets
from open_clt.errors import AttributionError
from open_clt.models.cross_layer import CrossLayerTranscoder


class HeadContributions(NamedTuple):
    """The edges into one target, by the last attention head on the way; the parts of an edge add up to it."""

    heads: Float[Tensor, "layer head node"]
    direct: Float[Tensor, "node"]
    """What reaches the target through no head: its own position's residual stream, and constants."""


@torch.no_grad()
def head_contributions(
    model: LanguageModel, transcoder: CrossLayerTranscoder, graph: AttributionGraph, target: int
) -> HeadContributions:
    """Split every edge into node ``target`` of a graph by attention layer and head.

    ``model`` and ``transcoder`` are those that the graph was made with. Raises AttributionError if the graph is pruned,
    or if the node is neither a feature nor a logit.
    """
    node = graph.node(target)
    if not bool(graph.nodes.cumulative.isnan().all()):
        raise AttributionError("The graph is pruned; ask the graph that it was pruned from for head contributions.")
    path = read_linear_path(model, torch.tensor(graph.info.tokens, device=model.device), transcoder.config.input_hook)
    sources = find_sources(path, transcoder, first=int(graph.info.settings.get("skip_first_position", True)))
    seed = _seed(model, sources, node)
    direct = sources.errors.new_zeros(1, node.position + 1, path.d_model)
    direct[0, node.position] = seed.cotangent[0]
    level = int(seed.level)
    entry = torch.tensor([before(level) if level == model.n_layers else read_by(level)], device=model.device)
    handed = _handed_on(sources, direct[0], level)
    levels = torch.tensor(sorted(handed, reverse=True), device=model.device)
    parts = torch.cat([handed[number] for number in levels.tolist()])
    rows = walk(sources, parts, before(levels.repeat_interleave(model.n_heads)))
    alone = walk(sources, direct, entry, through_attention=False)
    alone[:, sources.columns.biases][0, model.n_layers * path.n_positions + node.position] += seed.bias[0]
    columns = _nodes_of_columns(graph, sources)
    heads = rows.new_zeros(model.n_layers, model.n_heads, graph.n_nodes)
    heads[levels] = _by_node(rows, columns, graph.n_nodes).unflatten(0, (-1, model.n_heads))
    return HeadContributions(heads.cpu(), _by_node(alone, columns, graph.n_nodes)[0].cpu())


def _seed(model: LanguageModel, sources: Sources, node: Node) -> Seeds:
    if node.kind is NodeKind.FEATURE:
        facts = (torch.tensor([fact], device=model.device) for fact in (node.layer, node.position, node.index))
        return feature_seeds(sources, *facts)
    if node.kind is NodeKind.LOGIT:
        wanted = TokenLogits(tokens=(node.index,), position=node.position)
        return resolve_targets(model, sources, [wanted]).seeds
    raise AttributionError(
        f"{node.id} is of kind {node.kind.name.lower()}; head contributions need a feature or logit."
    )


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
    """The node that each column adds to: an unexplored feature to its error; what the graph lacks, past the end."""
    number = {name: i for i, name in enumerate(graph.ids())}
    table = sources.nodes()
    nodes = [number.get(name, graph.n_nodes) for name in table.ids()]
    for column in range(sources.features.value.shape[0]):
        if nodes[column] == graph.n_nodes:
            error = node_id(NodeKind.ERROR, int(table.layer[column]), int(table.position[column]), -1)
            nodes[column] = number[error]
    return torch.tensor(nodes, device=sources.features.layer.device)


def _by_node(
    rows: Float[Tensor, "target column"], columns: Int[Tensor, "column"], n_nodes: int
) -> Float[Tensor, "target node"]:
    return rows.new_zeros(rows.shape[0], n_nodes + 1).index_add_(1, columns, rows)[:, :n_nodes]
