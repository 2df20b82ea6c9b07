"""Neurons against features: how many of each explain the same share of an answer.

    python benchmarks/truth/neurons.py --limit 12

Each held-out two-hop prompt of the embedded model gets two graphs of its answer: one of the transcoder's features, and
one of the model's own neurons. Each graph is pruned to several sizes. The replacement score of a pruned graph is the
share of the answer's influence that its features carry from the tokens; what pruning or a budget left out counts as an
error. The table has the number of features, and of neurons, that a score takes (interpolated between sizes, mean over
the prompts on which both graphs reach the score). Faithfulness is measured on both graphs by as many ablations. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from open_clt.attribution.attribute import attribute
from open_clt.embedded.evaluation import evaluation_prompts
from open_clt.evaluation.faithfulness import faithfulness
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.operations import sizes_at_replacement
from open_clt.graphs.targets import TokenLogits
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.replacement.model import ReplacementModel

SCORES = (0.2, 0.3, 0.4, 0.5)


class Measured(NamedTuple):
    """What is measured of one graph."""

    sizes: dict[float, float]
    """Number of features that each score takes; NaN for scores that the graph does not reach."""
    numbers: dict[str, float]
    """Scores of the whole graph, and its faithfulness."""


def measured(graph: AttributionGraph, replacement: ReplacementModel, ablations: int) -> Measured:
    """Prune a graph to several sizes, and ablate some of its features."""
    checked = faithfulness(graph, replacement, max_features=ablations)
    return Measured(
        sizes_at_replacement(graph, SCORES),
        {
            "active": graph.info.n_active_features,
            "replacement": graph.scores().replacement,
            "completeness": graph.scores().completeness,
            "direct Spearman": checked.direct.spearman,
            "direct slope": checked.direct.slope,
            "total Spearman": checked.total.spearman,
            "total slope": checked.total.slope,
            "influence Pearson": checked.influence.pearson,
            "KL of the replacement model": checked.agreement.kl_divergence,
        },
    )


def table(rows: dict[str, list[Measured]]) -> tuple[str, dict[str, dict[str, float]]]:
    """The table as text and as numbers: one line for each score and each number."""
    columns = list(rows)
    lines = [f"{'':<32}" + "".join(f"{column:>12}" for column in columns)]
    results: dict[str, dict[str, float]] = {column: {} for column in columns}
    for score in SCORES:
        sizes = np.array([[row.sizes[score] for row in rows[column]] for column in columns])
        both = ~np.isnan(sizes).any(0)
        means = sizes[:, both].mean(1) if both.any() else np.full(len(columns), np.nan)
        name = f"score {score} ({int(both.sum())} prompts)"
        lines.append(f"{name:<32}" + "".join(f"{mean:>12.1f}" for mean in means))
        for column, mean in zip(columns, means, strict=True):
            results[column][f"size at {score}"] = round(float(mean), 1)
            results[column][f"prompts at {score}"] = int(both.sum())
    for name in rows[columns[0]][0].numbers:
        means = [float(np.nanmean([row.numbers[name] for row in rows[column]])) for column in columns]
        lines.append(f"{name:<32}" + "".join(f"{mean:>12.3f}" for mean in means))
        for column, mean in zip(columns, means, strict=True):
            results[column][name] = round(mean, 4)
    return "\n".join(lines), results


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both graphs of every prompt, and print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="use at most this many prompts, evenly spread (default: all)")
    parser.add_argument("--budget", type=int, default=4096, help="neurons with rows in a graph (default: 4096)")
    parser.add_argument("--ablations", type=int, default=8, help="features ablated in each graph (default: 8)")
    chosen = parser.parse_args(arguments)
    started = time.monotonic()
    clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
    model = clt.language_model
    replacements = {"features": clt.replacement_model(), "neurons": ReplacementModel(model, "neurons")}
    prompts = evaluation_prompts("two_hop")
    if chosen.limit is not None and chosen.limit < len(prompts):
        prompts = [prompts[index] for index in np.linspace(0, len(prompts) - 1, chosen.limit).round().astype(int)]
    rows: dict[str, list[Measured]] = {name: [] for name in replacements}
    for statement in prompts:
        token = model.next_tokens([statement.prompt])[0]
        for name, replacement in replacements.items():
            graph = attribute(
                model,
                replacement.transcoder,
                statement.prompt,
                targets=TokenLogits(tokens=(token,)),
                max_feature_nodes=chosen.budget,
            )
            rows[name].append(measured(graph, replacement, chosen.ablations))
    text, results = table(rows)
    print(text)
    print(json.dumps({**results, "prompts": len(prompts), "seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main()
