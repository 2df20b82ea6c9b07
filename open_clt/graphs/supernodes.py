"""Supernodes: groups of nodes with the same role, and the graph between groups.

A user makes a supernode from a list of nodes or from a query (``supernode``). ``suggest_supernodes`` joins features
with similar edges and similar decoders, the most similar first, as long as no cycle arises. Grouping follows Ameisen
et al. (2025), "Grouping features into supernodes".
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

from open_clt.config.arguments import checked_arguments
from open_clt.errors import AttributionError
from open_clt.graphs import influence as paths
from open_clt.graphs.edges import Edges
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.influence import GraphScores, InfluenceGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import NodeQuery, find_nodes, node_numbers
from open_clt.html_repr import html_repr
from open_clt.memory import check_memory
from open_clt.short_repr import short_repr
from open_clt.transcoders.directions import decoder_directions
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder

_MOST_FEATURES = 2000
"""Most features that ``suggest_supernodes`` accepts: it compares all pairs, which takes minutes for more features."""


@final
@dataclass(frozen=True)
class Supernode:
    """A group of nodes that counts as one node."""

    label: str
    """Name of the group."""
    members: tuple[str, ...]
    """Ids of the nodes in the group."""

    __repr__ = short_repr


@final
@dataclass(frozen=True, eq=False)
class GroupedGraph:
    """A graph between groups of nodes; each node outside the supernodes is a group with one member."""

    graph: AttributionGraph
    """The graph whose nodes are grouped."""
    groups: tuple[Supernode, ...]
    """The groups, in the order of their first nodes in the graph."""
    group_of: Int[Tensor, "node"]
    """Index of each node's group."""
    edges: Edges
    """Edges between groups, by their indices; the signed weights of all edges between two groups are added."""
    weight: Float[Tensor, "group"]
    """Weight of each output in the influence, summed over members."""
    omitted: Float[Tensor, "group"]
    """Absolute weight of the inputs that pruning removed, summed over members."""
    tokens: Bool[Tensor, "group"]
    """Mask of the groups that have token embeddings only."""
    errors: Bool[Tensor, "group"]
    """Mask of the groups that have an error node; such a group counts as an error as a whole."""

    def influence(self) -> Float[Tensor, "group"]:
        """Return the influence of each group on the outputs; raises AttributionError if the groups form a cycle."""
        return paths.influence(self.influence_graph).float()

    def scores(self) -> GraphScores:
        """Return the replacement and completeness scores; edges within a group do not count.

        Raises AttributionError if the groups form a cycle.
        """
        return paths.scores(self.influence_graph, self.tokens, self.errors)

    @cached_property
    def influence_graph(self) -> InfluenceGraph:
        """The values that influence is computed from; raises AttributionError if the groups form a cycle."""
        return InfluenceGraph(self.edges, self.weight, self.omitted, self._level())

    def _level(self) -> Int[Tensor, "group"]:
        """Return the length of the longest path to each group; unlike a layer, it rises along every edge."""
        level = torch.zeros(len(self.groups), dtype=torch.long)
        target, source, _ = self.edges
        for _ in self.groups:
            higher = level.scatter_reduce(0, target, level[source] + 1, "amax")
            if torch.equal(higher, level):
                return level
            level = higher
        raise AttributionError("The groups form a cycle, so influence is not defined; split one of the supernodes.")

    __repr__ = short_repr
    _repr_html_ = html_repr


def supernode(graph: AttributionGraph, label: str, query: NodeQuery) -> Supernode:
    """Make a supernode of the nodes that meet a query; raises AttributionError if there are none."""
    members = find_nodes(graph, query)
    if not members:
        raise AttributionError(f"No node meets the query of supernode {label!r}; loosen one of its conditions.")
    return Supernode(label, tuple(members))


def group(graph: AttributionGraph, supernodes: Sequence[Supernode]) -> GroupedGraph:
    """Make the graph between groups.

    Raises AttributionError if a supernode is empty or has a node that the graph lacks, if a node is in two supernodes,
    or if two groups have the same label.
    """
    ids = graph.ids()
    supernodes = _with_our_ids(graph, supernodes)
    _check(ids, supernodes)
    supernode_of = {node: each for each in supernodes for node in each.members}
    groups = list(dict.fromkeys(supernode_of.get(node) or Supernode(node, (node,)) for node in ids))
    index_of = {node: index for index, each in enumerate(groups) for node in each.members}
    group_of = torch.tensor([index_of[node] for node in ids], dtype=torch.long)
    tokens, errors = (graph.of_kind(kind) for kind in (NodeKind.EMBEDDING, NodeKind.ERROR))
    return GroupedGraph(
        graph=graph,
        groups=tuple(groups),
        group_of=group_of,
        edges=_edges_between(graph.edges, group_of, len(groups)),
        weight=_sums(graph.nodes.weight, group_of, len(groups)),
        omitted=_sums(graph.nodes.omitted, group_of, len(groups)),
        tokens=_sums((~tokens).long(), group_of, len(groups)) == 0,
        errors=_sums(errors.long(), group_of, len(groups)) > 0,
    )


@checked_arguments
def suggest_supernodes(
    graph: AttributionGraph,
    transcoder: Transcoder | None = None,
    *,
    min_similarity: float = 0.5,
    decoder_share: float = 0.5,
) -> list[Supernode]:
    """Suggest groups of similar features in a pruned graph, the most influential group first.

    The similarity of two features is the cosine of their edges (their shares in the inputs of nodes). With a
    transcoder, the cosine of their decoders counts for ``decoder_share`` of the similarity. Groups are joined by
    average linkage while their similarity is at least ``min_similarity`` and no cycle arises. The same graph always
    gives the same groups. Raises AttributionError if the graph has too many features or a setting is out of range.
    """
    if not 0 <= decoder_share <= 1:
        raise AttributionError(f"decoder_share is {decoder_share}; it must lie between 0 and 1.")
    if not -1 <= min_similarity <= 1:
        raise AttributionError(f"min_similarity is {min_similarity}; it must lie between -1 and 1.")
    features = graph.of_kind(NodeKind.FEATURE).nonzero().flatten()
    if len(features) > _MOST_FEATURES:
        raise AttributionError(f"The graph has {len(features)} features; prune it to {_MOST_FEATURES} at most.")
    similarity, reaches = _edge_similarity(graph, features)
    if transcoder is not None:
        columns = graph.nodes.layer[features].tolist(), graph.nodes.index[features].tolist()
        transcoder_features = [Feature(*column) for column in zip(*columns, strict=True)]
        directions = functional.normalize(decoder_directions(transcoder, transcoder_features).double())
        similarity = (1 - decoder_share) * similarity + decoder_share * directions @ directions.T
    clusters = [features[members] for members in _clusters(similarity, reaches, min_similarity) if len(members) > 1]
    influence = graph.influence()
    clusters.sort(key=lambda rows: -float(influence[rows].sum()))
    labels = _distinct([_label(graph, int(rows[influence[rows].argmax()])) for rows in clusters])
    ids = graph.ids()
    return [
        Supernode(label, tuple(ids[row] for row in rows.tolist())) for label, rows in zip(labels, clusters, strict=True)
    ]


def _with_our_ids(graph: AttributionGraph, supernodes: Sequence[Supernode]) -> list[Supernode]:
    """Return the same supernodes, with the ids of their members translated to our notation."""
    ids, names = graph.ids(), {name for each in supernodes for name in each.members}
    our_id = {name: ids[row] for name, row in zip(names, node_numbers(graph, names).tolist(), strict=True)}
    return [replace(each, members=tuple(our_id[name] for name in each.members)) for each in supernodes]


def _check(ids: Sequence[str], supernodes: Sequence[Supernode]) -> None:
    """Check that no node is in two supernodes, that labels are unique, and that every supernode has a member."""
    members = [node for each in supernodes for node in each.members]
    repeated = [node for node, count in Counter(members).items() if count > 1]
    if repeated:
        raise AttributionError(f"Node {repeated[0]!r} is in two supernodes; a node belongs to one group at most.")
    labels = Counter([each.label for each in supernodes] + sorted(set(ids) - set(members)))
    label, count = labels.most_common(1)[0] if labels else ("", 0)
    if count > 1:
        raise AttributionError(f"Two groups have the label {label!r}; give every supernode a different label.")
    if empty := [each.label for each in supernodes if not each.members]:
        raise AttributionError(f"Supernode {empty[0]!r} has no members; give it at least one node.")


def _sums(values: Tensor, group_of: Tensor, n_groups: int) -> Tensor:
    """Add up the values of each group's nodes."""
    return torch.zeros(n_groups, dtype=values.dtype).index_add(0, group_of, values)


def _edges_between(edges: Edges, group_of: Tensor, n_groups: int) -> Edges:
    """Add up the edges between groups; edges within a group are left out."""
    target, source = group_of[edges.target], group_of[edges.source]
    between = target != source
    keys, edge_of = (target * n_groups + source)[between].unique(return_inverse=True)
    weight = torch.zeros(len(keys), dtype=edges.weight.dtype).index_add(0, edge_of, edges.weight[between])
    return Edges(keys // n_groups, keys % n_groups, weight)


def _edge_similarity(graph: AttributionGraph, features: Tensor) -> tuple[Float[Tensor, "some some"], Tensor]:
    """Return the cosines of the features' edges, and which feature reaches which over any path between features."""
    needed = graph.n_nodes**2 * torch.double.itemsize
    check_memory(f"Comparing {graph.n_nodes:,} nodes", needed, "prune the graph first, or prune it further")
    shares = torch.zeros(graph.n_nodes, graph.n_nodes, dtype=torch.double)
    edges = graph.edges
    shares[edges.target, edges.source] = graph.influence_graph.shares * edges.weight.sign()
    # Inputs and outputs have the same weight, however many there are of each.
    sides = [functional.normalize(side, dim=1) for side in (shares[features], shares.T[features])]
    profile = functional.normalize(torch.cat(sides, dim=1), dim=1)
    reaches = (shares[features][:, features] != 0).T
    while True:
        longer = reaches | ((reaches.float() @ reaches.float()) > 0)
        if torch.equal(longer, reaches):
            return profile @ profile.T, reaches
        reaches = longer


def _clusters(
    similarity: Float[Tensor, "some some"], reaches: Bool[Tensor, "some some"], min_similarity: float
) -> list[list[int]]:
    """Average linkage: join the two most similar groups, unless a path leads from one to the other through a third."""
    members = [[index] for index in range(len(similarity))]
    similarity, reaches = similarity.clone().fill_diagonal_(-torch.inf), reaches.clone()
    allowed = similarity.clone()
    while allowed.numel() and float(allowed.max()) >= min_similarity:
        first, second = sorted(divmod(int(allowed.argmax()), len(members)))
        if bool((reaches[first] & reaches[:, second]).any() or (reaches[second] & reaches[:, first]).any()):
            allowed[first, second] = allowed[second, first] = -torch.inf
            continue
        sizes = len(members[first]), len(members[second])
        average = (sizes[0] * similarity[first] + sizes[1] * similarity[second]) / sum(sizes)
        members[first] += members[second]
        members[second] = []
        for matrix in (similarity, allowed):
            matrix[first] = matrix[:, first] = average
            matrix[second] = matrix[:, second] = -torch.inf
        _join_reach(reaches, first, second)
    return [sorted(group) for group in members]


def _join_reach(reaches: Bool[Tensor, "some some"], first: int, second: int) -> None:
    """Merge the second group into the first: a group that reaches one of them now reaches what either reaches."""
    sources, targets = reaches[:, first] | reaches[:, second], reaches[first] | reaches[second]
    sources[[first, second]] = targets[[first, second]] = False
    reaches |= sources[:, None] & targets
    reaches[:, first], reaches[first] = sources, targets
    reaches[second] = reaches[:, second] = False


def _label(graph: AttributionGraph, row: int) -> str:
    """Return the label of the feature in one row of the graph."""
    feature = Feature(int(graph.nodes.layer[row]), int(graph.nodes.index[row]))
    return graph.labels.get(feature, str(feature))


def _distinct(labels: list[str]) -> list[str]:
    """Return the same labels, with a number added to the second and later uses of one."""
    uses: Counter[str] = Counter()
    distinct: list[str] = []
    for label in labels:
        uses[label] += 1
        distinct.append(label if uses[label] == 1 else f"{label} ({uses[label]})")
    return distinct
