"""``open-clt``: what the package does, from a shell.

    open-clt embedded evaluate                                what the embedded model knows, against its bars
    open-clt generate --model M --transcoder T --prompt P     the same prompt continued by both models
    open-clt attribute --model M --transcoder T --prompt P    an attribution graph, saved and drawn
    open-clt intervene --prompt P --ablate 2_417_5            what becomes of a prediction without a feature

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
    from open_clt.replacement.model import ReplacementModel

Command: TypeAlias = Callable[[argparse.Namespace], int]

_FEATURE = "(layer_feature_position; without the position, everywhere)"


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
    generate.add_argument("--ablate", nargs="+", default=[], metavar="FEATURE", help=f"also without these {_FEATURE}")
    generate.set_defaults(command=generate_both)

    graph = commands.add_parser("attribute", help="trace why the model goes on from a prompt as it does")
    _add_model_options(graph)
    graph.add_argument("--max-feature-nodes", type=int, default=None, help="attribute at most this many features")
    graph.add_argument("--threshold", type=float, default=0.8, help="share of influence to keep (default: 0.8)")
    graph.add_argument("--compatible", action="store_true", help="the nodes and numbers of circuit-tracer")
    graph.add_argument("--output", type=Path, default=None, help="directory for the whole graph")
    graph.add_argument("--figure", type=Path, default=None, help="picture of the pruned graph: .png, .svg or .pdf")
    graph.set_defaults(command=attribute_prompt)

    change = commands.add_parser("intervene", help="change features on a prompt, and see what that changes")
    _add_model_options(change)
    change.add_argument("--ablate", nargs="+", default=[], metavar="FEATURE", help=f"set these to 0 {_FEATURE}")
    change.add_argument("--set", nargs="+", default=[], metavar="FEATURE=VALUE", help="set these to a value")
    change.add_argument("--scale", nargs="+", default=[], metavar="FEATURE=FACTOR", help="multiply these by a factor")
    change.add_argument("--constrained", action="store_true", help="direct effects only, as a graph has them")
    change.add_argument("--top", type=int, default=5, help="tokens and features to list (default: 5)")
    change.set_defaults(command=intervene_on_prompt)
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

    clt = _load(arguments)
    sampling = SamplingConfig(
        max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature, seed=arguments.seed
    )
    comparison = clt.replacement_model().compare(arguments.prompt, sampling)
    print(comparison.summary())
    if arguments.ablate:
        from open_clt.replacement.intervene import generate_patched
        from open_clt.replacement.interventions import interventions_on

        ablation = interventions_on(arguments.ablate, value=0.0)
        written = generate_patched(_corrected(clt), arguments.prompt, ablation, sampling=sampling)
        print(f"ablated        {written.text!r}")
    return 0


def intervene_on_prompt(arguments: argparse.Namespace) -> int:
    """Change features of the model on a prompt; print its predictions before and after, and what else changed."""
    from open_clt.errors import ConfigError
    from open_clt.replacement.intervene import intervene
    from open_clt.replacement.interventions import Constrained, Iterative, interventions_on

    interventions = interventions_on(arguments.ablate, value=0.0)
    for name, number in _assignments(arguments.set):
        interventions += interventions_on(name, value=number)
    for name, number in _assignments(arguments.scale):
        interventions += interventions_on(name, scale=number)
    if not interventions:
        raise ConfigError("No feature was named; name at least one with --ablate, --set or --scale.")
    replacement = _corrected(_load(arguments))
    patching = Constrained() if arguments.constrained else Iterative()
    record = intervene(replacement, arguments.prompt, interventions, patching, top=arguments.top)
    print(record.summary(arguments.top))
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


def _assignments(texts: Sequence[str]) -> list[tuple[str, float]]:
    """``FEATURE=NUMBER`` taken apart; raises ConfigError on anything else."""
    from open_clt.errors import ConfigError

    found: list[tuple[str, float]] = []
    for text in texts:
        name, _, number = text.partition("=")
        try:
            found.append((name, float(number)))
        except ValueError as error:
            raise ConfigError(f"{text!r} is no FEATURE=NUMBER; write 2_417_5=3.5.") from error
    return found


def _corrected(clt: OpenCrossLayerTranscoder) -> ReplacementModel:
    """The language model itself, with features to intervene on: only what they write is changed in its MLP outputs."""
    from open_clt.replacement.model import ReplacementModel

    return ReplacementModel(clt.language_model, clt.transcoder, error_correction=True)


def _load(arguments: argparse.Namespace) -> OpenCrossLayerTranscoder:
    """The language model and the transcoder that a command names."""
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder

    if arguments.transcoder is None:
        return OpenCrossLayerTranscoder.from_pretrained(arguments.model, device=arguments.device)
    clt = OpenCrossLayerTranscoder(arguments.model, device=arguments.device)
    clt.load_model(arguments.transcoder)
    return clt
