"""The command ``open-clt info``: what a transcoder or a graph is, from its files, without loading a model.

Of a transcoder only settings and headers are read, also on the hub, so the command takes seconds for any size.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.options import AddParser, add_command, add_trust_option, transcoder_source

if TYPE_CHECKING:
    from open_clt.graphs.graph import AttributionGraph
    from open_clt.transcoders.formats.info import TranscoderInfo

_GRAPH_FILES = (".json", ".graphml")


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "info", "Say what a transcoder or a graph is, without loading a model.")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="A transcoder (a directory, a name on the Hugging Face hub as org/name[/folder][@revision], in both "
        "perhaps with * in the names of the folders of layers, or "
        "'embedded'), or a graph (a directory, a .graphml file, or a .json file of circuit-tracer).",
    )
    add_trust_option(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the information."""
    from open_clt.transcoders.formats.info import transcoder_info

    source = transcoder_source(arguments.source)
    graph = _graph(Path(source))
    rows = (
        _of_transcoder(transcoder_info(source, trust_code=arguments.trust_code)) if graph is None else _of_graph(graph)
    )
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
