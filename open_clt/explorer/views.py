"""Views: what the pages of the explorer show of a trace, as plain values."""

from __future__ import annotations

import math
from collections import OrderedDict
from threading import Lock
from typing import Any, NamedTuple, final

from open_clt.errors import ConfigError
from open_clt.explorer.models import Models
from open_clt.explorer.session.circuit import circuit_of
from open_clt.explorer.session.session import Session
from open_clt.explorer.traces import Trace
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.progress import report_progress
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature
from open_clt.visualization.graph.page_data import graph_data

EDGE_THRESHOLD = 0.98
"""Share of the edges' influence that the shown edges hold."""
_KEPT = 24
_CIRCUIT = (410.0, 700.0), (820.0, 190.0)
_WINDOWS = (800.0, 350.0), (1060.0, 800.0)
"""Room of the graph at 1280 x 800, above the circuit, and at 1920 x 1080, beside it; and of the circuit."""


class Shown(NamedTuple):
    """The part of a trace's graph that is shown, and which of its labels are automatic."""

    graph: AttributionGraph
    automatic: frozenset[Feature]

    __repr__ = short_repr


@final
class Views:
    """Pruned graphs, of which the latest are kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int], AttributionGraph] = OrderedDict()
        self._lock = Lock()

    def pruned(self, trace: Trace, percent: int) -> AttributionGraph:
        """The part of a trace's graph that holds a share of the nodes' influence."""
        key = (trace.key, percent)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        report_progress("pruning", 0, 1)
        graph = trace.graph
        pruned = graph if graph.info.settings.pruning is not None else graph.prune(percent / 100, EDGE_THRESHOLD)
        with self._lock:
            self._kept[key] = pruned
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return pruned

    def shown(self, trace: Trace, session: Session, models: Models | None) -> Shown:
        """The part of a trace's graph that a session shows, with labels: the person's, then those of the features."""
        return labelled(self.pruned(trace, session.percent), trace, session, models)


def labelled(graph: AttributionGraph, trace: Trace, session: Session, models: Models | None) -> Shown:
    """A part of a trace's graph with labels: the person's win over those of the graph, and those over the records'."""
    labels: dict[Feature, str] = {}
    automatic = set(graph.labels) if trace.automatic else set[Feature]()
    rows = {} if models is None else models.row_of
    for feature in features_of(graph):
        row = rows.get(feature)
        if row is not None and row.label and feature not in graph.labels:
            labels[feature] = row.label
            if row.automatic:
                automatic.add(feature)
    given = session.feature_labels
    return Shown(graph.with_labels({**labels, **given}), frozenset(automatic - set(given)))


def features_of(graph: AttributionGraph) -> list[Feature]:
    """The features of a graph, each once, in the order of the graph."""
    nodes, rows = graph.nodes, graph.of_kind(NodeKind.FEATURE)
    columns = nodes.layer[rows].tolist(), nodes.index[rows].tolist()
    return list(dict.fromkeys(Feature(*column) for column in zip(*columns, strict=True)))


def largest_activations(graph: AttributionGraph) -> dict[Feature, float]:
    """The features of a graph, and their largest activations on its prompt."""
    nodes, rows = graph.nodes, graph.of_kind(NodeKind.FEATURE)
    largest: dict[Feature, float] = {}
    for layer, index, value in zip(*(c[rows].tolist() for c in (nodes.layer, nodes.index, nodes.value)), strict=True):
        feature = Feature(layer, index)
        largest[feature] = max(value, largest.get(feature, value))
    return largest


def graph_view(trace: Trace, shown: Shown, models: Models | None = None) -> dict[str, Any]:
    """What the graph page shows: the picture, and the numbers of the whole graph and of the shown part."""
    graph, info = trace.graph, trace.graph.info
    report_progress("drawing", 0, 1)
    scores, part = graph.scores(), shown.graph.scores()
    return {
        "graph": trace.key,
        "picture": graph_data(shown.graph, automatic=shown.automatic, windows=_WINDOWS),
        "shown": {"nodes": shown.graph.n_nodes, "edges": shown.graph.n_edges},
        "left_out": info.left_out(),
        "scores": {
            "whole": [round(scores.replacement, 4), round(scores.completeness, 4)],
            "shown": [round(part.replacement, 4), round(part.completeness, 4)],
        },
        "prompt": info.prompt,
        "model": info.model,
        "name": trace.name,
        "has_attention": graph.attention is not None,
        "is_pruned": graph.info.settings.pruning is not None,
        "predictions": list(trace.predictions),
        "outputs": outputs_of_graph(graph),
        "densities": {} if models is None else _densities(shown.graph, models),
    }


def _densities(graph: AttributionGraph, models: Models) -> dict[str, float]:
    """The densities of a graph's features by name, as far as they are known."""
    rows = (models.row_of.get(feature) for feature in features_of(graph))
    return {str(row.feature): row.density for row in rows if row is not None and not math.isnan(row.density)}


def outputs_of_graph(graph: AttributionGraph) -> list[dict[str, Any]]:
    """The outputs of a graph: their node ids, names, and the probabilities that the model gives to tokens."""
    rows = graph.of_kind(NodeKind.LOGIT, NodeKind.TARGET).nonzero().flatten().tolist()
    return [
        {
            "id": graph.node(row).id,
            "name": name,
            "probability": round(graph.node(row).weight, 5) if graph.node(row).kind is NodeKind.LOGIT else None,
        }
        for row, name in zip(rows, graph.info.target_names, strict=True)
    ]


def circuit_view(trace: Trace, session: Session, models: Models | None) -> dict[str, Any] | None:
    """What the circuit shows: the picture of its boxes and the scores of this part; None if nothing is pinned."""
    whole = labelled(trace.graph, trace, session, models)
    circuit = circuit_of(whole.graph, session)
    if circuit is None:
        return None
    scores = circuit.scores()
    return {
        "picture": graph_data(circuit, automatic=whole.automatic, windows=_CIRCUIT, labelled=True),
        "scores": [round(scores.replacement, 4), round(scores.completeness, 4)],
        "names": [each.label for each in circuit.groups],
        "edges": [
            [source, target, float(f"{weight:.6g}")]
            for target, source, weight in zip(*(column.tolist() for column in circuit.edges), strict=True)
        ],
    }


def check_percent(percent: object) -> int:
    """A share of influence in percent that a page sent; raises ConfigError if it is not one."""
    if type(percent) is not int or not 1 <= percent <= 100:
        raise ConfigError("The share of influence must be a whole number of percent from 1 to 100.")
    return percent
