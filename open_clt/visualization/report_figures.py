"""Figures of evaluation reports: one transcoder on one page, several on a Pareto figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from open_clt.errors import ConfigError
from open_clt.evaluation.report import NORM_QUANTILES, Report
from open_clt.replacement.comparison import LogitComparison
from open_clt.transcoders.metrics import DENSITY_EDGES
from open_clt.visualization.style import BLUE, GREY, VERMILLION, save, styled

_MARKERS = "osD^vP*X"


def visualize_report(report: Report, *, title: str | None = None, save_path: str | Path | None = None) -> Figure:
    """One transcoder on one page: reconstruction, sparsity, densities, decoder norms, predictions, graphs."""
    with styled(save_path):
        figure = Figure(figsize=(10, 5.6), layout="constrained")
        panels = figure.subplots(2, 3).flat
        figure.suptitle(title or report.name, ha="left", x=0.01, fontsize=9.5, parse_math=False)
        _per_layer(next(panels), "FVU", report.evaluation.reconstruction.fvu_per_layer, share=True)
        _per_layer(next(panels), "L0", report.evaluation.reconstruction.l0_per_layer)
        _densities(next(panels), report)
        _norms(next(panels), report)
        _cross_entropies(next(panels), report)
        _graphs(next(panels), report)
        save(figure, save_path)
    return figure


def visualize_comparison(reports: Sequence[Report], *, save_path: str | Path | None = None) -> Figure:
    """Several transcoders: L0 against FVU, and against what the replacement model loses in cross-entropy.

    Lower left is better. Raises ConfigError if there is no report.
    """
    if not reports:
        raise ConfigError("There is no transcoder to draw; name at least one.")
    with styled(save_path):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(reports)))
        sparsity = [report.evaluation.reconstruction.l0 for report in reports]
        unexplained = [report.evaluation.reconstruction.fvu for report in reports]
        lost = [_lost(report.evaluation.logits) for report in reports]
        for ax, reached in ((left, unexplained), (right, lost)):
            for number, (report, colour) in enumerate(zip(reports, colours, strict=True)):
                marker, point = _MARKERS[number % len(_MARKERS)], (sparsity[number], reached[number])
                ax.scatter(*point, color=[colour], marker=marker, s=42, label=report.name, zorder=3)
            _front(ax, sparsity, reached)
            ax.set_xlabel("active features per token and layer (L0)")
            ax.set_xlim(0, 1.1 * max(sparsity))
            ax.set_ylim(min(0.0, 1.1 * min(reached)), 1.1 * max(1e-6, *reached))
        left.set_title("variance unexplained (FVU)")
        left.yaxis.set_major_formatter(PercentFormatter(1))
        right.set_title("cross-entropy above the model's own, nats")
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
        save(figure, save_path)
    return figure


def _per_layer(ax: Axes, name: str, values: Sequence[float], *, share: bool = False) -> None:
    ax.bar(range(len(values)), values, color=BLUE, width=0.7)
    ax.set_title(name)
    mean = sum(values) / len(values)
    ax.axhline(mean, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_title(f"mean {mean:.1%}" if share else f"mean {mean:.1f}", loc="right", color=BLUE)
    _layer_axis(ax)
    if share:
        ax.yaxis.set_major_formatter(PercentFormatter(1))


def _densities(ax: Axes, report: Report) -> None:
    reconstruction = report.evaluation.reconstruction
    ax.stairs(reconstruction.density_histogram, DENSITY_EDGES, fill=True, color=BLUE)
    ax.set_xscale("log")
    ax.set_title("density")
    ax.set_xlabel("share of the tokens a feature fires on")
    ax.set_title(
        f"dead {reconstruction.dead_share:.1%}, dense {reconstruction.dense_share:.1%}", loc="right", color=BLUE
    )
    ax.set_xlim(max(0.3 / max(reconstruction.tokens, 1), DENSITY_EDGES[0]), 1)
    ax.set_ylabel("features")


def _norms(ax: Axes, report: Report) -> None:
    numbers, spread = range(len(report.decoder_norms)), np.array(report.decoder_norms)
    low, high, middle = (NORM_QUANTILES.index(share) for share in (0.05, 0.95, 0.5))
    ax.vlines(numbers, spread[:, 0], spread[:, -1], color=GREY, linewidth=0.8)
    ax.vlines(numbers, spread[:, low], spread[:, high], color=BLUE, linewidth=4)
    ax.scatter(numbers, spread[:, middle], color="white", edgecolor=BLUE, s=16, zorder=3)
    ax.set_title("decoder norms: all, 90 %, median")
    ax.set_ylim(bottom=0)
    _layer_axis(ax)


def _cross_entropies(ax: Axes, report: Report) -> None:
    logits = report.evaluation.logits
    lost, all_lost = [_lost(alone) for alone in report.evaluation.alone], _lost(logits)
    ax.bar(range(len(lost)), lost, color=BLUE, width=0.7, label="one layer replaced")
    ax.axhline(all_lost, color=VERMILLION, linestyle="--", linewidth=1.2, label="all replaced")
    ax.set_title("cross-entropy")
    heights = logits.cross_entropy_original, logits.cross_entropy_replacement
    ax.set_title("{:.2f} to {:.2f}".format(*heights), loc="right", color=BLUE)
    ax.set_ylabel("nats lost")
    ax.set_ylim(min(0.0, *lost), 1.3 * max(1e-3, all_lost, *lost))
    ax.legend(loc="upper right", ncols=2)
    _layer_axis(ax)


def _lost(logits: LogitComparison) -> float:
    """Cross-entropy that the replacement adds to the model's own."""
    return logits.cross_entropy_replacement - logits.cross_entropy_original


def _graphs(ax: Axes, report: Report) -> None:
    ax.set_title("attribution graphs")
    if not report.graphs:
        ax.set_axis_off()
        ax.text(0, 0.9, "no graphs", transform=ax.transAxes, color=GREY)
        return
    replaced, complete = ([getattr(graph, name) for graph in report.graphs] for name in ("replacement", "completeness"))
    ax.scatter(replaced, complete, color=BLUE, s=24, alpha=0.8)
    ax.set_title(f"means {np.mean(replaced):.2f}, {np.mean(complete):.2f}", loc="right", color=BLUE)
    ax.set_xlabel("replacement")
    ax.set_ylabel("completeness")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)


def _layer_axis(ax: Axes) -> None:
    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _front(ax: Axes, sparsity: Sequence[float], reached: Sequence[float]) -> None:
    """Join those that no other beats in both."""
    points = sorted(zip(sparsity, reached, strict=True))
    front = [points[0]]
    for point in points[1:]:
        if point[1] < front[-1][1]:
            front.append(point)
    ax.plot(*zip(*front, strict=True), color=GREY, linewidth=0.8, zorder=1)
