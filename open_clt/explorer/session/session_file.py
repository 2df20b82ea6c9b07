"""Session files: a session of the explorer and its graph in one JSON file.

    {"format": "open-clt-session", "format_version": 1, "session": {...}, "transcoder": HASH,
     "graph": {"key": KEY, "name": NAME, "predictions": [...],
               "files": {"graph.json": TEXT, "graph.safetensors": TEXT}}}

The graph's files are those of ``AttributionGraph.save``, in base64. ``load_session`` reads such a file without the
explorer and without its extra packages.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

from open_clt import files
from open_clt.config.arguments import checked_arguments
from open_clt.errors import CheckpointError, ConfigError
from open_clt.explorer.session.circuit import circuit_of
from open_clt.explorer.session.session import Session, read_session, session_json
from open_clt.explorer.traces import Trace, read_predictions
from open_clt.graphs.graph import FORMAT as GRAPH_FORMAT
from open_clt.graphs.graph import GRAPH_FILES, AttributionGraph, graph_of_values, stored_values
from open_clt.graphs.supernodes import GroupedGraph
from open_clt.short_repr import short_repr

FORMAT = files.FileFormat("open-clt-session", newest=1)


@final
@dataclass(frozen=True)
class SavedSession:
    """What a session file holds."""

    session: Session
    """What the person chose: pins, groups, labels, steering and its history."""
    trace: Trace
    """The graph, with what both models predict on its prompt."""
    transcoder: str
    """Hash of the transcoder; empty for a graph that another program computed."""

    @property
    def graph(self) -> AttributionGraph:
        """The whole graph, with the person's labels."""
        return self.trace.graph.with_labels(self.session.feature_labels)

    @property
    def circuit(self) -> GroupedGraph | None:
        """The pinned nodes and groups between the tokens and the outputs; None if nothing is pinned."""
        return circuit_of(self.graph, self.session)

    __repr__ = short_repr


@checked_arguments
def save_session(saved: SavedSession, path: str | Path) -> Path:
    """Write a session and its graph into one file, and return its path."""
    return files.write_json(Path(path), session_content(saved))


@checked_arguments
def load_session(path: str | Path) -> SavedSession:
    """Read a session that the explorer saved; raises CheckpointError if the file holds anything else.

    ``session.graph`` is the attribution graph with the person's labels, and ``session.circuit`` the graph between the
    person's pins and groups.
    """
    path = Path(path)
    return read_saved(FORMAT.read(path, finite=True), path)


def session_content(saved: SavedSession) -> dict[str, Any]:
    """What a session file holds, as plain values."""
    trace = saved.trace
    values, tensors = stored_values(trace.graph)
    contents = files.json_text(values, "the graph").encode(errors="backslashreplace"), files.tensor_bytes(tensors)
    stored = {name: base64.b64encode(each).decode() for name, each in zip(GRAPH_FILES, contents, strict=True)}
    graph = {"key": trace.key, "name": trace.name, "predictions": list(trace.predictions), "files": stored}
    return {
        **FORMAT.header(),
        "session": session_json(saved.session),
        "transcoder": saved.transcoder,
        "graph": graph,
    }


def read_saved(content: Mapping[str, Any], path: Path) -> SavedSession:
    """Read what ``session_content`` returned; raises CheckpointError, which names the path, on anything else."""
    try:
        match content:
            case {
                "session": dict(session),
                "transcoder": str(transcoder),
                "graph": {"key": str(key), "name": str(name), "predictions": list(rows), "files": dict(stored)},
            }:
                trace = Trace(
                    key=key,
                    graph=_graph(cast(dict[str, Any], stored)),
                    predictions=read_predictions(cast(list[Any], rows)),
                    name=name,
                )
                return SavedSession(read_session(cast(dict[str, Any], session)), trace, transcoder)
            case _:
                raise CheckpointError("it lacks a value")
    except (ConfigError, CheckpointError, *files.WRONG_VALUES) as error:
        raise CheckpointError(f"{path} does not hold a whole session of the explorer ({error}).") from error


def _graph(stored: Mapping[str, Any]) -> AttributionGraph:
    """The graph of its two files."""
    try:
        values, tensors = (base64.b64decode(stored[name], validate=True) for name in GRAPH_FILES)
    except binascii.Error as error:
        raise CheckpointError("its graph is not written in base64") from error
    try:
        content = GRAPH_FORMAT.check(files.parse_json(values), Path(GRAPH_FILES[0]))
        return graph_of_values(content, files.parse_tensors(tensors, GRAPH_FILES[1]), Path(GRAPH_FILES[0]))
    except (CheckpointError, ValueError) as error:
        raise CheckpointError("its graph is damaged") from error
