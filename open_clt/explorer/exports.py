"""Exports: what an explorer shows, as files of other programs; and files of other programs, as traces."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

from open_clt import files
from open_clt.errors import CheckpointError, ConfigError
from open_clt.explorer.models import Models
from open_clt.explorer.session.session import LONGEST_TEXT, MOST_PINS, Group, Session
from open_clt.explorer.session.session_file import FORMAT, SavedSession, read_saved, session_content
from open_clt.explorer.traces import Trace, file_key
from open_clt.explorer.views import Shown, features_of
from open_clt.features.records import FeatureRecord
from open_clt.graphs.formats.circuit_tracer import circuit_tracer_json
from open_clt.graphs.formats.circuit_tracer_reader import viewed_graph
from open_clt.graphs.formats.circuit_tracer_schema import GraphCard, GraphView
from open_clt.progress import report_progress
from open_clt.short_repr import short_repr
from open_clt.visualization.graph.figure import visualize_attribution_graph
from open_clt.visualization.prompt_report.report import graph_page

_MOST_NODES, _MOST_EDGES = 300, 2000
_LONGEST_NAME = 80
"""Number of characters that are kept of a file's name."""
_MOST_RECORDS = 300
"""Largest number of features whose records an HTML file holds."""


class File(NamedTuple):
    """A file that a browser keeps."""

    name: str
    kind: str
    """Its media type."""
    content: bytes

    __repr__ = short_repr


class Exported(NamedTuple):
    """Everything that an export is made of."""

    trace: Trace
    shown: Shown
    session: Session
    models: Models | None

    __repr__ = short_repr


def export(kind: str, what: Exported) -> File:
    """Make a file of one of the kinds in ``EXPORTS``."""
    report_progress(f"writing {kind}", 0, 1)
    media, make = EXPORTS[kind]
    return File(f"{slug_of(what.trace)}.{_SUFFIXES.get(kind, kind)}", media, make(what))


def check_kind(kind: str) -> None:
    """Raise ConfigError if ``export`` does not make files of this kind."""
    if kind not in EXPORTS:
        raise ConfigError(f"{kind[:40]!r} is not a kind of export; the kinds are {', '.join(EXPORTS)}.")


def slug_of(trace: Trace) -> str:
    """A name for the files of a trace: the words of its prompt."""
    words = re.findall(r"[A-Za-z0-9]+", trace.graph.info.prompt)[:8]
    return "-".join(word.lower() for word in words)[:60] or "graph"


def _figure(suffix: str) -> Callable[[Exported], bytes]:
    def make(what: Exported) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"graph.{suffix}"
            visualize_attribution_graph(what.shown.graph, max_nodes=_MOST_NODES, max_edges=_MOST_EDGES, save_path=path)
            return files.read_bytes(path)

    return make


def _html(what: Exported) -> bytes:
    records: list[FeatureRecord] = []
    if what.models is not None and what.models.records is not None:
        found = (what.models.records.record(feature) for feature in features_of(what.shown.graph)[:_MOST_RECORDS])
        records = [record for record in found if record is not None]
    return graph_page(what.shown.graph, records, what.shown.automatic).encode()


def _circuit_tracer(what: Exported) -> bytes:
    graph, session = what.shown.graph, what.session
    ids = set(graph.ids())
    view = GraphView(
        pinned=tuple(node for node in session.circuit if node in ids),
        supernodes=tuple(group for group in session.supernodes if set(group.members) <= ids),
        clicked=session.selected if session.selected is not None and session.selected in ids else "",
    )
    content = circuit_tracer_json(graph, GraphCard(slug=slug_of(what.trace)), view)
    return files.json_text(content, "the exported graph", strict=True).encode()


def _session(what: Exported) -> bytes:
    transcoder = "" if what.models is None or what.trace.name else what.models.fingerprint
    content = session_content(SavedSession(what.session, what.trace, transcoder))
    return files.json_text(content, "the session", indent=None).encode()


EXPORTS: dict[str, tuple[str, Callable[[Exported], bytes]]] = {
    "png": ("image/png", _figure("png")),
    "svg": ("image/svg+xml", _figure("svg")),
    "pdf": ("application/pdf", _figure("pdf")),
    "html": ("text/html", _html),
    "json": ("application/json", _circuit_tracer),
    "session": ("application/json", _session),
}
"""Kinds of exports, with their media types and how they are made; ``json`` is circuit-tracer's form of graphs."""
_SUFFIXES = {"session": "session.json"}


def read_upload(name: str, content: bytes) -> SavedSession:
    """Read a file that a person opens: a session, or a graph of circuit-tracer, Neuronpedia or OpenCLT.

    The session of a graph alone holds the pins, groups and labels of its file. Raises CheckpointError for other files.
    """
    path = Path(name[:_LONGEST_NAME])
    try:
        values = files.parse_json(content, finite=True)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a readable JSON file ({str(error)[:120]}).") from error
    if isinstance(values, dict) and cast(dict[str, Any], values).get("format") == FORMAT.name:
        return read_saved(FORMAT.check(values, path), path)
    try:
        viewed = viewed_graph(values, path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} is neither a session of the explorer nor a graph of circuit-tracer or Neuronpedia "
            f"({str(error).replace(str(path), 'the file')[:120]})."
        ) from error
    graph, view = viewed.graph, viewed.view
    trace = Trace(key=file_key(content), graph=graph, name=path.name or "file")
    groups = tuple(Group(name=each.label[:LONGEST_TEXT] or "group", members=each.members) for each in view.supernodes)
    grouped = {member for supernode in view.supernodes for member in supernode.members}
    session = Session(graph=trace.key, pins=tuple(dict.fromkeys((*view.pinned, *grouped)))[:MOST_PINS], groups=groups)
    return SavedSession(session, trace, "")
