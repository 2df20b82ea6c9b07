"""Readers of graphs, and of files of the explorer."""

from __future__ import annotations

from open_clt.circuits.circuit import Circuit
from open_clt.explorer.traces import load_trace, save_trace
from open_clt.graphs.formats.circuit_tracer import write_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_reader import read_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_schema import GraphCard
from open_clt.graphs.formats.networkx import read_graphml, write_graphml
from open_clt.graphs.graph import AttributionGraph
from tests.circuits.small_circuit import circuit_of
from tests.explorer.used_graphs import (
    curve_numbers,
    opened,
    read_session,
    use_graph,
    use_trace,
    write_curves,
    write_session,
)
from tests.faults.artefacts import consensus_of, graph_of, trace_of
from tests.faults.reading.reader import Reader, nothing

GRAPHS: dict[str, Reader] = {
    "graph": Reader(
        lambda folder: graph_of(1).save(folder),
        lambda folder: use_graph(AttributionGraph.load(folder)),
        "graphs.graph",
    ),
    "consensus of graphs": Reader(
        lambda folder: consensus_of(1).save(folder),
        lambda folder: use_graph(AttributionGraph.load(folder)),
        "graphs.graph",
    ),
    "consensus as GraphML": Reader(
        lambda folder: write_graphml(consensus_of(1), folder / "cat.graphml"),
        lambda folder: use_graph(read_graphml(folder / "cat.graphml")),
        "graphs.formats.networkx",
    ),
    "graph as GraphML": Reader(
        lambda folder: write_graphml(graph_of(1), folder / "cat.graphml"),
        lambda folder: use_graph(read_graphml(folder / "cat.graphml")),
        "graphs.formats.networkx",
    ),
    "graph of circuit-tracer": Reader(
        lambda folder: write_circuit_tracer(graph_of(1), folder, GraphCard(slug="cat")),
        lambda folder: use_graph(read_circuit_tracer(folder / "cat.json").graph),
        "graphs.formats.circuit_tracer_reader",
    ),
    "circuit": Reader(
        lambda folder: circuit_of(1).save(folder / "circuit.yaml"),
        lambda folder: [claim.needed for claim in Circuit.load(folder / "circuit.yaml").claims],
        "circuits.circuit",
    ),
    "trace of the explorer": Reader(
        lambda folder: save_trace(trace_of(1), folder),
        lambda folder: use_trace(load_trace(folder)),
        "explorer.traces",
    ),
    "session of the explorer": Reader(write_session, read_session, "explorer.session.session_file"),
    "session that a person opens": Reader(
        write_session, opened("session.json"), "explorer.exports", names="session.json"
    ),
    "graph that a person opens": Reader(
        lambda folder: write_circuit_tracer(graph_of(1), folder, GraphCard(slug="cat")),
        opened("cat.json"),
        "explorer.exports",
        names="cat.json",
    ),
    "training record": Reader(write_curves, curve_numbers, "explorer.training_record"),
    "list of graphs": Reader(
        lambda folder: write_circuit_tracer(graph_of(1), folder, GraphCard(slug="cat")),
        nothing(lambda folder: write_circuit_tracer(graph_of(2), folder, GraphCard(slug="dog"))),
        "graphs.formats.circuit_tracer_schema",
    ),
}
