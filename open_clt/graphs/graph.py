"""The attribution graph: nodes, signed edges, and what can be asked of them.

An edge ``source -> target`` is the part of the target's pre-activation (or logit) that the source contributes, in the
model whose attention patterns, norm denominators and active features are frozen at the prompt's values. In a complete
graph the edges into a node add up to its ``total``: nothing is left unexplained that is not shown as an error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from open_clt import files
from open_clt.errors import AttributionError, CheckpointError, ConfigError
from open_clt.graphs import influence as paths
from open_clt.graphs.influence import Edges, GraphScores, InfluenceGraph, Roles
from open_clt.graphs.info import GraphInfo, PruningSettings, info_json, read_info
from open_clt.graphs.nodes import Node, NodeId, NodeKind, NodeTable
from open_clt.transcoders.feature import Feature, labels_json, read_labels

logger = logging.getLogger(__name__)

FORMAT = files.FileFormat("open-clt-attribution-graph", newest=2)
"""Version 1 had other settings and other keys of labels; it is still read."""
_JSON = "graph.json"
_TENSORS = "graph.safetensors"
_VECTORS = "targets."
"""Stands before the number of a target whose vector is kept among the tensors."""
_ROUNDING = 1e-5
"""Share of a row that rounding in float32 may cost."""


class Completeness(NamedTuple):
    """How far rows are from adding up to their totals, at worst."""

    relative_to_row: float
    """Largest residual, over the sum of the row's absolute entries (what rounding scales with)."""
    relative_to_total: float
    """Largest residual, over the total itself (at least a thousandth of the row)."""
    node: int
    """The row that is furthest off, by the first measure."""

    @property
    def holds(self) -> bool:
        """Whether all rows add up, but for rounding."""
        return self.relative_to_row <= _ROUNDING


@final
@dataclass(frozen=True, eq=False)
class AttributionGraph:
    """Nodes, edges ``[target, source]``, where they come from, and labels that users gave to features."""

    nodes: NodeTable
    edges: Edges
    info: GraphInfo
    labels: Mapping[Feature, str] = field(default_factory=dict[Feature, str])
    """What users call features, wherever they are active."""

    @cached_property
    def influence_graph(self) -> InfluenceGraph:
        """What influence is computed from; the level of a node is its layer."""
        return InfluenceGraph(self.edges, self.nodes.weight, self.nodes.omitted, self.nodes.layer)

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return len(self.nodes)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return self.edges.weight.shape[0]

    def of_kind(self, *kinds: NodeKind) -> Bool[Tensor, "node"]:
        """Which nodes are of one of some kinds."""
        return torch.isin(self.nodes.kind, torch.tensor([int(kind) for kind in kinds]))

    def node(self, number: int) -> Node:
        """One node with its name and label."""
        kind, layer, position, index = self._facts(number)
        value, weight = float(self.nodes.value[number]), float(self.nodes.weight[number])
        label = self._label(number, kind, layer, position, index, weight)
        name = str(NodeId.of(kind, layer, position, index))
        return Node(name, kind, layer, position, index, value, weight, label)

    def ids(self) -> list[str]:
        """Ids of all nodes; ``nodes.py`` says how they are written."""
        return list(map(str, self.nodes.ids()))

    def with_labels(self, labels: Mapping[Feature, str]) -> AttributionGraph:
        """The same graph with more names for features."""
        return replace(self, labels={**self.labels, **labels})

    def adjacency(self) -> Float[Tensor, "target source"]:
        """All edges as a dense matrix; for small graphs."""
        dense = self.edges.weight.new_zeros(self.n_nodes, self.n_nodes)
        dense[self.edges.target, self.edges.source] = self.edges.weight
        return dense

    def influence(self) -> Float[Tensor, "node"]:
        """Influence of each node on the targets, over all paths; the targets' own weight is not counted."""
        return paths.influence(self.influence_graph).float()

    def path_lengths(self) -> Float[Tensor, "length"]:
        """Share of the influence of tokens that arrives over paths of 1, 2, ... edges."""
        tokens = self.of_kind(NodeKind.EMBEDDING)
        arriving = [step[tokens].sum() for step in paths.path_steps(self.influence_graph)]
        profile = torch.stack(arriving) if arriving else torch.zeros(0, dtype=torch.double)
        return (profile / profile.sum().clamp(min=1e-30)).float()

    def scores(self) -> GraphScores:
        """Replacement and completeness scores; what was pruned counts as error."""
        tokens, errors = self.of_kind(NodeKind.EMBEDDING), self.of_kind(NodeKind.ERROR)
        return paths.scores(self.influence_graph, tokens, errors)

    def prune(
        self, node_threshold: float = 0.8, edge_threshold: float = 0.98, *, keep_errors: bool | None = None
    ) -> AttributionGraph:
        """The part that matters: nodes with ``node_threshold`` of the influence, edges with ``edge_threshold`` of it.

        Tokens and targets always stay. Errors are measured by their edges alone (methods), or, as circuit-tracer does,
        pruned like features; ``keep_errors=None`` does the latter in compatible graphs. What is removed is remembered
        in ``omitted``, the thresholds in ``info.settings.pruning``. Raises AttributionError if one is not in (0, 1].
        """
        keep_errors = not self.info.compatible if keep_errors is None else keep_errors
        for name, threshold in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
            if not 0 < threshold <= 1:
                raise AttributionError(f"{name} is {threshold}; it must be above 0 and at most 1.")
        roles = Roles(
            always=self.of_kind(NodeKind.EMBEDDING, NodeKind.LOGIT, NodeKind.TARGET),
            exempt=self.of_kind(NodeKind.ERROR) & keep_errors,
            computed=self.of_kind(NodeKind.FEATURE),
        )
        kept = paths.prune(self.influence_graph, roles, node_threshold, edge_threshold)
        cumulative = paths.cumulative_influence(self.influence())[kept.nodes]
        pruned = self.part(kept.nodes, kept.edges)
        pruning = PruningSettings(node_threshold=node_threshold, edge_threshold=edge_threshold, keep_errors=keep_errors)
        info = replace(pruned.info, settings=replace(pruned.info.settings, pruning=pruning))
        return replace(pruned, nodes=replace(pruned.nodes, cumulative=cumulative), info=info)

    def part(self, nodes: Bool[Tensor, "node"], edges: Bool[Tensor, "edge"] | None = None) -> AttributionGraph:
        """Some nodes and the edges between them, of ``edges`` if given; ``omitted`` keeps what their rows lose."""
        inside = nodes[self.edges.target] & nodes[self.edges.source]
        inside = inside if edges is None else inside & edges
        left, gone = (Edges(*(column[chosen] for column in self.edges)) for chosen in (inside, ~inside))
        table = replace(
            self.nodes,
            omitted=self.nodes.omitted.index_add(0, gone.target, gone.weight.abs()),
            omitted_sum=self.nodes.omitted_sum.index_add(0, gone.target, gone.weight),
        )[nodes]
        number = nodes.cumsum(0) - 1
        outputs = nodes[self.of_kind(NodeKind.LOGIT, NodeKind.TARGET)].tolist()
        names = tuple(name for name, stays in zip(self.info.target_names, outputs, strict=True) if stays)
        renumbered = Edges(number[left.target], number[left.source], left.weight)
        return replace(self, nodes=table, edges=renumbered, info=replace(self.info, target_names=names))

    def check(self) -> Completeness:
        """Measure the row that misses its total by most; a complete graph stays below 1e-5."""
        has_row = ~self.nodes.total.isnan()
        if not bool(has_row.any()):
            raise AttributionError("The graph has no rows to check; it has no targets.")
        zeros = torch.zeros(self.n_nodes, dtype=torch.double)
        weight = self.edges.weight.double()
        found = zeros.index_add(0, self.edges.target, weight) + self.nodes.omitted_sum
        scale = zeros.index_add(0, self.edges.target, weight.abs()) + self.nodes.omitted
        residual = (found - self.nodes.total.double()).abs()
        by_row = (residual / scale.clamp(min=1e-30)).where(has_row, zeros)
        by_total = (residual / self.nodes.total.abs().maximum(1e-3 * scale).clamp(min=1e-30)).where(has_row, zeros)
        return Completeness(float(by_row.max()), float(by_total.max()), int(by_row.argmax()))

    def missing(self) -> str:
        """One sentence on rows that do not add up, for readers of the graph; empty if all do, or none is known."""
        if bool(self.nodes.total.isnan().all()) or (found := self.check()).holds:
            return ""
        if self.info.compatible:
            why = "Positions, biases and the first position's MLP outputs are left out, as circuit-tracer does"
        else:
            why = f"Rows do not add up, worst that of {self.node(found.node).id}"
        return f"{why}: up to {found.relative_to_row:.2g} of a row is missing."

    def report_missing(self) -> None:
        """Log a warning if rows do not add up, as ``save`` and all exports do; what compatible graphs lack is news."""
        if missing := self.missing():
            logger.log(logging.INFO if self.info.compatible else logging.WARNING, "%s", missing)

    def save(self, directory: str | Path) -> Path:
        """Write ``graph.json`` and ``graph.safetensors`` to a directory, both or neither, and return it."""
        self.report_missing()
        directory = Path(directory)
        tensors = {f"nodes.{f.name}": getattr(self.nodes, f.name) for f in fields(self.nodes)}
        tensors |= {f"edges.{name}": column for name, column in self.edges._asdict().items()}
        facts, vectors = info_json(self.info)
        tensors |= {f"{_VECTORS}{number}": vector for number, vector in vectors.items()}
        content = {**FORMAT.header(), "info": facts, "labels": labels_json(self.labels), "missing": self.missing()}
        with files.saving(directory) as stage:
            files.write_tensors(stage(_TENSORS), {name: _narrow(tensor) for name, tensor in tensors.items()})
            files.write_json(stage(_JSON), content)
        return directory

    @staticmethod
    def load(directory: str | Path) -> AttributionGraph:
        """Read a graph that ``save`` wrote; raises CheckpointError on anything else."""
        place = files.saved(Path(directory), _JSON)
        content = FORMAT.read(place(_JSON))
        tensors = {name: _wide(tensor) for name, tensor in files.read_tensors(place(_TENSORS)).items()}
        try:
            nodes = NodeTable(**{f.name: tensors[f"nodes.{f.name}"] for f in fields(NodeTable)})
            edges = Edges(*(tensors[f"edges.{name}"] for name in Edges._fields))
            vectors = {name.removeprefix(_VECTORS): t for name, t in tensors.items() if name.startswith(_VECTORS)}
            info = read_info(content["info"], vectors, content["format_version"])
            labels = read_labels(content.get("labels", {}))
        except (LookupError, TypeError, AttributeError, ConfigError) as error:
            raise CheckpointError(f"{directory} does not hold a whole attribution graph ({error!r}).") from error
        return AttributionGraph(nodes, edges, info, labels)

    def _facts(self, number: int) -> tuple[NodeKind, int, int, int]:
        nodes = self.nodes
        kind = NodeKind(int(nodes.kind[number]))
        return kind, int(nodes.layer[number]), int(nodes.position[number]), int(nodes.index[number])

    def _label(self, number: int, kind: NodeKind, layer: int, position: int, index: int, weight: float) -> str:
        token = self.info.token_strings[position]
        match kind:
            case NodeKind.FEATURE:
                return self.labels.get(Feature(layer, index), f"feature {index}")
            case NodeKind.ERROR:
                return f"error of layer {layer} at {token!r}"
            case NodeKind.EMBEDDING:
                return f"token {token!r}"
            case NodeKind.POSITIONAL:
                return f"position {position}"
            case NodeKind.BIAS:
                return f"biases of layer {layer} at {token!r}"
            case NodeKind.MLP_OUTPUT:
                return f"MLP output of layer {layer} at {token!r}"
            case NodeKind.LOGIT | NodeKind.TARGET:
                name = self.info.target_names[number - self.n_nodes]
                return f"output {name!r} (p={weight:.3f})" if kind is NodeKind.LOGIT else name


def _narrow(tensor: Tensor) -> Tensor:
    """Integers in the narrowest type that holds them: a graph's file takes 8 bytes an edge, not 20."""
    if tensor.is_floating_point() or not tensor.numel():
        return tensor
    largest = max(int(tensor.max()), -1 - int(tensor.min()))
    types = (torch.int16, torch.int32, torch.int64)
    return tensor.to(next(kind for kind in types if largest <= torch.iinfo(kind).max))


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_floating_point() else tensor.long()
