"""The command ``open-clt info``: what a transcoder, a graph, a session or a dataset is, without loading a model.

Of a transcoder only settings and headers are read, also on the hub, and of a dataset of activations only its manifest
and the headers of its shards. So the command takes seconds for any size.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from open_clt.commands.options import AddParser, add_command, add_trust_option, transcoder_source
from open_clt.web_checks import is_address

if TYPE_CHECKING:
    from open_clt.data.dataset.manifest import Harvested, Scrambled, Shard
    from open_clt.explorer.session.session_file import SavedSession
    from open_clt.graphs.graph import AttributionGraph
    from open_clt.transcoders.formats.info import TranscoderInfo

_GRAPH_FILES = (".json", ".graphml")
Rows: TypeAlias = list[tuple[str, str]]
"""What is printed: the name and the value of each row."""


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "info", "Say what a transcoder, a graph, a session or a dataset is.")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="A transcoder (a directory, a name on the Hugging Face hub as org/name[/folder][@revision], in both "
        "perhaps with * in the names of the folders of layers, or "
        "'embedded'), a graph (a directory, a .graphml file, or a .json file of circuit-tracer), a session of the "
        "explorer, or a dataset of activations (a directory, or its address on a server).",
    )
    add_trust_option(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the information."""
    from open_clt.transcoders.formats.info import transcoder_info

    if is_address(arguments.source):
        rows = _dataset_on_server(arguments.source)
    else:
        source = transcoder_source(arguments.source)
        described = (rows for of_kind in _KINDS if (rows := of_kind(Path(source))) is not None)
        rows = next(described, None) or _of_transcoder(transcoder_info(source, trust_code=arguments.trust_code))
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))
    return 0


def _of_transcoder(info: TranscoderInfo) -> Rows:
    from open_clt.attribution.sources import CACHED_BYTES
    from open_clt.memory import available_memory
    from open_clt.transcoders.formats.info import readable

    needs = f"{readable(info.bytes_in_memory)} of memory for the weights"
    if info.bytes_in_memory > CACHED_BYTES:
        needs += f", or {readable(CACHED_BYTES)} if they stay in their files"
    if (available := available_memory()) is not None:
        needs += f"; {readable(available)} are free"
    return [*info.rows(), ("attribution needs", needs)]


def _of_graph(graph: AttributionGraph) -> Rows:
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
        *([] if graph.attention is None else [("attention", graph.attention.summary())]),
    ]


def _of_session(saved: SavedSession) -> Rows:
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


def _session(path: Path) -> Rows | None:
    """The rows of the session at a path; None if the path is not that of a session."""
    from open_clt import files

    files.check_readable(path)
    if not path.is_file() or path.suffix != ".json" or path.name == "config.json":
        return None
    from open_clt.explorer.session.session_file import FORMAT, load_session

    return _of_session(load_session(path)) if files.format_of(path) == FORMAT.name else None


def _graph(path: Path) -> Rows | None:
    """The rows of the graph at a path; None if the path does not look like that of a graph."""
    from open_clt import files
    from open_clt.graphs.formats.circuit_tracer_reader import read_circuit_tracer
    from open_clt.graphs.formats.networkx import read_graphml
    from open_clt.graphs.graph import AttributionGraph

    files.check_readable(path)
    if path.is_file() and path.suffix in _GRAPH_FILES and path.name != "config.json":
        return _of_graph(read_graphml(path) if path.suffix == ".graphml" else read_circuit_tracer(path).graph)
    if path.is_dir() and files.can_be_read(path, "graph.json"):
        return _of_graph(AttributionGraph.load(path))
    return None


def _dataset(path: Path) -> Rows | None:
    """The rows of the dataset of activations at a path; None if the path does not look like that of a dataset."""
    from open_clt import files
    from open_clt.data.dataset.manifest import MANIFEST, SCRAMBLING, UNFINISHED_FILES, DatasetManifest, read_manifest
    from open_clt.data.dataset.shards import open_shard
    from open_clt.data.dataset.unfinished import read_all_unfinished
    from open_clt.transcoders.formats.load import holds_transcoder

    files.check_readable(path)
    if not any(any(path.glob(name)) for name in (MANIFEST, UNFINISHED_FILES, SCRAMBLING)) or holds_transcoder(path):
        return None
    is_complete = (path / MANIFEST).is_file()
    states = [] if is_complete else read_all_unfinished(path)
    found = states[0] if states else read_manifest(path)
    shards = [shard for one in (states or [found]) for shard in one.shards]
    for shard in shards:
        open_shard(path, shard, found.harvested)
    tokens, asked_for = sum(shard.tokens for shard in shards), found.harvested.tokens
    n_bytes = sum((path / shard.file).stat().st_size for shard in shards)
    goes_on = f"unfinished, {tokens:,} of {asked_for:,} tokens; the same `open-clt harvest` goes on with it"
    scrambled = found.scrambled if isinstance(found, DatasetManifest) else None
    return [
        ("dataset", "complete" if is_complete else goes_on),
        *_of_harvested(found.harvested),
        *_of_scrambled(scrambled),
        *_of_shards(found.harvested, shards, n_bytes, is_complete=is_complete),
    ]


def _dataset_on_server(address: str) -> Rows:
    """The rows of the dataset at an address, of which the manifest and the sizes of the shards are asked for."""
    from open_clt.data.dataset.reader import ActivationDataset

    dataset = ActivationDataset(address)
    manifest = dataset.manifest
    return [
        ("dataset", "complete, on a server"),
        *_of_harvested(manifest.harvested),
        *_of_scrambled(manifest.scrambled),
        *_of_shards(manifest.harvested, manifest.shards, dataset.check(), is_complete=True),
    ]


def _of_shards(harvested: Harvested, shards: Sequence[Shard], n_bytes: int, *, is_complete: bool) -> Rows:
    from open_clt.transcoders.formats.info import readable

    shard_tokens = shards[0].tokens if is_complete and shards else harvested.shard_tokens
    return [
        ("tokens", f"{sum(shard.tokens for shard in shards):,}"),
        ("shards", f"{len(shards):,} of {shard_tokens:,} tokens; the last one may have fewer"),
        ("on disk", f"{readable(n_bytes)}, {harvested.bytes_per_token:,} bytes a token"),
    ]


def _of_scrambled(scrambled: Scrambled | None) -> Rows:
    if scrambled is None:
        return []
    source = scrambled.manifest_sha256[:12]
    return [("scrambled", f"seed {scrambled.seed}, from the dataset whose manifest has the SHA-256 {source}...")]


def _of_harvested(harvested: Harvested) -> Rows:
    from open_clt.data.dataset.manifest import MANIFEST_FORMAT

    text = harvested.text
    places = [f", {name} {value!r}" for name in ("column", "split") if (value := getattr(text, name)) is not None]
    begins = "each begins where a text begins" if text.from_start else "cut from the texts one after another"
    return [
        ("format", MANIFEST_FORMAT.name),
        ("language model", harvested.model),
        ("inputs", harvested.input_hook),
        ("targets", harvested.target_hook),
        ("layers", f"{harvested.n_layers}"),
        ("width", f"{harvested.d_model:,}"),
        ("type", harvested.dtype),
        ("text", text.source + "".join(places)),
        ("contexts", f"of {text.context_length:,} tokens, BOS included; {begins}"),
        ("order", f"tokens of {harvested.shards_mixed} consecutive shards are mixed, seed {harvested.seed}"),
    ]


_KINDS: tuple[Callable[[Path], Rows | None], ...] = (_session, _graph, _dataset)
"""For each kind but transcoders, the function that makes its rows, or returns None for another kind."""
