"""The writer and reader of attribution graphs as networkx graphs and GraphML, without loss.

Every column of the node table is an attribute of the networkx nodes. The graph's attributes ``info``, ``vectors`` (of
targets that are directions) and ``labels`` hold JSON text. A consensus adds its columns, such as ``frequency`` and
``edge_frequency``, to nodes and edges, and its prompts, answers and scores as the JSON text ``consensus``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from xml.etree.ElementTree import ParseError
from xml.parsers import expat

import torch
from torch import Tensor

from open_clt import files
from open_clt.errors import AttributionError, CheckpointError, ConfigError
from open_clt.graphs.consensus_table import ConsensusTable, column_names, is_of_edges
from open_clt.graphs.edges import Edges
from open_clt.graphs.graph import FORMAT, AttributionGraph, log_missing
from open_clt.graphs.info import info_json, read_info
from open_clt.graphs.nodes import NodeKind, NodeTable
from open_clt.transcoders.feature import labels_json, read_labels

if TYPE_CHECKING:
    import networkx as nx

    NamedGraph: TypeAlias = nx.DiGraph[str]
else:
    NamedGraph = Any  # networkx is imported by the functions that use it

_OUTPUTS = (NodeKind.LOGIT, NodeKind.TARGET)
_BEGINNING = 2**14
"""Number of bytes at the beginning of a GraphML file that name the attributes."""
_INTEGERS = ("kind", "layer", "position", "index")


def to_networkx(graph: AttributionGraph) -> NamedGraph:
    """Return a directed graph from sources to targets.

    Its nodes are the ids, with the columns of the node table and a label; its edges have a ``weight``.
    """
    import networkx as nx

    facts, vectors = info_json(graph.info)
    network = nx.DiGraph(
        format_version=FORMAT.newest,
        info=files.json_text(facts, "The graph's information"),
        vectors=files.json_text({target: vector.tolist() for target, vector in vectors.items()}, "The graph's vectors"),
        labels=files.json_text(labels_json(graph.labels), "The graph's labels"),
    )
    columns = {f.name: getattr(graph.nodes, f.name).tolist() for f in fields(NodeTable)}
    ids = graph.ids()
    for row, node_id in enumerate(ids):
        attributes = {name: column[row] for name, column in columns.items()}
        kind = NodeKind(attributes["kind"])
        attributes["kind"] = kind.name.lower()
        if kind in _OUTPUTS:
            attributes["target"] = row - len(ids) + len(graph.info.target_names)
        network.add_node(node_id, **attributes, label=graph.node(row).label)
    edges = zip(*(column.tolist() for column in graph.edges), strict=True)
    network.add_weighted_edges_from((ids[source], ids[target], weight) for target, source, weight in edges)
    if graph.consensus is not None:
        network.graph["consensus"] = files.json_text(graph.consensus.facts(), "The consensus")
        targets, sources = graph.edges.target.tolist(), graph.edges.source.tolist()
        pairs = [(ids[source], ids[target]) for target, source in zip(targets, sources, strict=True)]
        for name, column in graph.consensus.columns().items():
            if is_of_edges(name):
                nx.set_edge_attributes(network, dict(zip(pairs, column.tolist(), strict=True)), name)
            else:
                nx.set_node_attributes(network, dict(zip(ids, column.tolist(), strict=True)), name)
    return network


def from_networkx(network: NamedGraph) -> AttributionGraph:
    """Read a graph that ``to_networkx`` made; raises CheckpointError if attributes are missing or do not fit together.

    Nodes and edges that were removed from it since then do not count in ``omitted``, unlike those that ``prune``
    removes.
    """
    return _read(network, "The networkx graph")


def _read(network: NamedGraph, subject: object) -> AttributionGraph:
    """Read a graph that ``to_networkx`` made; ``subject`` names it in an error."""
    try:
        stored = cast(dict[str, list[float]], files.parse_json(network.graph.get("vectors", "{}")))
        vectors = {target: torch.tensor(vector) for target, vector in stored.items()}
        info = read_info(files.parse_json(network.graph["info"]), vectors, network.graph.get("format_version", 1))
        labels = read_labels(files.parse_json(network.graph["labels"]))
        nodes: list[tuple[str, dict[str, Any]]] = list(cast(Any, network.nodes)(data=True))
        # A graph's targets are its last rows, but other programs may change the order of nodes.
        nodes.sort(key=lambda node: NodeKind[node[1]["kind"].upper()] in _OUTPUTS)
        row_of = {node_id: row for row, (node_id, _) in enumerate(nodes)}
        for _, data in nodes:
            data.setdefault("confidence", math.nan)  # graphs of older versions have no confidence
        table = NodeTable(**{f.name: _column([data for _, data in nodes], f.name) for f in fields(NodeTable)})
        links = [(row_of[target], row_of[source], data) for source, target, data in network.edges(data=True)]
        links.sort(key=lambda link: link[:2])
        names = tuple(info.target_names[data["target"]] for _, data in nodes if "target" in data)
        consensus = _consensus(network, [data for _, data in nodes], [data for *_, data in links])
        edges = _edges([(target, source, data["weight"]) for target, source, data in links])
        return AttributionGraph(table, edges, replace(info, target_names=names), labels, consensus)
    except (*files.WRONG_VALUES, RuntimeError, AttributionError, ConfigError) as error:
        raise CheckpointError(
            f"{subject} does not have the attributes that to_networkx writes ({error!r}); export the graph again."
        ) from error


def _consensus(
    network: NamedGraph, nodes: Sequence[dict[str, Any]], edges: Sequence[dict[str, Any]]
) -> ConsensusTable | None:
    """The table of a consensus graph, from the attributes of its nodes and edges; None for another graph."""
    if "consensus" not in network.graph:
        return None
    columns = {name: _column(edges if is_of_edges(name) else nodes, name) for name in column_names()}
    return ConsensusTable.of_stored(files.parse_json(network.graph["consensus"]), columns)


def write_graphml(graph: AttributionGraph, path: str | Path) -> Path:
    """Write the graph as GraphML, for Gephi, yEd, Cytoscape and others, and return the path."""
    import networkx as nx

    log_missing(graph)
    path = Path(path)
    network = to_networkx(graph)
    for _, attributes in network.nodes(data=True):
        # XML does not allow control characters; the JSON in the graph's attributes has the exact texts.
        attributes["label"] = _printable(attributes["label"])
    with files.writing(path) as part:
        nx.write_graphml(network, part)
    return path


def check_place(path: Path) -> None:
    """Raise ConfigError if a path holds a file that is not a graph of OpenCLT as GraphML."""
    files.check_file(path)
    if os.path.lexists(path):
        with files.opened(path) as file:
            beginning = file.read(_BEGINNING)
        if not all(f'attr.name="{name}"'.encode() in beginning for name in ("info", "labels")):
            raise files.foreign(path)


def read_graphml(path: str | Path) -> AttributionGraph:
    """Read a graph that ``write_graphml`` wrote; raises CheckpointError on anything else."""
    import networkx as nx

    path = Path(path)
    content = files.read_unpacked(path, "GraphML")
    try:
        files.check_values(content, "<")
        _check_declarations(content)
        network = nx.read_graphml(BytesIO(content))
    except (ParseError, expat.ExpatError, nx.NetworkXError, OSError, EOFError, ValueError, LookupError) as error:
        raise files.unreadable(path, "GraphML", error) from error
    return _read(network, path)


def _check_declarations(content: bytes) -> None:
    """Raise ValueError if XML declares a document type, whose entities can expand without limit or name other files."""

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type, which GraphML does not need")

    def stop(*_: object) -> None:
        raise _RootReached

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler, parser.StartElementHandler = refuse, stop
    with suppress(_RootReached):
        parser.Parse(content, True)


class _RootReached(Exception):
    """The XML parser has reached the root element; a document type can only stand before it."""


def _column(nodes: Sequence[dict[str, Any]], name: str) -> Tensor:
    """Make one column of the node table from an attribute of the nodes."""
    if name == "kind":
        return torch.tensor([int(NodeKind[node[name].upper()]) for node in nodes], dtype=torch.long)
    return torch.tensor([node[name] for node in nodes], dtype=torch.long if name in _INTEGERS else torch.float32)


def _edges(edges: list[tuple[int, int, float]]) -> Edges:
    """Make the edges' columns from (target, source, weight), sorted by target and source."""
    target, source, weight = (list(column) for column in zip(*edges, strict=True)) if edges else ([], [], [])
    target, source = (torch.tensor(column, dtype=torch.long) for column in (target, source))
    return Edges(target, source, torch.tensor(weight, dtype=torch.float32))


def _printable(text: str) -> str:
    """Return a text with its control characters escaped."""
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)
