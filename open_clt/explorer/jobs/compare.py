"""Jobs of the compare page: the graphs of two prompts, and two transcoders of one language model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from open_clt.embedded import TRANSCODER_DIRECTORY
from open_clt.errors import ConfigError
from open_clt.evaluation.report import Report, comparison_cells
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.jobs.requests import Request, Work, session_of, text_of
from open_clt.explorer.measurements import own_name, plain
from open_clt.explorer.models import EMBEDDED, Models
from open_clt.explorer.traces import Trace
from open_clt.explorer.views import Shown, check_percent, labelled
from open_clt.features.labelling.automatic import in_brief
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import compare_graphs
from open_clt.language.transcoders.named import transcoder_of
from open_clt.progress import report_progress
from open_clt.visualization.graph.page_data import graph_data, node_name
from open_clt.visualization.interactive.reports import interactive_comparison
from open_clt.visualization.labels import token_label

_MOST_EDGES = 40
"""Number of changed edges that the page lists."""
_WINDOWS = (585.0, 330.0), (905.0, 570.0)
"""Room of one of two graphs at 1280 x 800 and at 1920 x 1080."""


def prompts(explorer: Explorer, request: Request) -> Work:
    """Two graphs, pruned alike, and what ``compare_graphs`` says of them; only the first one without a ``second``."""
    session, percent = session_of(request), check_percent(request.get("percent"))
    across = bool(request.get("across"))
    keys = [request.get("first"), *([request.get("second")] if request.get("second") else [])]
    traces = [explorer.trace_of(key) for key in keys]

    def work() -> dict[str, Any]:
        graphs = [labelled(explorer.views.pruned(each, percent), each, session, explorer.models) for each in traces]
        sides = [_side(each, shown, across) for each, shown in zip(traces, graphs, strict=True)]
        if len(sides) < 2:
            return {"sides": sides, "comparison": None}
        return {"sides": sides, "comparison": _comparison(graphs[0].graph, graphs[1].graph, across)}

    return work


def _side(trace: Trace, shown: Shown, across: bool) -> dict[str, Any]:
    """What the page shows of one graph; ``keys`` are the ids by which its nodes are matched."""
    report_progress("drawing", 0, 1)
    ids, anywhere = shown.graph.ids(), keys_across(shown.graph)
    return {
        "graph": trace.key,
        "prompt": shown.graph.info.prompt,
        "picture": graph_data(shown.graph, automatic=shown.automatic, windows=_WINDOWS),
        "keys": dict(zip(ids, anywhere if across else ids, strict=True)),
        "anywhere": dict(zip(ids, anywhere, strict=True)),
        "nodes": shown.graph.n_nodes,
        "edges": shown.graph.n_edges,
    }


def keys_across(graph: AttributionGraph) -> list[str]:
    """The ids of a graph's nodes without their positions, as ``compare_graphs`` matches them across positions."""
    return [str(replace(node, position=None)) for node in graph.nodes.ids()]


def _comparison(first: AttributionGraph, second: AttributionGraph, across: bool) -> dict[str, Any]:
    report_progress("comparing", 0, 1)
    made = compare_graphs(first, second, across_positions=across)
    pairs = [*made.shared_edges, *made.edges_only_first, *made.edges_only_second]
    changed = sorted(pairs, key=lambda pair: -abs(pair.first - pair.second))[:_MOST_EDGES]
    names = _names(second, across) | _names(first, across)
    return {
        "shared": list(made.shared_nodes),
        "only": [len(made.nodes_only_first), len(made.nodes_only_second)],
        "shared_edges": len(made.shared_edges),
        "overlaps": [round(made.node_overlap, 4), round(made.edge_overlap, 4)],
        "cosine": round(made.weight_cosine, 4),
        "edges": [[pair.source, pair.target, *(float(f"{w:.6g}") for w in pair[2:])] for pair in changed],
        "names": {key: names[key] for pair in changed for key in pair[:2]},
    }


def _names(graph: AttributionGraph, across: bool) -> dict[str, str]:
    """What the page calls the nodes of a graph, by the ids by which they are matched."""
    keys = keys_across(graph) if across else graph.ids()
    names: dict[str, str] = {}
    for row, key in enumerate(keys):
        node = graph.node(row)
        token = f" at {token_label(graph.info.token_strings[node.position])}" if node.kind is NodeKind.FEATURE else ""
        place = "" if across or node.kind is NodeKind.POSITIONAL else f"{token} ({node.position})"
        names.setdefault(key, f"{in_brief(node_name(graph, row))}{place}")
    return names


def transcoders(explorer: Explorer, request: Request) -> Work:
    """Measure the explorer's transcoder and a second one on the same text, and compare their reports.

    With ``kept``, the result is None unless the second one was measured before, so that nothing is loaded because of an
    address that somebody else made.
    """
    source = text_of(request, "source").strip()
    if not source:
        raise ConfigError("The source of the second transcoder is empty; type a directory or a name on the hub.")
    kept = explorer.measurements.reports

    def work() -> dict[str, Any] | None:
        if request.get("kept") and source not in kept:
            return None
        models = explorer.wait_for_models()
        if source not in kept:
            kept[source] = _measured(explorer, models, source)
        return compared([explorer.measurements.evaluate(models), kept[source]])

    return work


def _measured(explorer: Explorer, models: Models, source: str) -> Report:
    """The report of a second transcoder; raises ConfigError if it does not fit the language model."""
    report_progress(f"loading the transcoder {source}", 0, 1)
    place = TRANSCODER_DIRECTORY if source == EMBEDDED else source
    transcoder = transcoder_of(models.model, place)  # a request never lets code be imported
    name = Path(source).resolve().name
    if name == own_name(models.source):
        name = f"{name} (second)"
    explorer.measurements.evaluate(models)
    return explorer.measurements.measure(models, transcoder, name)


def compared(reports: list[Report]) -> dict[str, Any]:
    """The figure and the table of several reports on the same text."""
    cells = comparison_cells(reports)
    return {
        "figure": plain(interactive_comparison(reports)),
        "heads": list(cells.heads),
        "rows": [list(row) for row in cells.rows],
        "notes": list(cells.notes),
    }
