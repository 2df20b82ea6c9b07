"""``open-clt attribute``: why a model goes on from a prompt as it does, as graphs that are checked, saved and drawn.

What is explained are the likeliest next tokens, or what ``--target`` names. Files of ``--output``, by ``--format``:

    native           graph.json and graph.safetensors: everything, what the library loads; of several prompts, each
                     in a directory of its own
    circuit-tracer   SLUG.json and graph-metadata.json, which lists all: the pruned graph, as its viewer reads it
    graphml          SLUG.graphml: the pruned graph, for Gephi and others
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.options import AddParser, add_model_options, load
from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from open_clt.graphs.formats.circuit_tracer_schema import GraphCard
    from open_clt.graphs.graph import AttributionGraph
    from open_clt.transcoders.feature import Feature

_FORMATS = ("native", "circuit-tracer", "graphml")
_NOT_SLUGS = ("graph", "graph-metadata")
"""Other files of a directory have these names."""
_TARGET = (
    "explain this instead of the likeliest tokens: a token such as ' Austin', a difference such as ' Austin-- Dallas', "
    "or a feature as layer:position:feature; may be repeated"
)


def add_to(add_parser: AddParser) -> None:
    """Add the command."""
    parser = add_parser("attribute", help="trace why the model goes on from a prompt as it does")
    add_model_options(parser)
    option = parser.add_argument
    option("--prompt", action="append", default=[], help="the text to start from; may be repeated")
    option("--prompts", type=Path, metavar="FILE", help="a file with more prompts, one a line")
    option("--target", action="append", default=[], help=_TARGET)
    option("--position", type=int, default=-1, help="where tokens are predicted; negative from the end (default: -1)")
    option("--max-logits", type=int, default=10, help="explain at most this many likeliest tokens (default: 10)")
    option("--logit-probability", type=float, default=0.95, help="and no more than hold this (default: 0.95)")
    option("--max-feature-nodes", type=int, default=None, help="attribute at most this many features")
    option("--compatible", action="store_true", help="the nodes and numbers of circuit-tracer")
    option("--threshold", type=float, default=0.8, help="share of influence that pruning keeps (default: 0.8)")
    option("--edge-threshold", type=float, default=0.98, help="and of the edges' influence (default: 0.98)")
    option("--labels", type=Path, metavar="FILE", help='names of features: JSON such as {"L2/417": "Texas"}')
    option("--output", type=Path, metavar="DIR", help="directory for the graphs")
    option("--format", action="append", choices=_FORMATS, help="of the graphs; may be repeated (default: native)")
    option("--slug", default=None, help="name of the graph's files (default: made of the prompt)")
    option("--scan", default=None, help="where viewers find the features (default: the model's name)")
    option("--figure", type=Path, metavar="FILE", help="picture of the pruned graph: .png, .svg or .pdf")
    option("--no-faithfulness", action="store_true", help="do not measure whether the graph's predictions hold")
    option("--max-features", type=int, default=16, help="features to ablate for that (default: 16)")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Trace the prompts; check, save and draw each graph, and print what there is to know of it."""
    from open_clt.attribution.attribute import attribute_all
    from open_clt.attribution.targets import read_target
    from open_clt.graphs.targets import SalientLogits

    prompts = _prompts(arguments)
    cards = _cards(arguments, prompts)
    labels = {} if arguments.labels is None else _read_labels(arguments.labels)
    _check_places(arguments)
    clt = load(arguments)
    model, replacement = clt.language_model, clt.replacement_model()
    likeliest = SalientLogits(
        max_count=arguments.max_logits, probability=arguments.logit_probability, position=arguments.position
    )
    graphs = attribute_all(
        model,
        clt.transcoder,
        prompts,
        targets=[read_target(model, text, arguments.position) for text in arguments.target] or likeliest,
        max_feature_nodes=arguments.max_feature_nodes,
        compatible=arguments.compatible,
    )
    for graph, card in zip(graphs, cards, strict=True):
        if len(prompts) > 1:
            print(f"\n{card.slug}: {graph.info.prompt!r}")
        graph, report = graph.with_labels(labels), ""
        if not arguments.no_faithfulness:
            from open_clt.evaluation.faithfulness import faithfulness, with_faithfulness

            found = faithfulness(graph, replacement, max_features=arguments.max_features)
            graph, report = with_faithfulness(graph, found), found.summary()
        pruned = graph.prune(arguments.threshold, arguments.edge_threshold)
        for line in (*_numbers(graph, pruned), report, *_written(arguments, graph, pruned, card, len(prompts) > 1)):
            if line:
                print(line)
    return 0


def _prompts(arguments: argparse.Namespace) -> list[str]:
    from open_clt.data.prompts import read_prompts

    found = [*arguments.prompt, *(read_prompts(arguments.prompts) if arguments.prompts else [])]
    if not found:
        raise ConfigError("No prompt was given; give one with --prompt, or a file of them with --prompts.")
    return found


def _cards(arguments: argparse.Namespace, prompts: Sequence[str]) -> list[GraphCard]:
    """What files tell of each graph, its name first: no two are the same."""
    from open_clt.graphs.formats.circuit_tracer_schema import GraphCard

    if arguments.slug in _NOT_SLUGS:
        raise ConfigError(f"The slug {arguments.slug!r} is the name of another file; choose another slug.")
    taken, cards = set[str](_NOT_SLUGS), list[GraphCard]()
    for prompt in prompts:
        name = arguments.slug or re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:48].strip("-") or "prompt"
        tried = (name if number == 1 else f"{name}-{number}" for number in count(1))
        slug = next(slug for slug in tried if slug not in taken)
        taken.add(slug)
        cards.append(GraphCard(slug=slug, scan=arguments.scan))
    return cards


def _read_labels(path: Path) -> dict[Feature, str]:
    """Names of features, ``{"L2/417": "Texas"}``; raises ConfigError if the file holds anything else."""
    from open_clt.files import read_json
    from open_clt.transcoders.feature import read_labels

    try:
        return read_labels(read_json(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_places(arguments: argparse.Namespace) -> None:
    """Whether results can be written, before anything is computed."""
    if arguments.format and arguments.output is None:
        raise ConfigError("--format is given, but no directory to write to; add --output.")
    if arguments.figure is not None:
        from open_clt.visualization.style import check_suffix

        check_suffix(arguments.figure)
    for directory in (arguments.output, arguments.figure and arguments.figure.parent):
        if directory is not None:
            there = next(place for place in (directory, *directory.absolute().parents) if place.exists())
            if not there.is_dir() or not os.access(there, os.W_OK):
                raise ConfigError(f"{directory} cannot be written, as {there} is no directory to write to.")


def _numbers(graph: AttributionGraph, pruned: AttributionGraph) -> Iterator[str]:
    """Targets, sizes and scores."""
    from open_clt.graphs.nodes import NodeKind

    outputs = graph.of_kind(NodeKind.LOGIT, NodeKind.TARGET).nonzero().flatten().tolist()
    yield ", ".join(graph.node(number).label for number in outputs)
    yield f"{graph.n_nodes} nodes, {graph.n_edges} edges; {pruned.n_nodes} and {pruned.n_edges} after pruning"
    for name, scored in (("whole graph", graph), ("pruned graph", pruned)):
        scores = scored.scores()
        yield f"{name}: replacement score {scores.replacement:.3f}, completeness {scores.completeness:.3f}"
    if not graph.info.compatible:
        yield f"largest share of a row that is missing: {graph.check().relative_to_row:.1e}"


def _written(
    arguments: argparse.Namespace, graph: AttributionGraph, pruned: AttributionGraph, card: GraphCard, several: bool
) -> Iterator[str]:
    """Write the graph and its picture, and say where they are."""
    directory: Path | None = arguments.output
    if directory is not None:
        from open_clt.graphs.formats.circuit_tracer import write_circuit_tracer
        from open_clt.graphs.formats.networkx import write_graphml

        for kind in dict.fromkeys(arguments.format or ["native"]):
            match kind:
                case "native":
                    path = graph.save(directory / card.slug if several else directory)
                case "circuit-tracer":
                    path = write_circuit_tracer(pruned, directory, card)
                case _:
                    path = write_graphml(pruned, directory / f"{card.slug}.graphml")
            yield f"{kind}: {path}"
    figure: Path | None = arguments.figure
    if figure is not None:
        from open_clt.visualization.graph.figure import visualize_attribution_graph

        path = figure.with_name(f"{figure.stem}-{card.slug}{figure.suffix}") if several else figure
        visualize_attribution_graph(pruned, save_path=path)
        yield f"figure: {path}"
