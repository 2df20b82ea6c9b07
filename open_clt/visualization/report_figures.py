"""Figures of evaluation reports: one page for one transcoder, and a Pareto figure for several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from open_clt.config.arguments import checked_arguments
from open_clt.evaluation.calibration import Reliability
from open_clt.evaluation.report import NORM_QUANTILES, Report
from open_clt.transcoders.metrics import DENSITY_EDGES
from open_clt.visualization.labels import token_label
from open_clt.visualization.report_preparation import compared, cross_entropy_increase, report_title
from open_clt.visualization.style import BLUE, GREY, VERMILLION, NotebookFigure, save, styled
from open_clt.visualization.titles import panel_title, title_figure

_MARKERS = "osD^vP*X"


@checked_arguments
def visualize_report(report: Report, *, title: str | None = None, save_path: str | Path | None = None) -> Figure:
    """Draw the report of one transcoder in six panels: FVU, L0, density, decoder norms, cross-entropy and graphs.

    A report without graphs shows the agreement of predictions in the last panel. Without a ``title``, a title states
    the name of the transcoder, the contexts and the language model; an empty ``title`` leaves it out.
    """
    with styled(save_path):
        figure = NotebookFigure(figsize=(10, 5.6), layout="constrained")
        panels = figure.subplots(2, 3).flat
        title_figure(figure, report_title(report) if title is None else title)
        reconstruction = report.evaluation.reconstruction
        layers = reconstruction.model_layers
        _per_layer(next(panels), "FVU", layers, reconstruction.fvu_per_layer, share=True)
        _per_layer(next(panels), "L0", layers, reconstruction.l0_per_layer)
        _densities(next(panels), report)
        _norms(next(panels), report)
        _cross_entropies(next(panels), report)
        (_graphs if report.graphs else _agreements)(next(panels), report)
        save(figure, save_path)
    return figure


@checked_arguments
def visualize_comparison(
    reports: Sequence[Report], *, title: str | None = None, save_path: str | Path | None = None
) -> Figure:
    """Draw several transcoders as points: L0 against FVU, against the increase in cross-entropy, and against KL.

    The increase is the cross-entropy of the replacement model minus that of the original model; KL is the divergence of
    their predictions. Points further to the lower left are better, and a line joins the best ones. Without a ``title``,
    a title states the contexts and the language model. Raises ConfigError if ``reports`` is empty.
    """
    comparison = compared(reports)
    with styled(save_path):
        figure = NotebookFigure(figsize=(12.5, 4.0), layout="constrained")
        axes = figure.subplots(1, len(comparison.panels))
        title_figure(figure, comparison.title if title is None else title)
        colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(reports)))
        for ax, panel in zip(axes, comparison.panels, strict=True):
            points = zip(comparison.sparsity, panel.heights, strict=True)
            for index, (point, name) in enumerate(zip(points, comparison.names, strict=True)):
                marker, label = _MARKERS[index % len(_MARKERS)], token_label(name, 32)
                ax.scatter(*point, color=[colours[index]], marker=marker, s=42, label=label, zorder=3)
            front = [(comparison.sparsity[index], panel.heights[index]) for index in panel.front]
            ax.plot(*zip(*front, strict=True), color=GREY, linewidth=0.8, zorder=1)
            ax.set_title(panel.title)
            ax.set_xlabel("active features per token and layer (L0)")
            ax.set_xlim(0, 1.1 * max(comparison.sparsity))
            ax.set_ylim(*panel.limits)
            if panel.is_share:
                ax.yaxis.set_major_formatter(PercentFormatter(1))
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
        save(figure, save_path)
    return figure


def _per_layer(ax: Axes, name: str, layers: Sequence[int], values: Sequence[float], *, share: bool = False) -> None:
    ax.bar(layers, values, color=BLUE, width=0.7)
    mean = sum(values) / len(values)
    ax.axhline(mean, color=GREY, linewidth=0.8, linestyle=":")
    panel_title(ax, name, f"mean {mean:.1%}" if share else f"mean {mean:.1f}")
    _layer_axis(ax)
    if share:
        ax.yaxis.set_major_formatter(PercentFormatter(1))


def _densities(ax: Axes, report: Report) -> None:
    reconstruction = report.evaluation.reconstruction
    ax.stairs(reconstruction.density_histogram, DENSITY_EDGES, fill=True, color=BLUE)
    ax.set_xscale("log")
    panel_title(ax, "density", f"dead {reconstruction.dead_share:.1%}, dense {reconstruction.dense_share:.1%}")
    ax.set_xlabel("share of tokens on which a feature is active")
    ax.set_xlim(max(0.3 / max(reconstruction.tokens, 1), DENSITY_EDGES[0]), 1)
    ax.set_ylabel("features")


def _norms(ax: Axes, report: Report) -> None:
    layers, quantiles = report.evaluation.reconstruction.model_layers, np.array(report.decoder_norms)
    low, high, median = (NORM_QUANTILES.index(share) for share in (0.05, 0.95, 0.5))
    ax.vlines(layers, quantiles[:, 0], quantiles[:, -1], color=GREY, linewidth=0.8)
    ax.vlines(layers, quantiles[:, low], quantiles[:, high], color=BLUE, linewidth=4)
    ax.scatter(layers, quantiles[:, median], color="white", edgecolor=BLUE, s=16, zorder=3)
    ax.set_title("decoder norms: range, middle 90 %, median")
    ax.set_ylim(bottom=0)
    _layer_axis(ax)


def _cross_entropies(ax: Axes, report: Report) -> None:
    logits = report.evaluation.logits
    increases = [cross_entropy_increase(layer_logits) for layer_logits in report.evaluation.alone]
    total_increase = cross_entropy_increase(logits)
    ax.bar(
        report.evaluation.reconstruction.model_layers[: len(increases)],
        increases,
        color=BLUE,
        width=0.7,
        label="one layer replaced",
    )
    ax.axhline(total_increase, color=VERMILLION, linestyle="--", linewidth=1.2, label="all layers replaced")
    change = f"{logits.cross_entropy_original:.2f} to {logits.cross_entropy_replacement:.2f}"
    panel_title(ax, "cross-entropy", change)
    ax.set_ylabel("increase, nats")
    ax.set_ylim(min(0.0, *increases), 1.3 * max(1e-3, total_increase, *increases))
    ax.legend(loc="upper right", ncols=2)
    _layer_axis(ax)


def _graphs(ax: Axes, report: Report) -> None:
    replacement = [graph.replacement for graph in report.graphs]
    completeness = [graph.completeness for graph in report.graphs]
    ax.scatter(replacement, completeness, color=BLUE, s=24, alpha=0.8)
    panel_title(ax, "attribution graphs", f"means {np.mean(replacement):.2f}, {np.mean(completeness):.2f}")
    ax.set_xlabel("replacement score")
    ax.set_ylabel("completeness")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)


def _agreements(ax: Axes, report: Report) -> None:
    """Draw how often predictions agree, which a report without graphs shows in the panel of graphs."""
    agreements = [logits.top1_agreement for logits in report.evaluation.alone]
    together = report.evaluation.logits.top1_agreement
    ax.bar(
        report.evaluation.reconstruction.model_layers[: len(agreements)],
        agreements,
        color=BLUE,
        width=0.7,
        label="one layer replaced",
    )
    ax.axhline(together, color=VERMILLION, linestyle="--", linewidth=1.2, label="all layers replaced")
    panel_title(ax, "same likeliest token", f"{together:.1%}")
    ax.set_ylim(0, 1.3)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(loc="upper right", ncols=2)
    _layer_axis(ax)


def _layer_axis(ax: Axes) -> None:
    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


@checked_arguments
def visualize_reliability(
    reliabilities: Mapping[str, Reliability], *, title: str | None = None, save_path: str | Path | None = None
) -> Figure:
    """Draw a reliability diagram: the share of trials that turned out as predicted, against their probability.

    Each entry is a line with its ECE; the area of a point shows its number of trials. A calibrated probability lies on
    the diagonal.
    """
    with styled(save_path):
        figure = NotebookFigure(figsize=(5.4, 4.8), layout="constrained")
        axes = figure.subplots()
        title_figure(figure, "Probabilities and outcomes of interventions" if title is None else title)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--", label="calibrated")
        for (name, each), marker in zip(reliabilities.items(), _MARKERS, strict=False):
            most = max(bin.trials for bin in each.bins)
            x, y = [bin.probability for bin in each.bins], [bin.share for bin in each.bins]
            (line,) = axes.plot(x, y, linewidth=1.0)
            areas = [8 + 60 * bin.trials / most for bin in each.bins]
            axes.scatter(x, y, s=areas, marker=marker, color=line.get_color(), label=f"{name}: ECE {each.ece:.3f}")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability", ylabel="share as predicted")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(loc="upper left")
        save(figure, save_path)
    return figure
