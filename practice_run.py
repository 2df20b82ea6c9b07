"""A complete example of what the package does: ``python practice_run.py``.

    1  load a language model and texts
    2  train a cross-layer transcoder of the model's MLPs
    3  measure the transcoder on held-out text
    4  draw figures of its features
    5  compute an attribution graph of each prompt
    6  continue each prompt with the original and with the replacement model

The run saves its results in one folder: figures, ``metrics.json``, ``comparison.md``, a graph, and the transcoder.
"""

from __future__ import annotations

from open_clt.environment import begin_program

if __name__ == "__main__":
    begin_program("practice_run")

import argparse
import logging
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from torch import Tensor

from open_clt.commands.options import DEVICE_HELP, Parser, integer, seed
from open_clt.config import FeatureRecordsConfig, SamplingConfig, TextsConfig
from open_clt.data.contexts import pack_contexts
from open_clt.data.texts import open_texts
from open_clt.device import check_device
from open_clt.embedded.corpus import generate_texts
from open_clt.errors import HubUnreachableError, TextError
from open_clt.evaluation.evaluate import Evaluation, measure
from open_clt.features.collecting.collect import collect_features
from open_clt.features.collecting.measured import feature_records
from open_clt.features.labelling.automatic import label_records
from open_clt.features.labelling.background import background_of
from open_clt.features.labelling.given import label_features
from open_clt.files import list_names, results, write_json, write_text
from open_clt.graphs import graph as graph_files
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.program import Stopped, run_program
from open_clt.replacement.comparison import Comparison
from open_clt.training.memory import keep_freed_memory
from open_clt.training.result import TrainingResult
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats import native
from open_clt.visualization.figures import visualize_training_curves
from open_clt.visualization.graph.figure import visualize_attribution_graph
from open_clt.visualization.suite import run_visualization_suite, suite_paths

EMBEDDED_PROMPTS = (
    "The capital of the state containing Dallas is",
    "When Mary and John went to the store, John gave a drink to",
    "The capital of France is",
)
PROMPTS = ("The Eiffel Tower is in the city of", "When Mary and John went to the store, John gave a drink to")
MOST_HELD_OUT = 64
"""Largest number of contexts that are held out from training."""
NAMED_FEATURES = 60
"""Number of features per graph that get labels."""
GRAPH_PICTURES = ("attribution_graph.png", "attribution_graph_2.png", "attribution_graph_3.png")
FILES = ("training_curves.png", "metrics.json", "comparison.md", *GRAPH_PICTURES, *map(str, suite_paths("").paths))
"""Names of the files that a run writes to its output directory, apart from the transcoder and the graph."""


class Output(Console):
    """The console of this script; a closed output, as in ``| head``, ends the script as it ends other programs."""

    def on_broken_pipe(self) -> None:
        """Raise the error again, which rich would replace by its own exit."""
        raise


console = Output(highlight=False)


class Data(NamedTuple):
    """The texts of a run and how they are cut into contexts."""

    texts: list[str]
    context_length: int
    """Number of tokens in a context."""
    max_contexts: int
    """Largest number of contexts to train on."""
    source: str
    """Description of where the texts come from."""


class Results(NamedTuple):
    """The results of a run, which its last step writes to files."""

    training: TrainingResult
    evaluation: Evaluation
    graphs: list[AttributionGraph]
    comparisons: list[Comparison]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all steps and return the exit status."""
    return run_program("practice_run", lambda: run(arguments), ends_process=arguments is None)


def run(arguments: Sequence[str] | None) -> int:
    """Run all steps."""
    options = parse(arguments)
    started = time.monotonic()
    if check_device(options.device).type == "cpu":
        keep_freed_memory()
    with results(options.output_dir, FILES):
        native.check_place(options.output_dir / "checkpoint")
        graph_files.check_place(options.output_dir / "graph")
        model = load_model(options)
        data = load_data(options, model)
        clt, result = train(options, model, data)
        list_names(options.output_dir, FILES)
        evaluation = measure_on_held_out(clt, result)
        draw_features(options, clt, result)
        graphs = trace(options, clt, data, result)
        everything = Results(result, evaluation, graphs, comparisons=compare(clt))
        save(options, data, everything, seconds=time.monotonic() - started)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="practice_run.py",
        description="Train a cross-layer transcoder, measure it, draw its features, and explain predictions with it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    option = parser.add_argument
    option(
        "--model",
        default="gpt2",
        help="Language model: a name on the Hugging Face hub, a directory, a .gguf file, or 'embedded', which needs no "
        "network.",
    )
    option(
        "--texts",
        default=None,
        help="Texts to train on: a text, .jsonl or .parquet file, or a data set on the Hugging Face hub; None means "
        "generated sentences.",
    )
    option("--num-features", type=integer(least=1), default=512, help="Number of features per layer.")
    option(
        "--epochs",
        type=integer(least=1),
        default=None,
        help="Number of passes over the texts; None means a number that suits the model.",
    )
    option(
        "--max-tokens",
        type=integer(least=1),
        default=None,
        help="Number of tokens to train on; None means a number that suits the model.",
    )
    option("--output-dir", type=Path, default=Path("visualizations"), help="Directory for all results.")
    option("--seed", type=seed, default=0, help="Seed of the run; the same seed gives the same numbers.")
    option("--device", default="cpu", help=f"{DEVICE_HELP}.")
    return parser.parse_args(arguments)


def load_model(options: argparse.Namespace) -> LanguageModel:
    """Load the language model of the options, or the embedded one if the hub cannot be reached."""
    heading("Language model")
    try:
        model = load_language_model(options.model, device=options.device)
    except HubUnreachableError:
        console.print(
            f"The hub does not answer, so {options.model!r} cannot be downloaded; the embedded model is used instead."
        )
        model = load_language_model("embedded", device=options.device)
    console.print(
        f"{model.name}: {model.n_layers} layers, width {model.d_model}, vocabulary of {model.vocab_size:,} tokens"
    )
    return model


def load_data(options: argparse.Namespace, model: LanguageModel) -> Data:
    """Read as many texts as training and held-out contexts need."""
    small = model.name == "embedded"
    length = min(64 if small else 128, model.context_length)
    contexts = max(1, (options.max_tokens or (160_000 if small else 40_000)) // length)
    source = options.texts or "sentences from the package's own generator"
    texts = enough_texts(texts_of(options), model, (contexts + MOST_HELD_OUT) * length)
    console.print(f"at most {contexts:,} contexts of {length} tokens, from {source}")
    return Data(texts, length, contexts, source)


def enough_texts(texts: Iterable[str], model: LanguageModel, tokens: int) -> list[str]:
    """Return the first texts that together have ``tokens`` tokens, or all texts if they have fewer."""
    chosen: list[str] = []
    for text in texts:
        chosen.append(text)
        tokens -= len(model.token_ids([text])[0]) + 1
        if tokens <= 0:
            break
    return chosen


def texts_of(options: argparse.Namespace) -> Any:
    """Open the texts of a file or a data set, or generate sentences."""
    if options.texts is None:
        return islice(generate_texts(50_000, seed=options.seed + 1), 50_000)
    return open_texts(TextsConfig(source=options.texts))


def train(
    options: argparse.Namespace, model: LanguageModel, data: Data
) -> tuple[OpenCrossLayerTranscoder, TrainingResult]:
    """Train and save the transcoder; after Ctrl-C, the transcoder is saved as it is, and the run ends."""
    heading("Training of the transcoder")
    clt = OpenCrossLayerTranscoder(model, num_features=options.num_features, device=options.device, seed=options.seed)
    config = clt.transcoder.config
    console.print(
        f"{config.n_layers} x {config.n_features} features, each of which writes to its own layer and all later ones: "
        f"{sum(p.numel() for p in clt.transcoder.parameters()) / 1e6:.1f} M parameters"
    )
    small = model.name == "embedded"
    result = clt.train_transcoder(
        data.texts,
        num_epochs=options.epochs or (6 if small else 4),
        learning_rate=3e-3 if small else 1e-3,
        context_length=data.context_length,
        max_contexts=data.max_contexts,
        # The activations of a large model take much memory: 2 bytes per number, at most 4 GB in total.
        storage_dtype="float32" if small else "bfloat16",
        memory_limit=4.0,
    )
    # Only the transcoder is saved, because the whole state of the training run is many times as large.
    checkpoint = clt.save_model(options.output_dir / "checkpoint")
    if result.interrupted:
        raise Stopped(signal.SIGINT, f"The transcoder is saved in {checkpoint} as it was after {result.steps} steps.")
    console.print(f"{result.steps} steps over {result.tokens:,} tokens in {result.seconds:.0f} s")
    return clt, result


def measure_on_held_out(clt: OpenCrossLayerTranscoder, result: TrainingResult) -> Evaluation:
    """Measure reconstruction, sparsity and the predictions of the replacement model on held-out text."""
    heading("Evaluation on held-out text")
    evaluation = measure(clt.replacement_model(), held_out_contexts(result))
    table = Table("layer", "variance unexplained (FVU)", "active features (L0)")
    for layer, (fvu, l0) in enumerate(
        zip(evaluation.reconstruction.fvu_per_layer, evaluation.reconstruction.l0_per_layer, strict=True)
    ):
        table.add_row(str(layer), f"{fvu:.3f}", f"{l0:.1f}")
    console.print(table)
    totals = evaluation.totals()
    console.print(
        f"cross-entropy: original {totals['ce_original']:.3f}, replacement {totals['ce_replacement']:.3f}, "
        f"MLP outputs at their mean {totals['ce_ablated']:.3f}; original and replacement agree on the likeliest token "
        f"at {totals['top1_agreement']:.0%} of the positions"
    )
    return evaluation


def held_out_contexts(result: TrainingResult) -> Tensor:
    """Return the contexts that were held out from training; raise TextError if the texts are too short for one."""
    if result.held_out is None:
        raise TextError("The texts are too short to hold out a context, so nothing can be measured; give more text.")
    return result.held_out


def draw_features(options: argparse.Namespace, clt: OpenCrossLayerTranscoder, result: TrainingResult) -> None:
    """Draw the training curves and all figures of features."""
    heading("Figures of features")
    title = f"Training of a transcoder on {result.tokens:,} tokens ({clt.language_model.name})"
    visualize_training_curves(result.curves, title=title, save_path=options.output_dir / "training_curves.png")
    texts = [clt.language_model.decode(context[1:]) for context in held_out_contexts(result)]
    suite = run_visualization_suite(
        clt.language_model, clt.transcoder, texts, options.output_dir, prompt=prompts_for(clt)[0], seed=options.seed
    )
    console.print(", ".join(path.name for path in suite.paths))


def trace(
    options: argparse.Namespace, clt: OpenCrossLayerTranscoder, data: Data, result: TrainingResult
) -> list[AttributionGraph]:
    """Compute and draw the attribution graph of each prompt, with labels of features."""
    heading("Attribution graphs")
    graphs: list[AttributionGraph] = []
    model, held_out = clt.language_model, len(held_out_contexts(result))
    most = held_out + (400 if model.name == "embedded" else 40)
    contexts = pack_contexts(data.texts, model, data.context_length, max_contexts=most)[held_out:]
    texts = [model.decode(context[1:]) for context in contexts]
    collection = collect_features(
        model, clt.transcoder, texts, FeatureRecordsConfig(context_length=data.context_length)
    )
    background = background_of(model, clt.transcoder, contexts)
    for index, prompt in enumerate(prompts_for(clt)):
        graph = clt.attribute(prompt)
        pruned, scores = graph.prune(), graph.scores()
        console.print(
            f"{prompt!r} -> {graph.info.target_names[0]!r}: {graph.n_nodes:,} nodes ({pruned.n_nodes} after pruning), "
            f"replacement score {scores.replacement:.2f}, largest missing share of a row "
            f"{graph.check().relative_to_row:.0e}"
        )
        records = feature_records(model, clt.transcoder, collection, named_features(pruned))
        labelled = label_features(pruned, label_records(records, background))
        visualize_attribution_graph(labelled, save_path=options.output_dir / GRAPH_PICTURES[index])
        graphs.append(graph.with_labels(labelled.labels))
    graphs[0].save(options.output_dir / "graph")
    return graphs


def named_features(graph: AttributionGraph) -> list[Feature]:
    """Return the most influential features of a graph."""
    influence = graph.influence().masked_fill(~graph.of_kind(NodeKind.FEATURE), 0)
    nodes = map(graph.node, influence.topk(min(NAMED_FEATURES, graph.n_nodes)).indices.tolist())
    return sorted({Feature(node.layer, node.index) for node in nodes if node.kind is NodeKind.FEATURE})


def compare(clt: OpenCrossLayerTranscoder) -> list[Comparison]:
    """Continue each prompt with the original and with the replacement model."""
    heading("Continuations of the original and the replacement model")
    replacement = clt.replacement_model()
    table = Table("prompt", "original", "replacement", show_lines=True)
    comparisons: list[Comparison] = []
    for prompt in prompts_for(clt):
        comparison = replacement.compare(prompt, SamplingConfig(max_new_tokens=16))
        if comparison.continuations is not None:
            continuations = comparison.continuations
            table.add_row(prompt, continuations.original.continuation, continuations.replacement.continuation)
        comparisons.append(comparison)
    console.print(table)
    return comparisons


def save(options: argparse.Namespace, data: Data, results: Results, seconds: float) -> None:
    """Write ``metrics.json`` and ``comparison.md``, and print a summary."""
    graphs = results.graphs
    metrics = {
        "model": graphs[0].info.model,
        "texts": data.source,
        "num_features": options.num_features,
        "seed": options.seed,
        "steps": results.training.steps,
        **results.evaluation.as_dict(),
        "graphs": [{"prompt": graph.info.prompt, **graph.scores()._asdict()} for graph in graphs],
        "seconds": round(seconds, 1),
    }
    write_json(options.output_dir / "metrics.json", metrics)
    write_text(options.output_dir / "comparison.md", report(metrics, graphs, results.comparisons))
    heading("Done")
    console.print(
        f"FVU {metrics['fvu']:.3f} with {metrics['l0']:.1f} active features per token and layer, "
        f"{metrics['dead_share']:.1%} dead features; {seconds:.0f} s. All results are in {options.output_dir}/."
    )


def report(metrics: dict[str, Any], graphs: list[AttributionGraph], comparisons: list[Comparison]) -> str:
    """Return the comparison of the original and the replacement model as Markdown."""
    lines = [
        f"# {metrics['model']}: original and replacement model",
        "",
        "| on held-out text | original | replacement | MLP outputs at their mean |",
        "|---|---|---|---|",
        f"| cross-entropy, nats per token | {metrics['ce_original']:.3f} | {metrics['ce_replacement']:.3f} "
        f"| {metrics['ce_ablated']:.3f} |",
        "",
        f"Both models agree on the likeliest token at {metrics['top1_agreement']:.1%} of the positions; "
        f"KL divergence {metrics['kl']:.3f} nats.",
    ]
    for graph, comparison in zip(graphs, comparisons, strict=True):
        lines += ["", f"## {graph.info.prompt}", ""]
        if comparison.continuations is not None:
            lines += [
                f"- original: {comparison.continuations.original.continuation!r}",
                f"- replacement: {comparison.continuations.replacement.continuation!r}",
            ]
        lines += [f"- top-1 agreement along the prompt: {comparison.logits.top1_agreement:.0%}"]
    return "\n".join(lines) + "\n"


def prompts_for(clt: OpenCrossLayerTranscoder) -> tuple[str, ...]:
    """Return prompts whose answers the model can be expected to know."""
    return EMBEDDED_PROMPTS if clt.language_model.name == "embedded" else PROMPTS


def heading(text: str) -> None:
    """Print the heading of a step."""
    console.print(f"\n[bold]{text}[/]")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sys.exit(main())
