"""The command ``open-clt attribute``: compute the attribution graphs of prompts, then check, save and draw them.

A graph explains the likeliest next tokens or the targets that ``--target`` names. ``--format`` selects the files that
are written to ``--output``:

    native           graph.json and graph.safetensors: the whole graph, which the library loads; several prompts get a
                     directory each
    circuit-tracer   SLUG.json, and graph-metadata.json with the list of all graphs: the pruned graph for the viewer of
                     circuit-tracer
    graphml          SLUG.graphml: the pruned graph for Gephi and other programs

With ``--consensus``, one graph is written that averages the graphs of all prompts (docs/consensus.md).
With ``--attention``, the first two also hold why the attention heads that carry the pruned graph's edges looked where
they took them from.
Options have the names of circuit-tracer, too (``-m``, ``-t``, ``-p``, ``--max_n_logits``, ``--node_threshold``, ...).

Features have the labels of ``--labels``, and others those of the transcoder's records (``open-clt features``), if there
are any.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.consensus_options import (
    add_consensus_options,
    check_consensus_options,
    consensus_lines,
    consensus_of,
)
from open_clt.commands.held_out import add_source_options
from open_clt.commands.options import (
    EDGE_THRESHOLD,
    NODE_THRESHOLD,
    AddOption,
    AddParser,
    add_budget_option,
    add_chat_option,
    add_check_options,
    add_command,
    add_labels_option,
    add_model_options,
    add_target_options,
    budget_of,
    check_target_options,
    load,
    own_source,
    position_of,
    read_labels_of,
    read_targets,
    share,
)
from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from open_clt.data.prompts import PromptSet
    from open_clt.graphs.formats.circuit_tracer_schema import GraphCard
    from open_clt.graphs.graph import AttributionGraph
    from open_clt.graphs.targets import SalientLogits
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder

_FORMATS = ("native", "circuit-tracer", "graphml")
_NOT_SLUGS = ("graph", "graph-metadata")
"""Names that cannot be slugs, because other files of the output directory have them."""
_PROBABILITY = "Total probability of the tokens to explain; less likely tokens are left out (default: 0.95)."
_CIRCUIT_TEXT = (
    "Text for the name and its claims: a text, .jsonl or .parquet file, or a data set on the "
    "Hugging Face hub (default: generated sentences, for the embedded model only)."
)
_MOST_LOGITS = "Largest number of likeliest tokens to explain (default: 10)."
_NO_FAITHFULNESS = "Skip the check, which ablates features and compares the effects with the graph's predictions."


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(
        add_parser, "attribute", "Compute attribution graphs, which explain the next token of a prompt."
    )
    add_model_options(parser)
    _add_targets(parser.add_argument_group("prompts and targets").add_argument)
    _add_sizes(parser.add_argument_group("size of the graph").add_argument)
    _add_attention(parser.add_argument_group("attention").add_argument)
    _add_output(parser.add_argument_group("output").add_argument)
    _add_circuit(parser.add_argument_group("circuit").add_argument)
    check = parser.add_argument_group("faithfulness check").add_mutually_exclusive_group()
    add_check_options(check.add_argument, 16, _NO_FAITHFULNESS)
    parser.set_defaults(command=run)


def _add_targets(option: AddOption) -> None:
    option("--prompt", "-p", action="append", default=[], help="Prompt to explain. May be repeated.")
    option(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="Text file with more prompts, one per line, or .json file with templates and the values of their slots.",
    )
    add_consensus_options(option)
    add_chat_option(option)
    add_target_options(option)
    option("--max-logits", "--max_n_logits", type=int, help=_MOST_LOGITS)
    option("--logit-probability", "--desired_logit_prob", type=float, help=_PROBABILITY)


def _add_sizes(option: AddOption) -> None:
    add_budget_option(option)
    option("--compatible", action="store_true", help="Compute the same nodes and edge weights as circuit-tracer.")
    for names, default, what in (
        (NODE_THRESHOLD, 0.8, "node"),
        (EDGE_THRESHOLD, 0.98, "edge"),
    ):
        help_text = f"Share of {what} influence that pruning keeps (default: {default})."
        option(*names, type=float, default=default, help=help_text)


def _add_attention(option: AddOption) -> None:
    option(
        "--attention",
        action="store_true",
        help="Explain why the attention heads that carry edges of the pruned graph looked there, and store it.",
    )
    option(
        "--attention-share",
        type=share,
        help="Least share of an edge that a head carries from one position if it is explained (default: 0.05).",
    )


def _add_output(option: AddOption) -> None:
    option("--output", "-o", type=Path, metavar="DIR", help="Directory for the graphs.")
    option("--format", action="append", choices=_FORMATS, help="File format. May be repeated (default: native).")
    option("--slug", default=None, help="Name of the graph's files (default: derived from the prompt).")
    option("--scan", default=None, help="Name under which viewers find the features (default: the name of the model).")
    add_labels_option(option)
    option("--figure", type=Path, metavar="FILE", help="Picture of the pruned graph, a .png, .svg or .pdf file.")


def _add_circuit(option: AddOption) -> None:
    option(
        "--circuit",
        type=Path,
        metavar="FILE",
        help="YAML file for the named hidden hop of one prompt, with claims that `open-clt verify` tests again.",
    )
    add_source_options(option, text=_CIRCUIT_TEXT)


def run(arguments: argparse.Namespace) -> int:
    """Check the options and the output directory, then compute the graphs."""
    from open_clt.files import results

    prompt_set = _prompts(arguments)
    prompts = prompt_set.prompts
    check_consensus_options(arguments, prompts)
    cards = _cards(arguments, prompts[:1] if arguments.consensus else prompts)
    check_target_options(arguments)
    _check_used(arguments, several=len(cards) > 1)
    with results(arguments.output):
        _check_writable(arguments, cards)
        _attribute(arguments, prompt_set, cards)
    return 0


def _attribute(arguments: argparse.Namespace, prompt_set: PromptSet, cards: Sequence[GraphCard]) -> None:
    """Compute the graph of each prompt, check, save and draw it, and print its sizes and scores."""
    from open_clt.attribution.attribute import attribute_all
    from open_clt.evaluation.calibration import with_stored_confidence
    from open_clt.features.labelling.stored import with_stored_labels

    labels = read_labels_of(arguments)
    labelled = arguments.output or arguments.figure or arguments.target
    if labels and not labelled:
        raise ConfigError("--labels is given, but no graph is saved or drawn; add --output or --figure.")
    clt = load(arguments)
    model, replacement = clt.language_model, clt.replacement_model()
    graphs = attribute_all(
        model,
        clt.transcoder,
        prompt_set.prompts,
        targets=read_targets(arguments, model) or _likeliest(arguments),
        max_feature_nodes=budget_of(arguments, clt.transcoder),
        compatible=arguments.compatible,
        chat=arguments.chat,
    )
    graphs = (graph.with_labels(labels) for graph in graphs)
    if labelled or arguments.consensus:  # otherwise nothing shows a label
        graphs = (with_stored_labels(graph, clt.transcoder, own_source(arguments)) for graph in graphs)
    if arguments.consensus:
        averaged = consensus_of(arguments, list(graphs), prompt_set, replacement)
        for line in (*consensus_lines(averaged), *_write(arguments, averaged, averaged, cards[0], several=False)):
            print(line)
        return
    for graph, card in zip(graphs, cards, strict=True):
        if len(cards) > 1:
            print(f"\n{card.slug}: {graph.info.prompt!r}")
        graph, report = with_stored_confidence(graph, clt.transcoder, own_source(arguments)), ""
        if not arguments.no_faithfulness:
            from open_clt.evaluation.faithfulness import faithfulness, with_faithfulness

            result = faithfulness(graph, replacement, max_features=arguments.max_features)
            graph, report = with_faithfulness(graph, result), result.summary()
        pruned = graph.prune(arguments.node_threshold, arguments.edge_threshold)
        graph, pruned, attention = _explained(arguments, clt, graph, pruned)
        for line in (
            *_summary(graph, pruned),
            report,
            attention,
            *_write(arguments, graph, pruned, card, len(cards) > 1),
        ):
            if line:
                print(line)
        if arguments.circuit is not None:
            print("\n".join(_circuit(arguments, clt, graph)))


def _circuit(arguments: argparse.Namespace, clt: OpenCrossLayerTranscoder, graph: AttributionGraph) -> Iterator[str]:
    """Write the circuit of a graph, and yield lines with its names, its claims and its path."""
    from open_clt.commands.verify import write_circuit

    circuit = write_circuit(arguments, clt, graph, arguments.circuit)
    token = graph.info.token_strings[circuit.source]
    for supernode in circuit.supernodes:
        yield f"hidden hop after {token!r}: {supernode.name!r}, {len(supernode.members)} features"
    for claim in circuit.claims:
        value = "not measured" if claim.measured is None else f"{claim.measured:.3f}"
        holds = claim.measured is not None and claim.measured >= claim.needed
        yield f"claim {claim.kind:<9} {value}, needs {claim.needed:g}: {'holds' if holds else 'FAILS'}"
    yield f"circuit: {arguments.circuit}"


def _explained(
    arguments: argparse.Namespace, clt: OpenCrossLayerTranscoder, graph: AttributionGraph, pruned: AttributionGraph
) -> tuple[AttributionGraph, AttributionGraph, str]:
    """Both graphs with the explained attention if it is asked for, and a line about it."""
    if not arguments.attention:
        return graph, pruned, ""
    from open_clt.attribution.graph_attention import SHARE, with_attention

    least = SHARE if arguments.attention_share is None else arguments.attention_share
    graph = with_attention(clt.language_model, clt.transcoder, graph, part=pruned, share=least)
    assert graph.attention is not None
    return graph, replace(pruned, attention=graph.attention), f"attention: {graph.attention.summary()}"


def _check_used(arguments: argparse.Namespace, *, several: bool) -> None:
    """Raise ConfigError for an option that the other options leave without use."""
    for name in ("max_logits", "logit_probability"):
        if arguments.target and getattr(arguments, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is for the likeliest tokens, but --target is given; remove one of the two.")
    formats: list[str] = arguments.format or []
    if arguments.scan is not None and "circuit-tracer" not in formats:
        raise ConfigError("--scan is for the viewer of circuit-tracer; add --format circuit-tracer.")
    if arguments.attention_share is not None and not arguments.attention:
        raise ConfigError("--attention-share is given, but attention is not explained; add --attention.")
    if arguments.attention and arguments.consensus:
        raise ConfigError(
            "--attention explains the graph of one prompt, but --consensus is given; remove one of the two."
        )
    if arguments.attention and (arguments.output is None or set(formats) == {"graphml"}):
        raise ConfigError(
            "--attention is given, but nothing stores it; add --output, with another --format than graphml."
        )
    for name in ("text", "column", "split"):
        if getattr(arguments, name) is not None and arguments.circuit is None:
            raise ConfigError(f"--{name} is for the claims of a circuit; add --circuit, or remove --{name}.")
    if arguments.circuit is not None and (several or arguments.chat):
        kind = "a chat" if arguments.chat else "several prompts"
        raise ConfigError(f"--circuit is given with {kind}, but a circuit is that of one prompt of plain text.")
    if arguments.slug is not None and not several and set(formats) <= {"native"}:
        raise ConfigError("--slug names no file of one graph in the native format; add another --format.")


def _likeliest(arguments: argparse.Namespace) -> SalientLogits:
    """The likeliest tokens, as the options limit them."""
    from open_clt.graphs.targets import SalientLogits

    limits = {"max_count": arguments.max_logits, "probability": arguments.logit_probability}
    given = {name: value for name, value in limits.items() if value is not None}
    return SalientLogits(position=position_of(arguments), **given)


def _prompts(arguments: argparse.Namespace) -> PromptSet:
    from open_clt.data.prompts import PromptSet, read_prompt_set

    read = read_prompt_set(arguments.prompts) if arguments.prompts else PromptSet(())
    prompts = (*arguments.prompt, *read.prompts)
    if not prompts:
        raise ConfigError("No prompt is given; use --prompt for one prompt, or --prompts for a file with several.")
    return PromptSet(prompts, read.templates)


def _cards(arguments: argparse.Namespace, prompts: Sequence[str]) -> list[GraphCard]:
    """Return the slug and the scan of each graph; slugs differ from one another."""
    from open_clt.graphs.formats.circuit_tracer_schema import GraphCard

    if arguments.slug in _NOT_SLUGS:
        raise ConfigError(
            f"--slug is {arguments.slug!r}, the name of another file in the output directory; choose another slug."
        )
    taken, cards = set[str](_NOT_SLUGS), list[GraphCard]()
    for prompt in prompts:
        name = arguments.slug or re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:48].strip("-") or "prompt"
        candidates = (name if attempt == 1 else f"{name}-{attempt}" for attempt in count(1))
        slug = next(slug for slug in candidates if slug not in taken)
        taken.add(slug)
        cards.append(GraphCard(slug=slug, scan=arguments.scan))
    return cards


def _check_writable(arguments: argparse.Namespace, cards: Sequence[GraphCard]) -> None:
    """Raise ConfigError if the results cannot be written, before anything is computed."""
    from open_clt.graphs import graph
    from open_clt.graphs.formats import circuit_tracer, networkx

    if arguments.format and arguments.output is None:
        raise ConfigError("--format is given without a directory to write to; add --output.")
    if arguments.figure is not None:
        from open_clt.visualization.style import check_save_path

        for card in cards:
            check_save_path(_figure_path(arguments.figure, card, several=len(cards) > 1))
    if arguments.circuit is not None:
        from open_clt.files import check_file

        check_file(arguments.circuit)
    directory: Path | None = arguments.output
    if directory is None:
        return
    for file_format in arguments.format or ["native"]:
        match file_format:
            case "native":
                for card in cards:
                    graph.check_place(directory / card.slug if len(cards) > 1 else directory)
            case "circuit-tracer":
                circuit_tracer.check_place(directory, [card.slug for card in cards])
            case _:
                for card in cards:
                    networkx.check_place(directory / f"{card.slug}.graphml")


def _figure_path(figure: Path, card: GraphCard, *, several: bool) -> Path:
    """The path of a graph's picture, which has the graph's slug in its name if there are several."""
    return figure.with_name(f"{figure.stem}-{card.slug}{figure.suffix}") if several else figure


def _summary(graph: AttributionGraph, pruned: AttributionGraph) -> Iterator[str]:
    """Yield lines with the targets, the sizes and the scores of a graph."""
    from open_clt.graphs.nodes import NodeKind

    outputs = graph.of_kind(NodeKind.LOGIT, NodeKind.TARGET).nonzero().flatten().tolist()
    yield ", ".join(graph.node(node_index).label for node_index in outputs)
    yield f"{graph.n_nodes} nodes, {graph.n_edges} edges; {pruned.n_nodes} and {pruned.n_edges} after pruning"
    if left_out := graph.info.left_out():
        yield left_out
    for name, version in (("whole graph", graph), ("pruned graph", pruned)):
        scores = version.scores()
        yield f"{name}: replacement score {scores.replacement:.3f}, completeness {scores.completeness:.3f}"
    if not graph.info.compatible:
        yield f"largest missing share of a row: {graph.check().relative_to_row:.1e}"


def _write(
    arguments: argparse.Namespace, graph: AttributionGraph, pruned: AttributionGraph, card: GraphCard, several: bool
) -> Iterator[str]:
    """Write the graph and its picture, and yield a line with each path."""
    directory: Path | None = arguments.output
    if directory is not None:
        from open_clt.graphs.formats.circuit_tracer import write_circuit_tracer
        from open_clt.graphs.formats.networkx import write_graphml

        for file_format in dict.fromkeys(arguments.format or ["native"]):
            match file_format:
                case "native":
                    path = graph.save(directory / card.slug if several else directory)
                case "circuit-tracer":
                    path = write_circuit_tracer(pruned, directory, card)
                case _:
                    path = write_graphml(pruned, directory / f"{card.slug}.graphml")
            yield f"{file_format}: {path}"
    figure: Path | None = arguments.figure
    if figure is not None:
        from open_clt.visualization.graph.figure import visualize_attribution_graph

        path = _figure_path(figure, card, several=several)
        visualize_attribution_graph(pruned, save_path=path)
        yield f"figure: {path}"
