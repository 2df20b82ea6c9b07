"""The attribution graph: nodes, signed edges, and the numbers that follow from them.

An edge ``source -> target`` is the part of the target's pre-activation (or logit) that the source contributes, in the
model whose attention patterns, norm denominators and active features are frozen at the prompt's values. In a complete
graph, the edges into a node add up to its ``total``: error nodes contribute what the features do not explain.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from open_clt import files
from open_clt.config.arguments import checked_arguments
from open_clt.errors import AttributionError, CheckpointError, ConfigError
from open_clt.finite import check_finite
from open_clt.graphs import consensus_table
from open_clt.graphs import influence as paths
from open_clt.graphs.attention import PREFIX, GraphAttention, read_attention, stored_attention
from open_clt.graphs.consensus_table import ConsensusTable
from open_clt.graphs.edges import Edges
from open_clt.graphs.influence import GraphScores, InfluenceGraph, Roles
from open_clt.graphs.info import GraphInfo, PruningSettings, info_json, read_info
from open_clt.graphs.nodes import Node, NodeId, NodeKind, NodeTable
from open_clt.graphs.validity import problem
from open_clt.html_repr import html_repr
from open_clt.memory import check_memory
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature, check_labels, labels_json, read_labels

logger = logging.getLogger(__name__)

FORMAT = files.FileFormat("open-clt-attribution-graph", newest=2)
"""The newest version; files of version 1, which stored settings and labels differently, are still read."""
_JSON = "graph.json"
_TENSORS = "graph.safetensors"
GRAPH_FILES = (_JSON, _TENSORS)
"""Names of the files of a graph: its plain values and its tensors."""
_VECTORS = "targets."
"""Prefix of a tensor's name that holds the vector of a target; the target's number follows."""
_CONSENSUS = "consensus."
"""Prefix of the name of a tensor that holds a column of the consensus; the column's name follows."""
_INTEGERS = (torch.int16, torch.int32, torch.int64)
"""Data types that a file stores integers in."""
_ROUNDING = 1e-5
"""Largest relative residual of a row that rounding in float32 explains."""


class Completeness(NamedTuple):
    """The largest residuals of a graph's rows: how far the edges into a node are from adding up to its total."""

    relative_to_row: float
    """Largest residual divided by the sum of the row's absolute entries, with which rounding scales.

    The sum counts as at least 0.001 of that of the largest row, because an entry is a product of two vectors, and
    rounding in it scales with the vectors, also where the product is small."""
    relative_to_total: float
    """Largest residual divided by the row's total, which counts as at least 0.001 of the sum of absolute entries."""
    node: int
    """Row with the largest residual relative to its absolute entries."""

    @property
    def holds(self) -> bool:
        """Whether all rows add up to their totals, except for rounding."""
        return self.relative_to_row <= _ROUNDING


@final
@dataclass(frozen=True, eq=False)
class AttributionGraph:
    """An attribution graph: its nodes, its edges, its prompt and settings, and labels that users gave to features."""

    nodes: NodeTable
    """The nodes, one row per node."""
    edges: Edges
    """The weighted edges, whose targets and sources are rows of ``nodes``."""
    info: GraphInfo
    """The prompt, the models, and the settings of the graph."""
    labels: Mapping[Feature, str] = field(default_factory=dict[Feature, str])
    """Labels of features; a label applies at every position where its feature is active."""
    consensus: ConsensusTable | None = None
    """Frequencies and intervals, if the graph is the consensus of several graphs (``graphs/consensus.py``)."""
    attention: GraphAttention | None = None
    """Why the heads that carry its edges looked there (``with_attention``); None if that is not explained."""

    def __post_init__(self) -> None:
        """Raise AttributionError if nodes, edges and information do not fit together, or a number is not finite.

        Raises ConfigError for a label that is not a text, or not that of a feature.
        """
        if found := problem(self.nodes, self.edges, self.info) or consensus_table.problem(
            self.consensus, self.n_nodes, self.n_edges
        ):
            raise AttributionError(f"The tables of the attribution graph are not valid: {found}.")
        check_labels(self.labels)
        if self.attention is not None and (found := self.attention.problem(self.info)):
            raise AttributionError(f"The explained attention does not fit the attribution graph: {found}.")

    @cached_property
    def influence_graph(self) -> InfluenceGraph:
        """The values that influence is computed from; the level of a node is its layer."""
        return InfluenceGraph(self.edges, self.nodes.weight, self.nodes.omitted, self.nodes.layer)

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return len(self.nodes)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return self.edges.weight.shape[0]

    @checked_arguments
    def of_kind(self, *kinds: NodeKind) -> Bool[Tensor, "node"]:
        """Return a mask of the nodes that have one of the given kinds."""
        return torch.isin(self.nodes.kind, torch.tensor([int(kind) for kind in kinds]))

    @checked_arguments
    def node(self, number: int) -> Node:
        """Return the node in row ``number``, with its id and label; raises AttributionError if the row is missing."""
        nodes = self.nodes
        if not 0 <= number < len(nodes.kind):
            raise AttributionError(f"The graph has no node {number}; its {len(nodes.kind)} nodes count from 0.")
        kind = NodeKind(int(nodes.kind[number]))
        layer, position, index = int(nodes.layer[number]), int(nodes.position[number]), int(nodes.index[number])
        name = str(NodeId.of(kind, layer, position, index))
        value, weight = float(nodes.value[number]), float(nodes.weight[number])
        confidence = float(nodes.confidence[number])
        known = None if math.isnan(confidence) else confidence
        node = Node(name, kind, layer, position, index, value, weight, label="", confidence=known)
        return replace(node, label=self._label(number, node))

    def ids(self) -> list[str]:
        """Return the ids of all nodes, in the notation of ``nodes.py``."""
        return list(map(str, self.nodes.ids()))

    @checked_arguments
    def with_labels(self, labels: Mapping[Feature, str]) -> AttributionGraph:
        """Return the same graph with more labels of features; they replace older labels of the same features."""
        return replace(self, labels={**self.labels, **labels})

    def adjacency(self) -> Float[Tensor, "target source"]:
        """Return all edges as a dense matrix, which is practical for small graphs only.

        Raises ResourceError if memory is too small.
        """
        needed = self.n_nodes**2 * self.edges.weight.element_size()
        check_memory(f"A dense matrix of {self.n_nodes:,} nodes", needed, "prune the graph first, or use its edges")
        dense = self.edges.weight.new_zeros(self.n_nodes, self.n_nodes)
        dense[self.edges.target, self.edges.source] = self.edges.weight
        return dense

    def influence(self) -> Float[Tensor, "node"]:
        """Return the influence of each node on the outputs, over all paths, without the weights of the outputs."""
        return paths.influence(self.influence_graph).float()

    def path_lengths(self) -> Float[Tensor, "length"]:
        """Return the shares of the tokens' influence that reach the outputs over paths of 1, 2, ... edges."""
        tokens = self.of_kind(NodeKind.EMBEDDING)
        arriving = [step[tokens].sum() for step in paths.path_steps(self.influence_graph)]
        profile = torch.stack(arriving) if arriving else torch.zeros(0, dtype=torch.double)
        return (profile / profile.sum().clamp(min=1e-30)).float()

    def scores(self) -> GraphScores:
        """Return the replacement and completeness scores; inputs that pruning removed count as error."""
        tokens, errors = self.of_kind(NodeKind.EMBEDDING), self.of_kind(NodeKind.ERROR)
        return paths.scores(self.influence_graph, tokens, errors)

    @checked_arguments
    def prune(
        self, node_threshold: float = 0.8, edge_threshold: float = 0.98, *, keep_errors: bool | None = None
    ) -> AttributionGraph:
        """Return the nodes with ``node_threshold`` of the influence, and the edges with ``edge_threshold`` of it.

        Tokens and outputs always stay. With ``keep_errors``, error nodes stay as long as one of their edges stays
        (Ameisen et al., 2025); without, they are pruned like features, as circuit-tracer does. By default, the errors
        of compatible graphs are pruned and those of other graphs are kept. The weights of removed edges are added to
        ``nodes.omitted``, and the thresholds are stored in ``info.settings.pruning``. Raises AttributionError if a
        threshold is not in (0, 1].
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
        remaining = paths.prune(self.influence_graph, roles, node_threshold, edge_threshold)
        cumulative = paths.cumulative_influence(self.influence())[remaining.nodes]
        pruned = self.part(remaining.nodes, remaining.edges)
        pruning = PruningSettings(node_threshold=node_threshold, edge_threshold=edge_threshold, keep_errors=keep_errors)
        info = replace(pruned.info, settings=replace(pruned.info.settings, pruning=pruning))
        return replace(pruned, nodes=replace(pruned.nodes, cumulative=cumulative), info=info)

    @checked_arguments
    def part(self, nodes: Bool[Tensor, "node"], edges: Bool[Tensor, "edge"] | None = None) -> AttributionGraph:
        """Return some nodes and the edges between them, only those of ``edges`` if that mask is given.

        The weights of removed edges are added to the ``omitted`` columns of their targets.
        """
        stays = self.edges.between(nodes)
        stays = stays if edges is None else stays & edges
        table = self._without(nodes, ~stays)[nodes]
        output_stays = nodes[self.of_kind(NodeKind.LOGIT, NodeKind.TARGET)].tolist()
        names = tuple(name for name, is_kept in zip(self.info.target_names, output_stays, strict=True) if is_kept)
        edges_of_part = self.edges.part(stays).renumbered(nodes.cumsum(0) - 1)
        consensus = self.consensus and self.consensus.part(nodes, stays)
        info = replace(self.info, target_names=names)
        return replace(self, nodes=table, edges=edges_of_part, info=info, consensus=consensus)

    def _without(self, nodes: Bool[Tensor, "node"], removed: Bool[Tensor, "edge"]) -> NodeTable:
        """Return the table of nodes after the weights of removed edges into some nodes are added to what is omitted."""
        omitted, omitted_sum = self.nodes.omitted.double(), self.nodes.omitted_sum.double()
        rows = self.edges.rows.numpy()
        for chunk in self.edges.chunks(nodes[self.edges.rows].nonzero().flatten().numpy()):
            weight = chunk.weight * removed.numpy()[chunk.edges]
            omitted_sum.numpy()[rows[chunk.rows]] += chunk.sums(weight)
            omitted.numpy()[rows[chunk.rows]] += chunk.sums(np.abs(weight))
        return replace(self.nodes, omitted=omitted.float(), omitted_sum=omitted_sum.float())

    def check(self) -> Completeness:
        """Measure how far rows are from adding up to their totals; in a complete graph, ``relative_to_row`` is < 1e-5.

        Raises AttributionError if no row has a known total, or if a row with a known total is not finite.
        """
        has_row = ~self.nodes.total.isnan()
        if not bool(has_row.any()):
            raise AttributionError("The graph has no rows to check: no node has a known total.")
        zeros = torch.zeros(self.n_nodes, dtype=torch.double)
        row_sum, scale, rows = self.nodes.omitted_sum.double(), self.nodes.omitted.double(), self.edges.rows.numpy()
        for chunk in self.edges.chunks():
            row_sum.numpy()[rows[chunk.rows]] += chunk.sums(chunk.weight)
            scale.numpy()[rows[chunk.rows]] += chunk.sums(np.abs(chunk.weight))
        residual = (row_sum - self.nodes.total.double()).abs()
        least = max(1e-30, 1e-3 * float(scale.where(has_row, zeros).max()))
        by_row = (residual / scale.clamp(min=least)).clamp(max=1e30).where(has_row, zeros)
        check_finite(by_row, "The graph's relative residual", axes=("row",), error=AttributionError)
        by_total = (residual / self.nodes.total.abs().maximum(1e-3 * scale).clamp(min=1e-30)).where(has_row, zeros)
        return Completeness(float(by_row.max()), float(by_total.max()), int(by_row.argmax()))

    def missing(self) -> str:
        """Return a sentence on rows that do not add up to their totals, or an empty text if there are no such rows."""
        if bool(self.nodes.total.isnan().all()) or (completeness := self.check()).holds:
            return ""
        if self.info.compatible:
            reason = "Positional embeddings, biases and MLP outputs at the first position are left out"
        else:
            reason = f"Rows do not add up to their totals; the worst is that of {self.node(completeness.node).id}"
        return f"{reason}: up to {completeness.relative_to_row:.2g} of a row is missing."

    @checked_arguments
    def save(self, directory: str | Path) -> Path:
        """Write ``graph.json`` and ``graph.safetensors`` to a directory, both or neither, and return the directory.

        A former graph is replaced; raises ConfigError if files of other programs have these names.
        """
        log_missing(self)
        directory = Path(directory)
        check_place(directory)
        with files.saving(directory) as stage:
            write_files(self, stage)
        return directory

    @staticmethod
    @checked_arguments
    def load(directory: str | Path) -> AttributionGraph:
        """Read a graph that ``save`` wrote; raises CheckpointError on anything else."""
        return files.read_saved(Path(directory), _JSON, read_files)

    def _label(self, row: int, node: Node) -> str:
        """Return the label of a node, from the user's labels or from the node's kind."""
        token = self.info.token_strings[node.position]
        match node.kind:
            case NodeKind.FEATURE:
                return self.labels.get(Feature(node.layer, node.index), f"feature {node.index}")
            case NodeKind.ERROR:
                return f"error of layer {node.layer} at {token!r}"
            case NodeKind.EMBEDDING:
                return f"token {token!r}"
            case NodeKind.POSITIONAL:
                return f"position {node.position}"
            case NodeKind.BIAS:
                return f"biases of layer {node.layer} at {token!r}"
            case NodeKind.MLP_OUTPUT:
                return f"MLP output of layer {node.layer} at {token!r}"
            case NodeKind.LOGIT | NodeKind.TARGET:
                name = self.info.target_names[row - self.n_nodes]
                return f"output {name!r} (p={node.weight:.3f})" if node.kind is NodeKind.LOGIT else name

    __repr__ = short_repr
    _repr_html_ = html_repr


def stored_values(graph: AttributionGraph) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the two files of a graph hold: plain values and tensors."""
    tensors = {f"nodes.{f.name}": getattr(graph.nodes, f.name) for f in fields(graph.nodes)}
    tensors |= {f"edges.{name}": column for name, column in graph.edges.stored().items()}
    facts, vectors = info_json(graph.info)
    tensors |= {f"{_VECTORS}{number}": vector for number, vector in vectors.items()}
    content = {**FORMAT.header(), "info": facts, "labels": labels_json(graph.labels), "missing": graph.missing()}
    if graph.consensus is not None:
        content["consensus"] = graph.consensus.facts()
        tensors |= {f"{_CONSENSUS}{name}": column for name, column in graph.consensus.columns().items()}
    if graph.attention is not None:
        content["attention"], of_attention = stored_attention(graph.attention)
        tensors |= of_attention
    return content, {name: _narrow(tensor) for name, tensor in tensors.items()}


def graph_of_values(content: Mapping[str, Any], stored: Mapping[str, Tensor], place: Path) -> AttributionGraph:
    """The graph of ``stored_values``; raises CheckpointError, which names their place, if they are anything else."""
    tensors = {name: _wide(tensor) for name, tensor in stored.items() if not name.startswith("edges.")}
    try:
        # Graphs of older versions have no confidence.
        tensors.setdefault("nodes.confidence", torch.full(tensors["nodes.total"].shape, torch.nan))
        nodes = NodeTable(**{f.name: tensors[f"nodes.{f.name}"] for f in fields(NodeTable)})
        edges = Edges(*(stored[f"edges.{name}"] for name in ("target", "source", "weight")))
        vectors = {name.removeprefix(_VECTORS): t for name, t in tensors.items() if name.startswith(_VECTORS)}
        info = read_info(content["info"], vectors, content["format_version"])
        labels = read_labels(content.get("labels", {}))
        columns = {name.removeprefix(_CONSENSUS): t for name, t in tensors.items() if name.startswith(_CONSENSUS)}
        consensus = ConsensusTable.of_stored(content["consensus"], columns) if "consensus" in content else None
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
        attention = read_attention(content["attention"], own, place) if "attention" in content else None
        return AttributionGraph(nodes, edges, info, labels, consensus, attention)
    except (*files.WRONG_VALUES, AttributionError, ConfigError) as error:
        raise CheckpointError(f"{place} does not hold a whole attribution graph ({error!r}).") from error


def write_files(graph: AttributionGraph, stage: files.Stage) -> None:
    """Write the files of a graph as part of a save."""
    content, tensors = stored_values(graph)
    files.write_tensors(stage(_TENSORS), tensors)
    files.write_json(stage(_JSON), content)


def read_files(saved: files.Saved) -> AttributionGraph:
    """Read the files of a graph, which may be part of a larger artefact; raises CheckpointError on anything else."""
    return graph_of_values(FORMAT.read(saved(_JSON)), files.read_tensors(saved(_TENSORS)), saved.directory)


def check_place(directory: Path) -> None:
    """Raise ConfigError if a graph cannot be saved in a directory, because it would replace other files."""
    files.check_artefact(directory, (_JSON, _TENSORS), FORMAT)


def log_missing(graph: AttributionGraph) -> None:
    """Log which rows do not add up to their totals: as a warning, or for a compatible graph as information."""
    if missing := graph.missing():
        logger.log(logging.INFO if graph.info.compatible else logging.WARNING, "%s", missing)


def _narrow(tensor: Tensor) -> Tensor:
    """Store integers in the narrowest type that holds them: a graph's file takes 8 bytes per edge instead of 20."""
    if tensor.is_floating_point() or not tensor.numel():
        return tensor
    largest = max(int(tensor.max()), -1 - int(tensor.min()))
    return tensor.to(next(dtype for dtype in _INTEGERS if largest <= torch.iinfo(dtype).max))


def _wide(tensor: Tensor) -> Tensor:
    """Read integers that ``_narrow`` stored as 64-bit integers; other types stay, and are refused."""
    return tensor.long() if tensor.dtype in _INTEGERS else tensor
