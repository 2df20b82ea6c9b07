"""The pictures of the concept pages, measured on the embedded model and its transcoder: ``make docs-pictures``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from open_clt import AttributionGraph, OpenCrossLayerTranscoder
from open_clt.embedded import START_PROMPT
from open_clt.graphs.nodes import NodeKind
from open_clt.visualization.graph.figure import visualize_attribution_graph

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "pictures"
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#8c8c8c"
_STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 150}
_THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_ABLATED = 32
_KINDS = {
    "features": (NodeKind.FEATURE,),
    "tokens and positions": (NodeKind.EMBEDDING, NodeKind.POSITIONAL),
    "biases": (NodeKind.BIAS, NodeKind.MLP_OUTPUT),
    "errors": (NodeKind.ERROR,),
}
_COLOURS = (_BLUE, "#56b4e9", "#cccccc", _ORANGE)
"""The colours of ``_KINDS``, in their order."""


def transcoder(clt: OpenCrossLayerTranscoder, graph: AttributionGraph) -> Figure:
    """The features that are active on the prompt, and the layers that the strongest of them write to."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    active = clt.get_feature_activations(START_PROMPT)
    counts = torch.stack([torch.bincount(layer.rows, minlength=len(active.tokens)) for layer in active.layers])
    _table(left, counts[:, 1:], [token.strip() for token in active.tokens[1:]])
    left.set_title(f"Active features, of {clt.transcoder.config.n_features} per layer", loc="left")
    sources = clt.transcoder.config.n_layers
    norms = torch.full((sources, sources), torch.nan)
    for source in range(sources):
        strongest = active.layers[source].dense().max(dim=0).values.topk(20).indices
        written = clt.transcoder.decoder_rows(source, strongest).norm(dim=-1).mean(dim=0)
        norms[source, source : source + len(written)] = written.cpu()
    image = right.imshow(norms, cmap="Blues", vmin=0, origin="lower")
    figure.colorbar(image, ax=right, label="mean norm of a decoder")
    right.set(xlabel="layer that is written to", ylabel="layer that is read")
    right.set_title("Features write to later layers", loc="left")
    return figure


def _table(ax: Axes, counts: torch.Tensor, tokens: list[str]) -> None:
    """A heat map of counts by layer and token, with the numbers in its cells."""
    ax.imshow(counts, cmap="Blues", origin="lower", aspect="auto", vmin=0)
    for (row, column), count in zip(
        torch.cartesian_prod(*map(torch.arange, counts.shape)), counts.flatten(), strict=True
    ):
        dark = count > 0.6 * counts.max()
        ax.text(int(column), int(row), str(int(count)), ha="center", va="center", color="white" if dark else "black")
    ax.set_xticks(range(len(tokens)), tokens, rotation=35, ha="right")
    ax.set(ylabel="layer", yticks=range(counts.shape[0]))


def replacement(clt: OpenCrossLayerTranscoder, graph: AttributionGraph) -> Figure:
    """The likeliest next words of the model and of its replacement model."""
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    prompts = (START_PROMPT, "The capital of France is", "The reverse of left is")
    other = clt.replacement_model()
    for ax, prompt in zip(figure.subplots(1, len(prompts)), prompts, strict=True):
        tokens = clt.language_model.tokenize(prompt)
        original = clt.language_model.logits(tokens[None])[0, -1].softmax(dim=-1)
        replaced = other.logits(tokens[None])[0, -1].softmax(dim=-1)
        best = (original + replaced).topk(4).indices.flip(0)
        rows = torch.arange(len(best))
        ax.barh(rows + 0.2, original[best], height=0.38, color=_GREY, label="model")
        ax.barh(rows - 0.2, replaced[best], height=0.38, color=_BLUE, label="replacement model")
        ax.set_yticks(rows, [clt.language_model.decode([int(token)]).strip() for token in best])
        ax.set(xlim=(0, 1), xlabel="probability")
        ax.set_title(prompt if len(prompt) < 34 else f"... {prompt[-30:]}", fontsize=9, loc="left")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def graph_picture(clt: OpenCrossLayerTranscoder, graph: AttributionGraph) -> Figure:
    """The most influential nodes of the graph of the prompt."""
    return visualize_attribution_graph(graph.prune(node_threshold=0.6), max_nodes=12, title="")


def errors(clt: OpenCrossLayerTranscoder, graph: AttributionGraph) -> Figure:
    """What the inputs of features consist of, for each layer, as shares of the absolute weights of edges."""
    shares = torch.zeros(clt.transcoder.config.n_layers + 1, len(_KINDS))
    adjacency = graph.adjacency().abs()
    masks = [graph.of_kind(*kinds) for kinds in _KINDS.values()]
    for row in graph.edges.rows.tolist():
        layer = min(int(graph.nodes.layer[row]), len(shares) - 1)
        shares[layer] += torch.tensor([float(adjacency[row, mask].sum()) for mask in masks])
    shares /= shares.sum(dim=1, keepdim=True)
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    ax = figure.subplots()
    begin = torch.zeros(len(shares))
    for number, (name, colour) in enumerate(zip(_KINDS, _COLOURS, strict=True)):
        ax.barh(range(len(shares)), shares[:, number], left=begin, color=colour, label=name)
        begin += shares[:, number]
    ax.set_yticks(
        range(len(shares)), [*(f"features of layer {layer}" for layer in range(len(shares) - 1)), "the next word"]
    )
    ax.set(xlim=(0, 1), xlabel="share of the absolute weights of edges into these nodes")
    figure.legend(loc="outside lower center", ncols=len(_KINDS), frameon=False)
    return figure


def scores(clt: OpenCrossLayerTranscoder, graph: AttributionGraph) -> Figure:
    """The two scores of the graph and its number of nodes, as pruning keeps a smaller share of the influence."""
    pruned = [graph.prune(node_threshold=threshold) for threshold in _THRESHOLDS]
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in (("completeness", _BLUE), ("replacement", _ORANGE)):
        values = [getattr(part.scores(), name) for part in pruned]
        left.plot(_THRESHOLDS, values, "o-", color=colour, label=f"{name} score")
        left.axhline(getattr(graph.scores(), name), color=colour, linestyle=":", linewidth=1)
    left.set(xlabel="share of the influence that pruning keeps", ylim=(0, 1.03))
    left.legend(frameon=False, loc="lower right")
    left.set_title("Scores; dotted: the whole graph", loc="left")
    right.plot(_THRESHOLDS, [part.n_nodes for part in pruned], "o-", color=_GREY)
    right.set(xlabel="share of the influence that pruning keeps", ylim=(0, None))
    right.set_title(f"Nodes; the whole graph has {graph.n_nodes}", loc="left")
    return figure


def faithfulness(clt: OpenCrossLayerTranscoder, graph: AttributionGraph) -> Figure:
    """The effects of ablations that the graph predicts, and those that were measured."""
    measured = clt.faithfulness(graph, max_features=_ABLATED)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    names = ("Other MLPs are held fixed", "Everything reacts")
    for ax, name, effects in zip(figure.subplots(1, 2), names, (measured.direct, measured.total), strict=True):
        ends = [float(effects.predicted.min()), float(effects.predicted.max())]
        ax.plot(ends, ends, color=_GREY, linewidth=1)
        ax.scatter(effects.predicted, effects.measured, s=5, color=_BLUE, alpha=0.4, linewidths=0)
        ax.set(xlabel="change that the graph predicts", ylabel="change that is measured")
        ax.set_title(f"{name}: rank correlation {effects.spearman:.2f}", loc="left", fontsize=10)
    return figure


PICTURES_OF: dict[str, Callable[[OpenCrossLayerTranscoder, AttributionGraph], Figure]] = {
    "transcoder.png": transcoder,
    "replacement.png": replacement,
    "graph.png": graph_picture,
    "errors.png": errors,
    "scores.png": scores,
    "faithfulness.png": faithfulness,
}
"""The files of the pictures, and the functions that draw them."""


@torch.no_grad()
def draw(directory: Path = PICTURES) -> None:
    """Draw every picture into a directory."""
    clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
    graph = clt.attribute(START_PROMPT)
    directory.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        for name, picture in PICTURES_OF.items():
            picture(clt, graph).savefig(directory / name)


if __name__ == "__main__":
    draw()
