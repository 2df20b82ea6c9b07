"""The command ``open-clt info``: what a transcoder, a graph or a session is, from its files, without loading a model.

Of a transcoder only settings and headers are read, also on the hub, so the command takes seconds for any size.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.options import AddParser, add_command, add_trust_option, transcoder_source

if TYPE_CHECKING:
    from open_clt.explorer.session.session_file import SavedSession
    from open_clt.graphs.graph import AttributionGraph
    from open_clt.transcoders.formats.info import TranscoderInfo

_GRAPH_FILES = (".json", ".graphml")


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "info", "Say what a transcoder, a graph or a session is, without loading a model.")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="A transcoder (a directory, a name on the Hugging Face hub as org/name[/folder][@revision], in both "
        "perhaps with * in the names of the folders of layers, or "
        "'embedded'), a graph (a directory, a .graphml file, or a .json file of circuit-tracer), or a session of the "
        "explorer.",
    )
    add_trust_option(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the information."""
    from open_clt.transcoders.formats.info import transcoder_info

    source = transcoder_source(arguments.source)
    if (session := _session(Path(source))) is not None:
        rows = _of_session(session)
    elif (graph := _graph(Path(source))) is not None:
        rows = _of_graph(graph)
    else:
        rows = _of_transcoder(transcoder_info(source, trust_code=arguments.trust_code))
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))
    return 0


def _of_transcoder(info: TranscoderInfo) -> list[tuple[str, str]]:
    from open_clt.attribution.sources import CACHED_BYTES
    from open_clt.memory import available_memory
    from open_clt.transcoders.formats.info import readable

    needs = f"{readable(info.bytes_in_memory)} of memory for the weights"
    if info.bytes_in_memory > CACHED_BYTES:
        needs += f", or {readable(CACHED_BYTES)} if they stay in their files"
    if (available := available_memory()) is not None:
        needs += f"; {readable(available)} are free"
    return [*info.rows(), ("attribution needs", needs)]


def _of_graph(graph: AttributionGraph) -> list[tuple[str, str]]:
    from open_clt.graphs.nodes import NodeKind

    info = graph.info
    counts = {kind: int(graph.of_kind(kind).sum()) for kind in NodeKind}
    kinds = ", ".join(f"{count:,} {kind.name.lower().replace('_', ' ')}" for kind, count in counts.items() if count)
    budget = info.settings.max_feature_nodes
    return [
        ("prompt", repr(info.prompt)),
        ("tokens", f"{len(info.tokens)}"),
        ("language model", info.model),
        ("transcoder for", info.transcoder or "not stated"),
        ("targets", ", ".join(repr(name) for name in info.target_names[:10])),
        ("nodes", f"{graph.n_nodes:,}: {kinds}"),
        ("edges", f"{graph.n_edges:,}"),
        ("active features", f"{info.n_active_features:,}" + ("" if budget is None else f", a budget of {budget:,}")),
        ("left out", " ".join(filter(None, (info.left_out(), graph.missing()))) or "nothing"),
    ]


def _of_session(saved: SavedSession) -> list[tuple[str, str]]:
    session = saved.session
    groups = ", ".join(repr(group.name) for group in session.groups[:10])
    return [
        ("session", f"of transcoder {saved.transcoder}" if saved.transcoder else "of a graph of another program"),
        ("pins", f"{len(session.pins):,}"),
        ("groups", f"{len(session.groups):,}" + (f": {groups}" if groups else "")),
        ("labels", f"{len(session.labels):,}"),
        ("changes to steer", f"{len(session.steers):,}, carried out {len(session.runs):,} times"),
        *_of_graph(saved.graph),
    ]


def _session(path: Path) -> SavedSession | None:
    """The session at a path; None if the path is not that of a session."""
    from open_clt import files

    files.check_readable(path)
    if not path.is_file() or path.suffix != ".json" or path.name == "config.json":
        return None
    from open_clt.explorer.session.session_file import FORMAT, load_session

    return load_session(path) if files.format_of(path) == FORMAT.name else None


def _graph(path: Path) -> AttributionGraph | None:
    """The graph at a path; None if the path does not look like that of a graph."""
    from open_clt import files
    from open_clt.graphs.formats.circuit_tracer_reader import read_circuit_tracer
    from open_clt.graphs.formats.networkx import read_graphml
    from open_clt.graphs.graph import AttributionGraph

    files.check_readable(path)
    if path.is_file() and path.suffix in _GRAPH_FILES and path.name != "config.json":
        return read_graphml(path) if path.suffix == ".graphml" else read_circuit_tracer(path).graph
    if path.is_dir() and files.can_be_read(path, "graph.json"):
        return AttributionGraph.load(path)
    return None
