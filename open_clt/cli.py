"""``open-clt``: what the package does, from a shell.

    open-clt embedded evaluate                                what the embedded model knows, against its bars
    open-clt generate --model M --transcoder T --prompt P     the same prompt continued by both models
    open-clt attribute --model M --transcoder T --prompt P    an attribution graph, saved and drawn

A mistake in what was asked gives one line and exit status 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from open_clt.errors import OpenCLTError

if TYPE_CHECKING:
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder

Command: TypeAlias = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        return cast(Command, parsed.command)(parsed)
    except OpenCLTError as error:
        print(f"open-clt: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="open-clt", description="Cross-layer transcoders, from text to picture.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    embedded = commands.add_parser("embedded", help="the language model that ships with the package")
    actions = embedded.add_subparsers(title="actions", required=True, metavar="ACTION")
    evaluate = actions.add_parser("evaluate", help="ask it everything it should know; status 1 if a bar is missed")
    evaluate.add_argument("--limit", type=int, default=None, help="at most this many prompts of each task")
    evaluate.set_defaults(command=embedded_evaluate)

    generate = commands.add_parser("generate", help="continue a prompt, with the MLPs and with the transcoder")
    _add_model_options(generate)
    generate.add_argument("--max-new-tokens", type=int, default=30, help="tokens to add (default: 30)")
    generate.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    generate.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    generate.set_defaults(command=generate_both)

    graph = commands.add_parser("attribute", help="trace why the model goes on from a prompt as it does")
    _add_model_options(graph)
    graph.add_argument("--max-feature-nodes", type=int, default=None, help="attribute at most this many features")
    graph.add_argument("--threshold", type=float, default=0.8, help="share of influence to keep (default: 0.8)")
    graph.add_argument("--compatible", action="store_true", help="the nodes and numbers of circuit-tracer")
    graph.add_argument("--output", type=Path, default=None, help="directory for the whole graph")
    graph.add_argument("--figure", type=Path, default=None, help="picture of the pruned graph: .png, .svg or .pdf")
    graph.set_defaults(command=attribute_prompt)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="embedded", help="name, directory, .gguf file (default: embedded)")
    parser.add_argument("--transcoder", type=Path, default=None, help="its directory (default: the embedded model's)")
    parser.add_argument("--prompt", required=True, help="the text to start from")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")


def embedded_evaluate(arguments: argparse.Namespace) -> int:
    """Print the evaluation table of the embedded model; status 1 if a row is below its bar."""
    from open_clt.activations.language_model import load_language_model
    from open_clt.embedded.evaluation import evaluate, format_table

    model = load_language_model("embedded")
    rows = evaluate(model.next_tokens, lambda text: model.token_ids([text])[0], limit=arguments.limit)
    print(format_table(rows))
    return 0 if all(row.passed for row in rows) else 1


def generate_both(arguments: argparse.Namespace) -> int:
    """Print the continuations of the original model and of its replacement."""
    from open_clt.config import SamplingConfig

    replacement = _load(arguments).replacement_model()
    sampling = SamplingConfig(
        max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature, seed=arguments.seed
    )
    comparison = replacement.compare(arguments.prompt, sampling)
    print(comparison.summary())
    return 0


def attribute_prompt(arguments: argparse.Namespace) -> int:
    """Trace a prompt; save the graph, draw it, and print its scores and strongest paths."""
    from open_clt.attribution.attribute import attribute
    from open_clt.visualization.graph_figure import visualize_attribution_graph

    clt = _load(arguments)
    graph = attribute(
        clt.language_model,
        clt.transcoder,
        arguments.prompt,
        max_feature_nodes=arguments.max_feature_nodes,
        compatible=arguments.compatible,
    )
    pruned = graph.prune(node_threshold=arguments.threshold)
    print(f"{graph.n_nodes} nodes, {graph.n_edges} edges; {pruned.n_nodes} and {pruned.n_edges} after pruning.")
    for name, scored in (("whole graph", graph), ("pruned graph", pruned)):
        scores = scored.scores()
        print(f"{name}: replacement score {scores.replacement:.3f}, completeness {scores.completeness:.3f}")
    if not arguments.compatible:
        print(f"largest share of a row that is missing: {graph.check().relative_to_row:.1e}")
    if arguments.output is not None:
        print(f"graph: {graph.save(arguments.output)}")
    if arguments.figure is not None:
        visualize_attribution_graph(pruned, save_path=arguments.figure)
        print(f"figure: {arguments.figure}")
    return 0


def _load(arguments: argparse.Namespace) -> OpenCrossLayerTranscoder:
    """The language model and the transcoder that a command names."""
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder

    if arguments.transcoder is None:
        return OpenCrossLayerTranscoder.from_pretrained(arguments.model, device=arguments.device)
    clt = OpenCrossLayerTranscoder(arguments.model, device=arguments.device)
    clt.load_model(arguments.transcoder)
    return clt
