"""Files of the explorer in the tables of readers: values to write, and functions that use what was read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from open_clt import files
from open_clt.errors import AttributionError
from open_clt.explorer.exports import read_upload
from open_clt.explorer.session.session import Group, Session, session_json
from open_clt.explorer.session.session_file import SavedSession, load_session, save_session
from open_clt.explorer.traces import Trace
from open_clt.explorer.training_record import StoredCurves, training_curves
from open_clt.graphs.formats.circuit_tracer_attention import qk_tracing
from open_clt.graphs.graph import AttributionGraph
from tests.faults.artefacts import trace_of


def use_graph(graph: AttributionGraph) -> Iterable[Tensor]:
    graph.ids()
    graph.adjacency()
    graph.scores()
    graph.influence()
    repr(graph)
    if not bool(graph.nodes.total.isnan().all()):
        graph.check()
    graph.prune()
    if graph.attention is not None:
        graph.attention.summary()
        [graph.attention.explained(part.look) for part in graph.attention.carried]
        qk_tracing(graph, dict(zip(graph.nodes.ids(), graph.ids(), strict=True)))
    [graph.node(row).label for row in range(graph.n_nodes)]
    return graph.edges.weight, graph.nodes.value, graph.nodes.omitted


def write_session(folder: Path) -> None:
    session = Session(
        pins=("0:1:5", "1:2:3"), groups=(Group(name="g", members=("0:1:5", "0:2:5")),), labels={"L0/5": "Texas"}
    )
    save_session(SavedSession(session, trace_of(1), "abc"), folder / "session.json")


def read_session(folder: Path) -> Iterable[Tensor | float]:
    return use_session(load_session(folder / "session.json"))


def opened(name: str) -> Callable[[Path], Iterable[Tensor | float]]:
    """A function that opens a file as a person does in the explorer."""
    return lambda folder: use_session(read_upload(name, files.read_bytes(folder / name)))


def use_session(saved: SavedSession) -> Iterable[Tensor | float]:
    session_json(saved.session)
    with suppress(AttributionError):  # groups may form a cycle, which the page says
        circuit = saved.circuit
        repr(circuit)
    _ = saved.graph
    return use_trace(saved.trace)


def use_trace(trace: Trace) -> Iterable[Tensor | float]:
    numbers = [number for row in trace.predictions for _, number in (*row["model"], *row["replacement"])]
    return [*numbers, *(row["kl"] for row in trace.predictions), *use_graph(trace.graph)]


def write_curves(folder: Path) -> None:
    curves = {name: [1, 2, 3] for name in StoredCurves._fields}
    files.write_json(folder / "training.json", {"curves": curves})


def curve_numbers(folder: Path) -> Iterable[float]:
    curves = training_curves(folder)
    return [] if curves is None else [number for column in curves for number in column]
