"""Attribution graphs for other programs: networkx graphs and GraphML, out and in again without loss.

Every column of a node is an attribute of the networkx node; what belongs to the whole graph is JSON text in the graph's
attributes ``info``, ``vectors`` (of targets that are directions) and ``labels``. Circuit-tracer's JSON is in
``circuit_tracer_json``, feature examples in ``feature_files``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from xml.etree.ElementTree import ParseError

import networkx as nx
import torch
from torch import Tensor

from open_clt import files
from open_clt.errors import CheckpointError, ConfigError
from open_clt.graphs.graph import FORMAT, AttributionGraph
from open_clt.graphs.influence import Edges
from open_clt.graphs.info import info_json, read_info
from open_clt.graphs.nodes import NodeKind, NodeTable
from open_clt.transcoders.feature import labels_json, read_labels

if TYPE_CHECKING:
    NamedGraph: TypeAlias = nx.DiGraph[str]
else:
    # Only its stubs know what a networkx graph's nodes are.
    NamedGraph = nx.DiGraph

_OUTPUTS = (NodeKind.LOGIT, NodeKind.TARGET)
_WHOLE = ("kind", "layer", "position", "index")


def to_networkx(graph: AttributionGraph) -> NamedGraph:
    """A directed graph from sources to targets: nodes by id, with their columns and label; edges with ``weight``."""
    facts, vectors = info_json(graph.info)
    found = nx.DiGraph(
        format_version=FORMAT.newest,
        info=json.dumps(facts),
        vectors=json.dumps({number: vector.tolist() for number, vector in vectors.items()}),
        labels=json.dumps(labels_json(graph.labels)),
    )
    columns = {f.name: getattr(graph.nodes, f.name).tolist() for f in fields(NodeTable)}
    ids = graph.ids()
    for number, name in enumerate(ids):
        row = {key: column[number] for key, column in columns.items()}
        kind = NodeKind(row["kind"])
        row["kind"] = kind.name.lower()
        if kind in _OUTPUTS:
            row["target"] = number - len(ids) + len(graph.info.target_names)
        found.add_node(name, **row, label=graph.node(number).label)
    columns = (column.tolist() for column in graph.edges)
    found.add_weighted_edges_from(
        (ids[source], ids[target], weight) for target, source, weight in zip(*columns, strict=True)
    )
    return found


def from_networkx(found: NamedGraph) -> AttributionGraph:
    """The graph that ``to_networkx`` made; CheckpointError if attributes are missing.

    Nodes and edges that were taken away meanwhile are gone: unlike those that ``prune`` removes, they are not counted.
    """
    try:
        kept = cast(dict[str, list[float]], files.parse_json(found.graph.get("vectors", "{}")))
        vectors = {number: torch.tensor(vector) for number, vector in kept.items()}
        info = read_info(files.parse_json(found.graph["info"]), vectors, found.graph.get("format_version", 1))
        labels = read_labels(files.parse_json(found.graph["labels"]))
        rows: list[tuple[str, dict[str, Any]]] = list(cast(Any, found.nodes)(data=True))
        # Targets stand last, whatever became of the order.
        rows.sort(key=lambda row: NodeKind[row[1]["kind"].upper()] in _OUTPUTS)
        number = {name: place for place, (name, _) in enumerate(rows)}
        table = NodeTable(**{f.name: _column([row for _, row in rows], f.name) for f in fields(NodeTable)})
        links = [(number[target], number[source], row["weight"]) for source, target, row in found.edges(data=True)]
        names = tuple(info.target_names[row["target"]] for _, row in rows if "target" in row)
        return AttributionGraph(table, _edges(links), replace(info, target_names=names), labels)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ConfigError) as error:
        raise CheckpointError(f"This graph lacks what to_networkx writes ({error!r}); start from an export.") from error


def write_graphml(graph: AttributionGraph, path: str | Path) -> Path:
    """Write the graph as GraphML, for Gephi, yEd, Cytoscape and others, and return the path."""
    graph.report_missing()
    path = Path(path)
    found = to_networkx(graph)
    for _, row in found.nodes(data=True):
        # XML has no place for control characters; the JSON in the graph's attributes has the exact texts.
        row["label"] = _printable(row["label"])
    with files.writing(path) as part:
        nx.write_graphml(found, part)
    return path


def read_graphml(path: str | Path) -> AttributionGraph:
    """Read a graph that ``write_graphml`` wrote; CheckpointError on anything else."""
    try:
        found = nx.read_graphml(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise files.missing(Path(path)) from error
    except (ParseError, nx.NetworkXError, OSError, EOFError, ValueError, KeyError) as error:
        raise files.unreadable(Path(path), "GraphML", error) from error
    return from_networkx(found)


def _column(rows: Sequence[dict[str, Any]], name: str) -> Tensor:
    if name == "kind":
        return torch.tensor([int(NodeKind[row[name].upper()]) for row in rows], dtype=torch.long)
    return torch.tensor([row[name] for row in rows], dtype=torch.long if name in _WHOLE else torch.float32)


def _edges(links: list[tuple[int, int, float]]) -> Edges:
    target, source, weight = (list(column) for column in zip(*sorted(links), strict=True)) if links else ([], [], [])
    target, source = (torch.tensor(column, dtype=torch.long) for column in (target, source))
    return Edges(target, source, torch.tensor(weight, dtype=torch.float32))


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)
