"""Supernodes: groups of nodes that do one thing, and the graph between groups.

A supernode is made by hand, from a query, or suggested: features whose edges go the same ways and whose decoders point
the same way are joined, most alike first, as long as no loop arises. Grouping follows Ameisen et al. (2025), "Grouping
features into supernodes".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.errors import AttributionError
from open_clt.graphs import influence as paths
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.influence import Edges, GraphScores, InfluenceGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import NodeQuery, find_nodes, node_numbers
from open_clt.transcoders.directions import decoder_directions
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder

_MOST_FEATURES = 2000
"""Suggesting compares all pairs: a larger graph takes minutes, and no reader could follow it."""


@final
@dataclass(frozen=True)
class Supernode:
    """Nodes that count as one, by their ids."""

    label: str
    members: tuple[str, ...]


@final
@dataclass(frozen=True, eq=False)
class GroupedGraph:
    """A graph between groups: every supernode, and every other node as a group of its own, in the graph's order."""

    graph: AttributionGraph
    """What was grouped."""
    groups: tuple[Supernode, ...]
    group_of: Int[Tensor, "node"]
    """Number of each node's group."""
    edges: Edges
    """Numbered by group; weights of the edges between two groups add up, with their signs."""
    weight: Float[Tensor, "group"]
    """Weight of an output in the influence, summed over members."""
    omitted: Float[Tensor, "group"]
    tokens: Bool[Tensor, "group"]
    """Groups of token embeddings alone."""
    errors: Bool[Tensor, "group"]
    """Groups with an error in them: what is unexplained in one member is in all."""

    def influence(self) -> Float[Tensor, "group"]:
        """Influence of each group on the outputs; raises AttributionError where the groups make a loop."""
        return paths.influence(self.influence_graph).float()

    def scores(self) -> GraphScores:
        """Replacement and completeness; edges within a group do not count. AttributionError where there is a loop."""
        return paths.scores(self.influence_graph, self.tokens, self.errors)

    @cached_property
    def influence_graph(self) -> InfluenceGraph:
        """What influence is computed from; raises AttributionError where the groups make a loop."""
        return InfluenceGraph(self.edges, self.weight, self.omitted, self._level())

    def _level(self) -> Int[Tensor, "group"]:
        """Length of the longest path to each group: groups span layers, but edges always lead to a higher level."""
        level = torch.zeros(len(self.groups), dtype=torch.long)
        for _ in self.groups:
            higher = level.scatter_reduce(0, self.edges.target, level[self.edges.source] + 1, "amax")
            if torch.equal(higher, level):
                return level
            level = higher
        raise AttributionError("The groups make a loop, so influence is not defined; split one of the supernodes.")


def supernode(graph: AttributionGraph, label: str, query: NodeQuery) -> Supernode:
    """The nodes that meet a query, as one; raises AttributionError if there are none."""
    members = find_nodes(graph, query)
    if not members:
        raise AttributionError(f"No node meets the query of {label!r}; loosen one of its conditions.")
    return Supernode(label, tuple(members))


def group(graph: AttributionGraph, supernodes: Sequence[Supernode]) -> GroupedGraph:
    """Join the members of each supernode; raises AttributionError if a node is missing or in two of them."""
    ids = graph.ids()
    supernodes = _with_our_ids(graph, supernodes)
    _check(ids, supernodes)
    of_member = {name: joined for joined in supernodes for name in joined.members}
    groups = list(dict.fromkeys(of_member.get(name) or Supernode(name, (name,)) for name in ids))
    number = {name: place for place, joined in enumerate(groups) for name in joined.members}
    of_node = torch.tensor([number[name] for name in ids], dtype=torch.long)
    tokens, errors = (graph.of_kind(kind) for kind in (NodeKind.EMBEDDING, NodeKind.ERROR))
    return GroupedGraph(
        graph=graph,
        groups=tuple(groups),
        group_of=of_node,
        edges=_added(graph.edges, of_node, len(groups)),
        weight=_sums(graph.nodes.weight, of_node, len(groups)),
        omitted=_sums(graph.nodes.omitted, of_node, len(groups)),
        tokens=_sums((~tokens).long(), of_node, len(groups)) == 0,
        errors=_sums(errors.long(), of_node, len(groups)) > 0,
    )


def suggest_supernodes(
    graph: AttributionGraph,
    transcoder: Transcoder | None = None,
    *,
    min_similarity: float = 0.5,
    decoder_share: float = 0.5,
) -> list[Supernode]:
    """Group the features of a pruned graph that are alike, most influential groups first; always the same ones.

    Two features are as alike as the cosine of their edges (shares of what they read and of what they feed) and, if
    there is a transcoder, the cosine of their decoders, which counts for ``decoder_share``. Groups are joined by
    average linkage while they are at least ``min_similarity`` alike and no loop arises. Raises AttributionError if
    the graph is too large, or a setting is out of range.
    """
    if not (0 <= decoder_share <= 1 and -1 <= min_similarity <= 1):
        raise AttributionError(
            f"decoder_share is {decoder_share} and min_similarity {min_similarity}; "
            "they must lie between 0 and 1, and between -1 and 1."
        )
    features = graph.of_kind(NodeKind.FEATURE).nonzero().flatten()
    if len(features) > _MOST_FEATURES:
        raise AttributionError(f"The graph has {len(features)} features; prune it to {_MOST_FEATURES} at most.")
    alike, reaches = _edge_similarity(graph, features)
    if transcoder is not None:
        columns = graph.nodes.layer[features].tolist(), graph.nodes.index[features].tolist()
        chosen = [Feature(*column) for column in zip(*columns, strict=True)]
        directions = functional.normalize(decoder_directions(transcoder, chosen).double())
        alike = (1 - decoder_share) * alike + decoder_share * directions @ directions.T
    found = [features[members] for members in _clusters(alike, reaches, min_similarity) if len(members) > 1]
    influence = graph.influence()
    found.sort(key=lambda members: -float(influence[members].sum()))
    labels = _distinct([_label(graph, int(members[influence[members].argmax()])) for members in found])
    names = graph.ids()
    return [
        Supernode(label, tuple(names[int(member)] for member in members))
        for label, members in zip(labels, found, strict=True)
    ]


def _with_our_ids(graph: AttributionGraph, supernodes: Sequence[Supernode]) -> list[Supernode]:
    """The same supernodes, whose members may be named in any notation that is read."""
    ids, names = graph.ids(), {name for joined in supernodes for name in joined.members}
    ours = {name: ids[row] for name, row in zip(names, node_numbers(graph, names).tolist(), strict=True)}
    return [replace(joined, members=tuple(ours[name] for name in joined.members)) for joined in supernodes]


def _check(ids: Sequence[str], supernodes: Sequence[Supernode]) -> None:
    members = [name for joined in supernodes for name in joined.members]
    twice = [name for name, count in Counter(members).items() if count > 1]
    if twice:
        raise AttributionError(f"Node {twice[0]!r} is in two supernodes; a node belongs to one group at most.")
    names = Counter([joined.label for joined in supernodes] + sorted(set(ids) - set(members)))
    label, count = names.most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise AttributionError(f"Two groups are called {label!r}; give every supernode a name of its own.")
    if not all(joined.members for joined in supernodes):
        raise AttributionError("A supernode has no members; give it at least one node.")


def _sums(values: Tensor, of_node: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=values.dtype).index_add(0, of_node, values)


def _added(edges: Edges, of_node: Tensor, count: int) -> Edges:
    """Edges between groups; those within a group are left out."""
    target, source = of_node[edges.target], of_node[edges.source]
    outer = target != source
    keys, place = (target * count + source)[outer].unique(return_inverse=True)
    weight = torch.zeros(len(keys), dtype=edges.weight.dtype).index_add(0, place, edges.weight[outer])
    return Edges(keys // count, keys % count, weight)


def _edge_similarity(graph: AttributionGraph, features: Tensor) -> tuple[Float[Tensor, "some some"], Tensor]:
    """How alike the inputs and outputs of features are, and which of them reach which over any path."""
    shares = torch.zeros(graph.n_nodes, graph.n_nodes, dtype=torch.double)
    edges = graph.edges
    shares[edges.target, edges.source] = graph.influence_graph.shares * edges.weight.sign()
    # Inputs and outputs count the same, however many there are of either.
    sides = [functional.normalize(side, dim=1) for side in (shares[features], shares.T[features])]
    profile = functional.normalize(torch.cat(sides, dim=1), dim=1)
    reaches = (shares[features][:, features] != 0).T
    while True:
        further = reaches | ((reaches.float() @ reaches.float()) > 0)
        if torch.equal(further, reaches):
            return profile @ profile.T, reaches
        reaches = further


def _clusters(
    similarity: Float[Tensor, "some some"], reaches: Bool[Tensor, "some some"], least: float
) -> list[list[int]]:
    """Average linkage: join the two groups most alike, unless a path leads from one to the other by a third."""
    members = [[place] for place in range(len(similarity))]
    similarity, reaches = similarity.clone().fill_diagonal_(-torch.inf), reaches.clone()
    allowed = similarity.clone()
    while allowed.numel() and float(allowed.max()) >= least:
        into, other = sorted(divmod(int(allowed.argmax()), len(members)))
        if bool((reaches[into] & reaches[:, other]).any() or (reaches[other] & reaches[:, into]).any()):
            allowed[into, other] = allowed[other, into] = -torch.inf
            continue
        sizes = len(members[into]), len(members[other])
        joined = (sizes[0] * similarity[into] + sizes[1] * similarity[other]) / sum(sizes)
        members[into] += members[other]
        members[other] = []
        for table in (similarity, allowed):
            table[into] = table[:, into] = joined
            table[other] = table[:, other] = -torch.inf
        _join_reach(reaches, into, other)
    return [sorted(group) for group in members]


def _join_reach(reaches: Bool[Tensor, "some some"], into: int, other: int) -> None:
    """Let one group stand for two: whatever reaches either now reaches whatever either reaches."""
    before, after = reaches[:, into] | reaches[:, other], reaches[into] | reaches[other]
    before[[into, other]] = after[[into, other]] = False
    reaches |= before[:, None] & after
    reaches[:, into], reaches[into] = before, after
    reaches[other] = reaches[:, other] = False


def _label(graph: AttributionGraph, number: int) -> str:
    feature = Feature(int(graph.nodes.layer[number]), int(graph.nodes.index[number]))
    return graph.labels.get(feature, str(feature))


def _distinct(labels: list[str]) -> list[str]:
    """The same labels, numbered where one comes again."""
    seen: Counter[str] = Counter()
    found: list[str] = []
    for label in labels:
        seen[label] += 1
        found.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return found
