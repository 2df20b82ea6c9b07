"""The reader of attribution graphs that circuit-tracer, Neuronpedia or OpenCLT wrote as JSON."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor

from open_clt import files
from open_clt.errors import AttributionError, CheckpointError
from open_clt.graphs.edges import Edges
from open_clt.graphs.formats.circuit_tracer_schema import (
    FeatureType,
    GraphView,
    cantor_unpair,
    check_object,
    read_object,
)
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.info import GraphInfo, GraphSettings, PruningSettings
from open_clt.graphs.nodes import NodeKind, NodeTable
from open_clt.graphs.supernodes import Supernode
from open_clt.graphs.targets import SalientLogits
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature

logger = logging.getLogger(__name__)

_KEYS = ("metadata", "nodes", "links")
_LOGIT_CLERP = re.compile(r'Output "(.*)" \(p=[0-9.]+\)', re.DOTALL)


class ViewedGraph(NamedTuple):
    """A graph, and the view of it that its file holds."""

    graph: AttributionGraph
    """The graph."""
    view: GraphView
    """The nodes that the file's author pinned, grouped and clicked."""

    __repr__ = short_repr


def read_circuit_tracer(path: str | Path) -> ViewedGraph:
    """Read a graph that circuit-tracer, Neuronpedia or OpenCLT wrote; raises CheckpointError on anything else.

    The file lacks the totals of rows and the inputs that pruning removed, so scores are those of the shown part. Error
    nodes with ids of older versions are also read. Nodes of unknown kinds are left out.
    """
    path = Path(path)
    return viewed_graph(read_object(path, *_KEYS), path)


def viewed_graph(content: object, path: Path) -> ViewedGraph:
    """The graph that a file in circuit-tracer's format holds; raises CheckpointError, which names the path."""
    content = check_object(content, path, *_KEYS)
    try:
        return _graph(content)
    except (*files.WRONG_VALUES, RuntimeError, AttributionError) as error:
        raise CheckpointError(
            f"{path} does not hold a whole attribution graph ({error!r}); export it again."
        ) from error


def _graph(content: Mapping[str, Any]) -> ViewedGraph:
    """Make the graph and the view from a file's content."""
    nodes = [_FileNode.read(node) for node in content["nodes"] if node["feature_type"] in list(FeatureType)]
    nodes.sort(key=lambda node: node.order)
    rows: dict[str, int] = {}
    for row, node in enumerate(nodes):
        if rows.setdefault(node.file_id, row) != row:
            logger.warning("two nodes have the id %s; edges with this id belong to the first of them", node.file_id)
    params = cast(dict[str, Any], content.get("qParams") or {})
    labelled = [node for node in nodes if node.kind is NodeKind.FEATURE and node.text]
    labels = {Feature(node.layer, node.index): node.text for node in labelled} | _read_clerps(params)
    info = _info(content["metadata"], nodes)
    graph = AttributionGraph(_table(nodes), _links(content["links"], rows), info, labels)
    ids = graph.ids()
    return ViewedGraph(graph, _read_view(params, {name: ids[row] for name, row in rows.items()}))


def _info(metadata: Mapping[str, Any], nodes: Sequence[_FileNode]) -> GraphInfo:
    """Make the graph's information from a file's metadata and nodes."""
    outputs = [node for node in nodes if node.kind in (NodeKind.LOGIT, NodeKind.TARGET)]
    layers = [node.layer for node in nodes if node.kind in (NodeKind.FEATURE, NodeKind.ERROR)]
    tokens = {node.position: node.index for node in nodes if node.kind is NodeKind.EMBEDDING}
    strings = tuple(metadata["prompt_tokens"])
    return GraphInfo(
        model=metadata["scan"],
        transcoder=None,
        prompt=metadata["prompt"],
        # The id of a token is unknown (-1) if the file lacks its embedding.
        tokens=tuple(tokens.get(position, -1) for position in range(len(strings))),
        token_strings=strings,
        target_names=tuple(node.text for node in outputs),
        n_layers=outputs[0].layer if outputs else max(layers, default=-1) + 1,
        n_active_features=sum(node.kind is NodeKind.FEATURE for node in nodes),
        compatible=True,
        settings=_settings(metadata, outputs[0].position if outputs else len(strings) - 1),
        faithfulness=metadata.get("faithfulness"),
    )


def _settings(metadata: Mapping[str, Any], position: int) -> GraphSettings:
    """Read the settings of the graph; older files have ``node_threshold`` only, outside ``pruning_settings``."""
    generation: dict[str, Any] = metadata.get("generation_settings") or {}
    pruning: dict[str, Any] = metadata.get("pruning_settings") or {}
    our_names = {"max_n_logits": "max_count", "desired_logit_prob": "probability"}
    salient = {ours: generation[theirs] for theirs, ours in our_names.items() if generation.get(theirs) is not None}
    thresholds = PruningSettings(
        node_threshold=pruning.get("node_threshold", metadata.get("node_threshold")),
        edge_threshold=pruning.get("edge_threshold"),
    )
    return GraphSettings(
        targets=(SalientLogits(**salient, position=position),) if salient else (),
        max_feature_nodes=generation.get("max_feature_nodes"),
        batch_size=generation.get("batch_size"),
        pruning=None if thresholds == PruningSettings() else thresholds,
    )


@final
@dataclass(frozen=True)
class _FileNode:
    """A node of a file, with the values that our node table needs."""

    file_id: str
    """Id of the node in the file."""
    kind: NodeKind
    layer: int
    position: int
    index: int
    value: float
    weight: float
    cumulative: float
    text: str
    """Label of a feature, or name of an output."""

    @property
    def order(self) -> tuple[int, ...]:
        """Key that sorts nodes into the graph's order; outputs keep the order of the file."""
        if self.kind >= NodeKind.LOGIT:
            return (int(NodeKind.LOGIT),)
        return (int(self.kind), self.layer, self.position, self.index)

    @staticmethod
    def read(node: Mapping[str, Any]) -> _FileNode:
        """Read the JSON object of a node."""
        file_id, position, clerp = node["node_id"], int(node["ctx_idx"]), node.get("clerp") or ""
        influence = node.get("influence")
        cumulative = math.nan if influence is None else float(influence)
        index = int(file_id.split("_")[1])
        match FeatureType(node["feature_type"]):
            case FeatureType.FEATURE:
                value = float(node.get("activation") or 0)
                kind, layer = NodeKind.FEATURE, int(node["layer"])
                return _FileNode(file_id, kind, layer, position, index, value, 0.0, cumulative, clerp)
            case FeatureType.ERROR:
                return _FileNode(file_id, NodeKind.ERROR, int(node["layer"]), position, -1, 0.0, 0.0, cumulative, "")
            case FeatureType.EMBEDDING:
                return _FileNode(file_id, NodeKind.EMBEDDING, -1, position, index, 0.0, 0.0, cumulative, "")
            case FeatureType.LOGIT:
                match = _LOGIT_CLERP.fullmatch(clerp)
                text, layer = match[1] if match else clerp, int(node["layer"]) - 1
                weight = float(node["token_prob"])
                kind, value = NodeKind.LOGIT, weight
                if index < 0:
                    kind, value, index = NodeKind.TARGET, 0.0, -1 - index
                return _FileNode(file_id, kind, layer, position, index, value, weight, cumulative, text)


def _table(nodes: Sequence[_FileNode]) -> NodeTable:
    """Make the node table; totals are unknown, and no input is known to be omitted."""

    def floats(name: str) -> Tensor:
        return torch.tensor([getattr(node, name) for node in nodes], dtype=torch.float32)

    def ints(name: str) -> Tensor:
        return torch.tensor([int(getattr(node, name)) for node in nodes], dtype=torch.long)

    zeros = torch.zeros(len(nodes))
    return NodeTable(
        kind=ints("kind"),
        layer=ints("layer"),
        position=ints("position"),
        index=ints("index"),
        value=floats("value"),
        weight=floats("weight"),
        total=torch.full_like(zeros, torch.nan),
        omitted=zeros,
        omitted_sum=zeros,
        cumulative=floats("cumulative"),
        confidence=torch.full_like(zeros, torch.nan),
    )


def _links(links: Sequence[Mapping[str, Any]], rows: Mapping[str, int]) -> Edges:
    """Read the links between nodes that are in the graph, sorted by target and source."""
    inner = [link for link in links if link["source"] in rows and link["target"] in rows]
    edges = sorted((rows[link["target"]], rows[link["source"]], float(link["weight"])) for link in inner)
    target, source, weight = (list(column) for column in zip(*edges, strict=True)) if edges else ([], [], [])
    target, source = (torch.tensor(column, dtype=torch.long) for column in (target, source))
    return Edges(target, source, torch.tensor(weight, dtype=torch.float32))


def _read_clerps(params: Mapping[str, Any]) -> dict[Feature, str]:
    """Read the labels of features, by circuit-tracer's key ``number`` or Neuronpedia's ``layer_number_position``."""
    clerps: Any = params.get("clerps") or []
    clerps = files.parse_json(clerps) if isinstance(clerps, str) else clerps
    labels: dict[Feature, str] = {}
    for key, label in clerps:
        *layers, number = key.split("_")[:2]
        if not number.isdecimal():
            continue
        feature = cantor_unpair(int(number))
        # Tokens, errors and outputs have such keys too, but their number belongs to another layer than the key names.
        if layers in ([], [str(feature.layer)]):
            labels[feature] = label
    return labels


def _read_view(params: Mapping[str, Any], names: Mapping[str, str]) -> GraphView:
    """Read the view, with our ids; Neuronpedia stores some of its lists as text."""
    pinned, groups = params.get("pinnedIds") or [], params.get("supernodes") or []
    pinned = pinned.split(",") if isinstance(pinned, str) else pinned
    groups = files.parse_json(groups) if isinstance(groups, str) else groups
    threshold, clicked = params.get("pruningThreshold"), params.get("clickedId") or ""
    supernodes = [Supernode(label, tuple(names[name] for name in ids if name in names)) for label, *ids in groups]
    return GraphView(
        pinned=tuple(names[name] for name in pinned if name in names),
        supernodes=tuple(supernode for supernode in supernodes if supernode.members),
        clicked=names.get(clicked, ""),
        link_type="either" if params.get("linkType") == "either" else "both",
        positions=params.get("sg_pos") or "",
        pruning_threshold=None if threshold is None else float(threshold),
    )
