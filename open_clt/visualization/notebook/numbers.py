"""Views of numbers: evaluations, reports, comparisons, continuations, and results of training runs."""

from __future__ import annotations

from typing import Any

from open_clt.evaluation.evaluate import Evaluation
from open_clt.evaluation.report import Report
from open_clt.replacement.comparison import Comparison, LogitComparison
from open_clt.replacement.generation import Generation
from open_clt.transcoders.metrics import TranscoderMetrics
from open_clt.visualization.figures import visualize_training_curves
from open_clt.visualization.notebook.html import Markup, card, facts, folded, joined, percent, picture, quiet, table
from open_clt.visualization.style import BLUE


def comparison_view(comparison: Comparison) -> str:
    """The original and the replacement model side by side: cross-entropies and continuations."""
    logits = comparison.logits
    heads = ("", "original", "replacement", "ablated")
    entropies = (logits.cross_entropy_original, logits.cross_entropy_replacement, comparison.cross_entropy_ablated)
    rows: list[tuple[object, ...]] = [("cross-entropy, nats", *(f"{value:.3f}" for value in entropies))]
    if comparison.continuations is not None:
        written = [generation.continuation for generation in comparison.continuations]
        rows.append(("continuation", *_side_by_side(*written), ""))
    numbers = [
        *_agreement(logits),
        ("recovered", percent(comparison.share_recovered)),
        ("cosine of the logits", f"{comparison.cosine:.3f}"),
        ("mean squared error", comparison.mean_squared_error),
    ]
    title = joined(["Comparison on “", comparison.prompt, "”"]) if comparison.prompt else "Comparison"
    return card(title, table(heads, rows), facts(numbers))


def logits_view(logits: LogitComparison) -> str:
    """The predictions of two models as numbers."""
    rows = [
        ("cross-entropy of the original", f"{logits.cross_entropy_original:.3f} nats"),
        ("of the replacement", f"{logits.cross_entropy_replacement:.3f} nats"),
        *_agreement(logits),
    ]
    return card("Comparison of predictions", facts(rows))


def evaluation_view(evaluation: Evaluation) -> str:
    """The numbers of a transcoder on held-out text, in total and by layer."""
    return card("Evaluation", *_evaluation(evaluation), note=f"{evaluation.reconstruction.tokens:,} tokens")


def report_view(report: Report) -> str:
    """The report of a transcoder: its numbers on held-out text, and the scores of its graphs."""
    graphs = [(graph.prompt, graph.replacement, graph.completeness) for graph in report.graphs[:20]]
    scores = table(("graph", "replacement", "completeness"), graphs) if graphs else ""
    note = f"{report.model}, {report.measured_on.description}, {report.parameters:,} parameters"
    return card(f"Report of {report.name}", *_evaluation(report.evaluation), scores, note=note)


def metrics_view(metrics: TranscoderMetrics) -> str:
    """Reconstruction and sparsity of a transcoder, in total and by layer."""
    return card("Reconstruction", facts(_totals(metrics)), _layers(metrics), note=f"{metrics.tokens:,} tokens")


def generation_view(generation: Generation) -> str:
    """A prompt and the continuation that a model wrote."""
    strong = Markup(f'<b style="color:{BLUE}">')
    return card("Continuation", joined([generation.prompt, strong, generation.continuation, Markup("</b>")]))


def training_view(result: Any) -> str:
    """The curves of a training run, its cost, and the numbers on held-out text."""
    rows: list[tuple[str, object]] = [
        ("steps", f"{result.steps:,}" + ("" if result.finished else ", stopped before the last one")),
        ("tokens", result.tokens),
        ("time", f"{result.seconds:,.1f} s"),
        ("dead features", percent(result.dead_share)),
    ]
    held_out = [("on held-out text", quiet(f"{result.metrics.tokens:,} tokens"))] if result.metrics else []
    totals = _totals(result.metrics) if result.metrics else []
    shape = result.transcoder.config
    note = f"{type(result.transcoder).__name__}, {shape.n_layers} × {shape.n_features:,} features"
    return card("Training", facts([*rows, *held_out, *totals]), _curves(result.curves), note=note)


def curves_view(curves: Any) -> str:
    """The curves of a training run."""
    return card("Training curves", _curves(curves), note=f"{max([0, *curves.step]):,} steps")


def _curves(curves: Any) -> Markup | str:
    if not curves.step:
        return "no steps"
    return picture(visualize_training_curves(curves, title=""), "Loss, FVU, L0 and dead features over the steps")


def _evaluation(evaluation: Evaluation) -> list[Markup]:
    rows: list[tuple[str, object]] = [
        *_totals(evaluation.reconstruction),
        ("cross-entropy", _entropies(evaluation)),
        *_agreement(evaluation.logits),
    ]
    return [facts(rows), _layers(evaluation.reconstruction, evaluation.alone)]


def _entropies(evaluation: Evaluation) -> str:
    logits = evaluation.logits
    return (
        f"{logits.cross_entropy_original:.3f} original, {logits.cross_entropy_replacement:.3f} replacement, "
        f"{evaluation.cross_entropy_ablated:.3f} ablated; {percent(evaluation.share_recovered)} recovered"
    )


def _agreement(logits: LogitComparison) -> list[tuple[str, object]]:
    return [("same likeliest token", percent(logits.top1_agreement)), ("KL", f"{logits.kl_divergence:.4f} nats")]


def _totals(metrics: TranscoderMetrics) -> list[tuple[str, object]]:
    return [
        ("variance unexplained (FVU)", f"{metrics.fvu:.4f}, at most {metrics.worst_fvu:.4f} (L{metrics.worst_layer})"),
        ("active features (L0)", f"{metrics.l0:.1f} per token and layer"),
        ("features", f"{percent(metrics.dead_share)} dead, {percent(metrics.dense_share)} dense"),
    ]


def _layers(metrics: TranscoderMetrics, alone: tuple[LogitComparison, ...] = ()) -> Markup:
    heads = ["layer", "FVU", "L0", "dead", "dense", *(["CE alone", "KL alone"] if alone else [])]
    rows: list[list[object]] = []
    for place, (layer, numbers) in enumerate(zip(metrics.model_layers, metrics.layers, strict=True)):
        row = [f"L{layer}", f"{numbers.fvu:.4f}", f"{numbers.l0:.1f}"]
        row += [percent(numbers.dead_share), percent(numbers.dense_share)]
        if place < len(alone):
            row += [f"{alone[place].cross_entropy_replacement:.3f}", f"{alone[place].kl_divergence:.4f}"]
        rows.append([*row])
    layers = table(heads, rows)
    return layers if len(rows) <= 12 else folded(f"{len(rows)} layers", layers)


def _side_by_side(first: str, second: str) -> list[Markup]:
    """Two texts, in which the words that both begin with are quiet."""
    longest = min(len(first), len(second))
    shared = next((index for index in range(longest) if first[index] != second[index]), longest)
    if first != second:
        shared = first.rfind(" ", 0, shared) + 1
    return [joined([quiet(text[:shared]), text[shared:]]) for text in (first, second)]
