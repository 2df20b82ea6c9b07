"""The consensus of several graphs: one graph of averages, with the frequency and spread of its nodes and edges.

The graphs may be those of paraphrases, of a template's prompts, or of one prompt with other budgets, prunings or
targets. Nodes are the same if they have the same kind, layer and feature, and their positions have the same role
(``alignment/position_roles.py``). Features of different transcoders have no common numbers; ``with_matched_features``
renames those whose decoders agree.

The weight of an edge in one graph is its signed share in the absolute inputs of its target, so that prompts count
alike. The consensus has its mean over the graphs that have the target. So a row still adds up to its total, which is
the mean of the totals in the same unit. Where signs differ between graphs, the weights that cancel count as omitted.

The stability score of a graph is the weighted overlap (Ruzicka similarity) of its features' influence ``p`` with the
mean ``q`` of the other graphs', ``sum(min(p, q)) / sum(max(p, q))``: 1 if all graphs agree, 0 if none of their features
are the same. The frequencies follow the idea of bootstrapped circuits (Nikankin et al., 2025; Méloux et al., 2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from open_clt.config.arguments import Count, Seed, checked_arguments
from open_clt.errors import AttributionError
from open_clt.graphs.alignment.aligned_nodes import LEAST, AlignedNodes
from open_clt.graphs.alignment.averages import average_edges, average_nodes
from open_clt.graphs.alignment.position_roles import PositionRoles, position_roles
from open_clt.graphs.consensus_table import CORE, ConsensusTable
from open_clt.graphs.edges import Edges
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.info import GraphInfo
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import answer_row
from open_clt.graphs.targets import Target
from open_clt.transcoders.feature import Feature

_OUTPUTS = (NodeKind.LOGIT, NodeKind.TARGET)


@checked_arguments
def consensus(
    graphs: Sequence[AttributionGraph],
    *,
    template: str | Sequence[str] | None = None,
    resamples: Count = 500,
    seed: Seed = 0,
) -> AttributionGraph:
    """Average several graphs, whose nodes are aligned by kind, layer, feature and the role of their position.

    ``template`` names the slots of the prompts, such as ``The capital of {state} is``; paraphrases have a template
    each. Without it, positions count from both ends of the prompts. Prompts that have the same likeliest output keep
    all outputs, aligned by token; otherwise only the likeliest output of each graph counts, as the output ``answer``.
    If a feature is active at several tokens of a slot, its activations, rows and influence are added. ``resamples`` is
    the number of bootstrap samples of the intervals; the same ``seed`` gives the same intervals.

    The result is an ordinary graph, which can be pruned, drawn, exported and saved, with a ``ConsensusTable`` in
    ``consensus``. Its positions are roles; its token ids are those of the first prompt that has the role, its prompt is
    the template, and activations are means over the graphs that have the node. Raises AttributionError for fewer than
    two graphs, and for graphs that cannot be aligned: of other models, transcoders, settings or kinds of target.
    """
    _check(graphs)
    templates = _templates(template)
    roles = position_roles([graph.info for graph in graphs], templates)
    graphs, same_answer = _comparable(graphs)
    aligned = AlignedNodes.of(graphs, roles, same_answer)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(graphs), np.full(len(graphs), 1 / len(graphs)), size=resamples).astype(np.float64)
    nodes, node_columns = average_nodes(aligned, draws)
    edges, omitted, edge_columns = average_edges(aligned, draws)
    nodes = replace(nodes, **omitted)
    table = ConsensusTable(
        prompts=tuple(graph.info.prompt for graph in graphs),
        answers=tuple(graph.info.target_names[answer_row(graph) - graph.n_nodes] for graph in graphs),
        stability=_stability(aligned.influence[:, nodes.kind.numpy() == NodeKind.FEATURE]),
        **node_columns,
        **edge_columns,
    )
    info = _info(graphs, roles, aligned, " / ".join(templates), same_answer)
    labels = {feature: label for graph in reversed(graphs) for feature, label in graph.labels.items()}
    return AttributionGraph(nodes, edges, info, labels, table)


@checked_arguments
def frequencies(
    graphs: Sequence[AttributionGraph], *, template: str | Sequence[str] | None = None
) -> list[tuple[Float[Tensor, "node"], Float[Tensor, "edge"]]]:
    """Return, for the nodes and for the edges of each graph, the share of the graphs that have them.

    The arguments and errors are those of ``consensus``.
    """
    _check(graphs)
    roles = position_roles([graph.info for graph in graphs], _templates(template))
    _, same_answer = _comparable(graphs)
    aligned = AlignedNodes.of(graphs, roles, same_answer)
    of_node = torch.from_numpy(aligned.present.mean(0)).float()
    keys = [
        row[graph.edges.target.numpy()] * aligned.n_nodes + row[graph.edges.source.numpy()]
        for graph, row in zip(graphs, aligned.rows, strict=True)
    ]
    union, count = np.unique(np.concatenate([np.unique(key) for key in keys]), return_counts=True)
    of_edge = torch.from_numpy(count / len(graphs)).float()
    return [
        (of_node[torch.from_numpy(row)], of_edge[torch.from_numpy(np.searchsorted(union, key))])
        for row, key in zip(aligned.rows, keys, strict=True)
    ]


@checked_arguments
def core(graph: AttributionGraph, frequency: float = CORE) -> AttributionGraph:
    """Return the nodes and edges of a consensus that at least a share ``frequency`` of its graphs have.

    Raises AttributionError if the graph is not a consensus, or if ``frequency`` is not above 0 and at most 1.
    """
    nodes, edges = _core_masks(graph, frequency)
    return graph.part(nodes, edges)


@checked_arguments
def contingent(graph: AttributionGraph, frequency: float = CORE) -> AttributionGraph:
    """Return the nodes and edges of a consensus that fewer of its graphs have, with the nodes at both ends of an edge.

    Raises AttributionError as ``core`` does.
    """
    core_nodes, core_edges = _core_masks(graph, frequency)
    nodes = ~core_nodes
    nodes[graph.edges.target[~core_edges]] = True
    nodes[graph.edges.source[~core_edges]] = True
    return graph.part(nodes, ~core_edges)


@checked_arguments
def with_matched_features(
    graph: AttributionGraph, matches: Mapping[Feature, Feature], like: AttributionGraph
) -> AttributionGraph:
    """Rename the features of a graph to those of another transcoder, so that it can be aligned with the graph ``like``.

    ``matches`` are those of ``transcoders.directions.match_features``. A feature without a match keeps a number of its
    own, above those of all features in both graphs and in ``matches``, so that it is aligned with none of them.
    """
    nodes, index = graph.nodes, graph.nodes.index.clone()
    chosen = graph.of_kind(NodeKind.FEATURE)
    largest = [int(g.nodes.index[g.of_kind(NodeKind.FEATURE)].max()) for g in (graph, like) if bool(chosen.any())]
    unmatched = 1 + max([*largest, *(feature.index for pair in matches.items() for feature in pair)], default=0)
    for row in chosen.nonzero().flatten().tolist():
        own = Feature(int(nodes.layer[row]), int(nodes.index[row]))
        index[row] = matches[own].index if own in matches else unmatched + own.index
        if own in matches and matches[own].layer != own.layer:
            raise AttributionError(f"The feature {own} is matched with {matches[own]}; both must have the same layer.")
    labels = {matches[feature]: label for feature, label in graph.labels.items() if feature in matches}
    info = replace(graph.info, transcoder_hash=like.info.transcoder_hash)
    return _sorted(replace(graph, nodes=replace(nodes, index=index), info=info, labels=labels))


def _templates(template: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if template is None else (template,) if isinstance(template, str) else tuple(template)


def _sorted(graph: AttributionGraph) -> AttributionGraph:
    """The same graph, with its features in the order of the table of nodes."""
    nodes = graph.nodes
    keys = [c.where(nodes.kind == NodeKind.FEATURE, 0) for c in (nodes.index, nodes.position, nodes.layer)]
    order = torch.from_numpy(np.lexsort([*(key.numpy() for key in keys), nodes.kind.numpy()]))
    new = torch.empty_like(order)
    new[order] = torch.arange(len(order))
    edges = Edges(new[graph.edges.target], new[graph.edges.source], graph.edges.weight)
    return replace(graph, nodes=nodes[order], edges=edges)


def _core_masks(graph: AttributionGraph, frequency: float) -> tuple[Bool[Tensor, "node"], Bool[Tensor, "edge"]]:
    if graph.consensus is None:
        raise AttributionError("The graph is not a consensus, so it has no frequencies; make one with consensus().")
    if not 0 < frequency <= 1:
        raise AttributionError(f"frequency is {frequency}; it must be above 0 and at most 1.")
    table, rounding = graph.consensus, 1e-6
    return table.frequency >= frequency - rounding, table.edge_frequency >= frequency - rounding


def _check(graphs: Sequence[AttributionGraph]) -> None:
    """Raise AttributionError if the graphs cannot be aligned."""
    if len(graphs) < 2:
        raise AttributionError(f"A consensus needs at least two graphs; {len(graphs)} is given.")
    first = graphs[0].info
    for graph in graphs:
        info = graph.info
        if graph.consensus is not None:
            raise AttributionError("A graph of the list is itself a consensus; give the graphs that it was made of.")
        for name in ("model", "n_layers", "compatible"):
            if getattr(info, name) != getattr(first, name):
                values = f"{getattr(first, name)!r} and {getattr(info, name)!r}"
                raise AttributionError(
                    f"The graphs of {first.prompt!r} and {info.prompt!r} have different values of {name}: {values}."
                )
        if None not in (hashes := {first.transcoder_hash, info.transcoder_hash}) and len(hashes) > 1:
            raise AttributionError(
                "The graphs are those of different transcoders, whose features have no common numbers; rename the "
                "features with with_matched_features first."
            )


def _comparable(graphs: Sequence[AttributionGraph]) -> tuple[list[AttributionGraph], bool]:
    """The graphs with the outputs that can be compared: all of them if the first one is the same, else the first one.

    A token is first by its probability, another target by its place.
    """
    ordered = [answer_row(graph) for graph in graphs]
    kinds = {int(graph.nodes.kind[row]) for graph, row in zip(graphs, ordered, strict=True)}
    if len(kinds) > 1:
        raise AttributionError("Some graphs explain tokens and others explain other targets; use one kind of target.")
    answers = {
        (graph.info.target_names[row - graph.n_nodes], int(graph.nodes.index[row]))
        for graph, row in zip(graphs, ordered, strict=True)
    }
    if len(answers) == 1:
        return list(graphs), True
    return [_only(graph, row) for graph, row in zip(graphs, ordered, strict=True)], False


def _only(graph: AttributionGraph, output: int) -> AttributionGraph:
    """The same graph without its other outputs."""
    keeps = ~graph.of_kind(*_OUTPUTS)
    keeps[output] = True
    return graph.part(keeps)


def _stability(influence: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """The stability score of each graph, from the influence of the features in each graph."""
    shares = influence / np.maximum(influence.sum(1, keepdims=True), LEAST)
    others = (shares.sum(0) - shares) / (len(shares) - 1)
    largest = np.maximum(shares, others).sum(1)
    overlap = np.minimum(shares, others).sum(1)
    return tuple(np.clip(np.where(largest > 0, overlap / np.maximum(largest, LEAST), 1.0), 0, 1).tolist())


def _info(
    graphs: Sequence[AttributionGraph], roles: PositionRoles, aligned: AlignedNodes, template: str, same_answer: bool
) -> GraphInfo:
    """The description of the consensus: roles in place of tokens, and the settings that all graphs share."""
    token_of: Mapping[int, int] = {
        role: token
        for graph, of_position in zip(reversed(graphs), reversed(roles.of), strict=True)
        for role, token in zip(reversed(of_position), reversed(graph.info.tokens), strict=True)
    }
    kinds, numbers = aligned.keys[:, 0], aligned.keys[:, 3]
    outputs = numbers[np.isin(kinds, _OUTPUTS)].tolist()
    infos = [graph.info for graph in graphs]
    settings = infos[0].settings
    targets: tuple[Target | None, ...] = settings.targets if all(i.settings == settings for i in infos) else ()
    prunings = {info.settings.pruning for info in infos}
    budgets = {info.settings.max_feature_nodes for info in infos}
    known = [info.influence_left_out for info in infos if info.influence_left_out is not None]
    return replace(
        infos[0],
        prompt=template or _prompt(infos),
        tokens=tuple(token_of[role] for role in range(len(roles.names))),
        token_strings=roles.names,
        target_names=tuple(aligned.names[number] for number in outputs),
        n_active_features=round(float(np.mean([info.n_active_features for info in infos]))),
        settings=replace(
            settings,
            targets=targets if same_answer else (),
            max_feature_nodes=budgets.pop() if len(budgets) == 1 else None,
            pruning=prunings.pop() if len(prunings) == 1 else None,
        ),
        faithfulness=None,
        influence_left_out=float(np.mean(known)) if len(known) == len(infos) else None,
        transcoder_hash=next((info.transcoder_hash for info in infos if info.transcoder_hash), None),
    )


def _prompt(infos: Sequence[GraphInfo]) -> str:
    """A text that stands for several prompts."""
    prompts = {info.prompt for info in infos}
    first = infos[0].prompt
    return first if len(prompts) == 1 else f"{first} (and {len(infos) - 1} more)"
