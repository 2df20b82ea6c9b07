"""The whole story once, start to finish: ``python practice_run.py``.

    1  load a language model, and text it has not seen
    2  train a cross-layer transcoder of its MLPs
    3  measure it on held-out text
    4  draw its features
    5  trace a prompt: an attribution graph whose rows add up
    6  let the replacement model write beside the original

Everything is saved in one folder: figures, ``metrics.json``, ``comparison.md``, the graph, and the transcoder.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from torch import Tensor

from open_clt.config import SamplingConfig
from open_clt.data.contexts import pack_contexts
from open_clt.data.texts import dataset_texts, read_texts
from open_clt.embedded.corpus import generate_texts
from open_clt.errors import HubUnreachableError, OpenCLTError
from open_clt.evaluation.evaluate import Evaluation, measure
from open_clt.features.firing import ActivationStatistics, activation_statistics
from open_clt.features.labels import label_features
from open_clt.features.records import feature_records
from open_clt.files import write_json, write_text
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.replacement.comparison import Comparison
from open_clt.training.memory import keep_freed_memory
from open_clt.training.result import TrainingResult
from open_clt.transcoders.feature import Feature
from open_clt.visualization.figures import visualize_training_curves
from open_clt.visualization.graph.figure import visualize_attribution_graph
from open_clt.visualization.suite import run_visualization_suite

EMBEDDED_PROMPTS = (
    "The capital of the state containing Dallas is",
    "When Mary and John went to the store, John gave a drink to",
    "The capital of France is",
)
PROMPTS = ("The Eiffel Tower is in the city of", "When Mary and John went to the store, John gave a drink to")
MOST_HELD_OUT = 64
"""Contexts that training holds out at most."""
NAMED_FEATURES = 60
console = Console(highlight=False)


class Data(NamedTuple):
    """Texts, how they are cut into contexts, and where they come from."""

    texts: list[str]
    context_length: int
    max_contexts: int
    """Contexts to train on at most."""
    source: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the story; returns the exit status."""
    options = parse(arguments)
    started = time.monotonic()
    if options.device == "cpu":
        keep_freed_memory()
    try:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        model = load_model(options)
        data = load_data(options, model)
        clt, result = train(options, model, data)
        evaluation = measure_on_held_out(clt, result)
        draw_features(options, clt, result)
        graphs = trace(options, clt, data, result)
        comparisons = compare(clt)
        save(options, data, result, evaluation, graphs, comparisons, time.monotonic() - started)
    except OpenCLTError as error:
        console.print(f"[red]practice_run:[/] {error}")
        return 2
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train a cross-layer transcoder, look at it, trace a prompt with it, generate with it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    option = parser.add_argument
    option("--model", default="gpt2", help="hub name, directory, .gguf file, or 'embedded' (needs no network)")
    option(
        "--texts", default=None, help="text, .jsonl or .parquet file, or a Hugging Face data set; None: made up here"
    )
    option("--num-features", type=int, default=512, help="features per layer")
    option("--epochs", type=int, default=None, help="passes over the texts; None: enough for the model's size")
    option("--max-tokens", type=int, default=None, help="tokens to train on; None: enough for the model's size")
    option("--output-dir", type=Path, default=Path("visualizations"), help="where everything is saved")
    option("--seed", type=int, default=0, help="seed of weights and shuffling; the same seed gives the same numbers")
    option("--device", default="cpu", help="cpu or cuda")
    return parser.parse_args(arguments)


def load_model(options: argparse.Namespace) -> LanguageModel:
    """The language model asked for, or, without a network, the embedded one."""
    heading("A language model")
    try:
        model = load_language_model(options.model, device=options.device)
    except HubUnreachableError:
        console.print(f"The hub does not answer, so {options.model!r} cannot be fetched; on with 'embedded'.")
        model = load_language_model("embedded", device=options.device)
    console.print(f"{model.name}: {model.n_layers} layers, width {model.d_model}, {model.vocab_size:,} tokens")
    return model


def load_data(options: argparse.Namespace, model: LanguageModel) -> Data:
    """Enough texts for the contexts to train on and for those to measure on."""
    small = model.name == "embedded"
    length = min(64 if small else 128, model.context_length)
    budget = options.max_tokens or (160_000 if small else 40_000)
    contexts = max(1, budget // length)
    source = options.texts or "sentences from the package's own generator"
    texts = enough_texts(texts_of(options), model, (contexts + MOST_HELD_OUT) * length)
    console.print(f"{contexts:,} contexts of {length} tokens at most; from {source}")
    return Data(texts, length, contexts, source)


def enough_texts(texts: Iterable[str], model: LanguageModel, tokens: int) -> list[str]:
    """The first texts that together hold some number of tokens, or all texts if they hold fewer."""
    kept: list[str] = []
    for text in texts:
        kept.append(text)
        tokens -= len(model.token_ids([text])[0]) + 1
        if tokens <= 0:
            break
    return kept


def texts_of(options: argparse.Namespace) -> Any:
    """Texts from a file, a data set, or the package's own generator."""
    if options.texts is None:
        return islice(generate_texts(50_000, seed=options.seed + 1), 50_000)
    if Path(options.texts).is_file():
        return read_texts(options.texts)
    return dataset_texts(options.texts)


def train(
    options: argparse.Namespace, model: LanguageModel, data: Data
) -> tuple[OpenCrossLayerTranscoder, TrainingResult]:
    """Train the transcoder; Ctrl-C goes on with what there is."""
    heading("A transcoder of its MLPs")
    clt = OpenCrossLayerTranscoder(model, num_features=options.num_features, device=options.device, seed=options.seed)
    config = clt.transcoder.config
    console.print(
        f"{config.n_layers} x {config.n_features} features, each writing to its own layer and all later ones: "
        f"{sum(p.numel() for p in clt.transcoder.parameters()) / 1e6:.1f} M parameters"
    )
    small = model.name == "embedded"
    result = clt.train_transcoder(
        data.texts,
        num_epochs=options.epochs or (6 if small else 4),
        learning_rate=3e-3 if small else 1e-3,
        context_length=data.context_length,
        max_contexts=data.max_contexts,
        # A real model's activations are large: half the bytes, and as many as a laptop can spare.
        storage_dtype="float32" if small else "bfloat16",
        memory_limit=4.0,
        progress=sys.stderr.isatty(),
    )
    # The whole state of the run would be many times as large; a second run replaces the transcoder of the first.
    clt.save_model(options.output_dir / "checkpoint")
    console.print(f"{result.steps} steps over {result.tokens:,} tokens in {result.seconds:.0f} s")
    return clt, result


def measure_on_held_out(clt: OpenCrossLayerTranscoder, result: TrainingResult) -> Evaluation:
    """Held-out reconstruction, sparsity, and predictions of the replacement model."""
    heading("On held-out text")
    evaluation = measure(clt.replacement_model(), held_out_contexts(result))
    table = Table("layer", "variance unexplained", "active features")
    for layer, (fvu, l0) in enumerate(
        zip(evaluation.reconstruction.fvu_per_layer, evaluation.reconstruction.l0_per_layer, strict=True)
    ):
        table.add_row(str(layer), f"{fvu:.3f}", f"{l0:.1f}")
    console.print(table)
    found = evaluation.totals()
    console.print(
        f"cross-entropy: original {found['ce_original']:.3f}, replacement {found['ce_replacement']:.3f}, "
        f"MLPs at their mean {found['ce_ablated']:.3f}; the same top token {found['top1_agreement']:.0%} of the time"
    )
    return evaluation


def held_out_contexts(result: TrainingResult) -> Tensor:
    """The contexts that were not trained on."""
    assert result.held_out is not None, "some contexts are always held out here"
    return result.held_out


def draw_features(options: argparse.Namespace, clt: OpenCrossLayerTranscoder, result: TrainingResult) -> None:
    """Every figure about features, and the training curves."""
    heading("Its features, drawn")
    visualize_training_curves(result.curves, save_path=options.output_dir / "training_curves.png")
    prompt = prompts_for(clt)[0]
    texts = [clt.language_model.decode(context[1:]) for context in held_out_contexts(result)]
    suite = run_visualization_suite(
        clt.language_model, clt.transcoder, texts, options.output_dir, prompt=prompt, seed=options.seed
    )
    console.print(", ".join(path.name for path in suite.paths))


def trace(
    options: argparse.Namespace, clt: OpenCrossLayerTranscoder, data: Data, result: TrainingResult
) -> list[AttributionGraph]:
    """Attribution graphs of the prompts, drawn with their features named."""
    heading("Why it says what it says")
    graphs: list[AttributionGraph] = []
    contexts = 400 if clt.language_model.name == "embedded" else 40
    held_out = len(held_out_contexts(result))
    read = pack_contexts(data.texts, clt.language_model, data.context_length, max_contexts=held_out + contexts)
    texts = [clt.language_model.decode(context[1:]) for context in read[held_out:]]
    statistics = activation_statistics(clt.language_model, clt.transcoder, texts, n_examples=4)
    for number, prompt in enumerate(prompts_for(clt)):
        graph = clt.attribute(prompt)
        pruned = graph.prune()
        likeliest = graph.info.target_names[0]
        scores = graph.scores()
        console.print(
            f"{prompt!r} -> {likeliest!r}: {graph.n_nodes:,} nodes ({pruned.n_nodes} after pruning), "
            f"replacement score {scores.replacement:.2f}, rows complete to {graph.check().relative_to_row:.0e}"
        )
        name = "attribution_graph" if number == 0 else f"attribution_graph_{number + 1}"
        visualize_attribution_graph(named(clt, pruned, statistics), save_path=options.output_dir / f"{name}.png")
        graphs.append(graph)
    graphs[0].save(options.output_dir / "graph")
    return graphs


def named(clt: OpenCrossLayerTranscoder, graph: AttributionGraph, statistics: ActivationStatistics) -> AttributionGraph:
    """The graph, its most influential features named after what they fire on and what they raise."""
    influence = graph.influence().masked_fill(~graph.of_kind(NodeKind.FEATURE), 0)
    nodes = [graph.node(number) for number in influence.topk(min(NAMED_FEATURES, graph.n_nodes)).indices.tolist()]
    keys = sorted({Feature(node.layer, node.index) for node in nodes if node.kind is NodeKind.FEATURE})
    return label_features(graph, feature_records(clt.language_model, clt.transcoder, statistics, keys))


def compare(clt: OpenCrossLayerTranscoder) -> list[Comparison]:
    """Both models write on from the same prompts."""
    heading("Original and replacement, side by side")
    replacement = clt.replacement_model()
    table = Table("prompt", "original", "replacement", show_lines=True)
    comparisons: list[Comparison] = []
    for prompt in prompts_for(clt):
        comparison = replacement.compare(prompt, SamplingConfig(max_new_tokens=16))
        if comparison.continuations is not None:
            both = comparison.continuations
            table.add_row(prompt, both.original.continuation, both.replacement.continuation)
        comparisons.append(comparison)
    console.print(table)
    return comparisons


def save(
    options: argparse.Namespace,
    data: Data,
    result: TrainingResult,
    evaluation: Evaluation,
    graphs: list[AttributionGraph],
    comparisons: list[Comparison],
    seconds: float,
) -> None:
    """Write the numbers and the comparison, and say where everything is."""
    scores = [graph.scores()._asdict() for graph in graphs]
    metrics = {
        "model": graphs[0].info.model,
        "texts": data.source,
        "num_features": options.num_features,
        "seed": options.seed,
        "steps": result.steps,
        **evaluation.as_dict(),
        "graphs": [{"prompt": graph.info.prompt, **found} for graph, found in zip(graphs, scores, strict=True)],
        "seconds": round(seconds, 1),
    }
    write_json(options.output_dir / "metrics.json", metrics)
    write_text(options.output_dir / "comparison.md", report(metrics, graphs, comparisons))
    heading("Done")
    console.print(
        f"FVU {metrics['fvu']:.3f} at {metrics['l0']:.1f} active features a layer, "
        f"{metrics['dead_share']:.1%} of all dead; {seconds:.0f} s. Everything is in {options.output_dir}/."
    )


def report(metrics: dict[str, Any], graphs: list[AttributionGraph], comparisons: list[Comparison]) -> str:
    """The comparison of original and replacement, for reading."""
    lines = [
        f"# {metrics['model']}, with its MLPs and with a transcoder in their place",
        "",
        "| on held-out text | original | replacement | MLPs at their mean |",
        "|---|---|---|---|",
        f"| cross-entropy, nats per token | {metrics['ce_original']:.3f} | {metrics['ce_replacement']:.3f} "
        f"| {metrics['ce_ablated']:.3f} |",
        "",
        f"Both hold the same token most probable at {metrics['top1_agreement']:.1%} of the positions; "
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
    """Prompts that the model can be expected to know something about."""
    return EMBEDDED_PROMPTS if clt.language_model.name == "embedded" else PROMPTS


def heading(text: str) -> None:
    """Begin a chapter."""
    console.print(f"\n[bold]{text}[/]")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sys.exit(main())
