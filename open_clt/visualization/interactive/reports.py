"""Interactive figures of training runs and evaluation reports: curves, one transcoder, and several compared.

Each function shows what the static function of the same name shows, and takes the same arguments apart from axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from matplotlib.colors import to_hex
from plotly.subplots import make_subplots

from open_clt.config.arguments import checked_arguments
from open_clt.evaluation.report import NORM_QUANTILES, Report
from open_clt.transcoders.metrics import DENSITY_EDGES
from open_clt.visualization.figures import visualize_training_curves
from open_clt.visualization.interactive.frame import FONT, Margins, new_figure, share_axis
from open_clt.visualization.interactive.notebook_plot import NotebookPlot
from open_clt.visualization.interactive.saving import check_interactive_path, finished
from open_clt.visualization.interactive.text import BREAK, plain_text
from open_clt.visualization.preparation import TrainingCurves, curve_panels, curves_title
from open_clt.visualization.report_figures import visualize_comparison, visualize_report
from open_clt.visualization.report_preparation import compared, cross_entropy_increase, report_title
from open_clt.visualization.style import BLUE, GREY, VERMILLION

_SYMBOLS = ("circle", "square", "diamond", "triangle-down", "triangle-up", "cross", "star", "x")
_MOST_NAMES = 18
"""Largest number of transcoders that the key of a comparison names; the names of all stand under the mouse."""
_MOST_STEPS = 8_000
"""Largest number of steps that a curve shows; a longer one shows the least and the largest value of each stretch."""


@checked_arguments
def interactive_training_curves(
    curves: TrainingCurves, *, title: str | None = None, save_path: str | Path | None = None
) -> go.Figure:
    """Show loss, FVU, L0 and the share of dead features over the steps of a training run, in four panels.

    Each panel states its last value. See ``visualize_training_curves``.
    """
    check_interactive_path(save_path, "visualize_training_curves")
    panels = curve_panels(curves)
    names = [f"{panel.name}  <b>{panel.last}</b>" for panel in panels]
    figure = _panels(
        (2, 2),
        (860.0, 520.0),
        names,
        title=curves_title(curves) if title is None else title,
        static="visualize_training_curves",
    )
    for number, panel in enumerate(panels):
        row, column = number // 2 + 1, number % 2 + 1
        step, values = _thinned(np.asarray(panel.step), np.asarray(panel.values, dtype=np.float64))
        form = ".2%" if panel.is_share else ".4g"
        template = f"step %{{x:,}}<br>{panel.name} %{{y:{form}}}<extra></extra>"
        line = {"color": BLUE, "width": 1.6}
        trace = go.Scatter(x=step, y=values, mode="lines", line=line, hovertemplate=template)
        figure.add_trace(trace, row=row, col=column)
        ticks: dict[str, Any] = {"tickformat": ".0%"} if panel.is_share else {}
        figure.update_yaxes(range=[0, panel.top], nticks=6, row=row, col=column, **ticks)
        if row == 2:
            figure.update_xaxes(title_text="step", row=row, col=column)
    return finished(figure, save_path, partial(visualize_training_curves, curves, title=title))


@checked_arguments
def interactive_report(report: Report, *, title: str | None = None, save_path: str | Path | None = None) -> go.Figure:
    """Show the report of one transcoder in six panels; see ``visualize_report``.

    The panels are FVU, L0, density, decoder norms, cross-entropy, and the scores of graphs; a report without graphs
    shows how often the likeliest tokens agree.
    """
    check_interactive_path(save_path, "visualize_report")
    figure = _panels(
        (2, 3),
        (1120.0, 560.0),
        _report_names(report),
        title=report_title(report) if title is None else title,
        static="visualize_report",
    )
    reconstruction, alone = report.evaluation.reconstruction, report.evaluation.alone
    layers = reconstruction.model_layers
    _add_layers(figure, (1, 1), layers, reconstruction.fvu_per_layer, "FVU", share=True)
    _add_layers(figure, (1, 2), layers, reconstruction.l0_per_layer, "active features per token")
    _add_densities(figure, report)
    _add_norms(figure, report)
    increases, total = [cross_entropy_increase(one) for one in alone], cross_entropy_increase(report.evaluation.logits)
    _add_layers(figure, (2, 2), layers, increases, "increase, nats", together=total)
    if report.graphs:
        _add_graphs(figure, report)
    else:
        agreements, together = [one.top1_agreement for one in alone], report.evaluation.logits.top1_agreement
        _add_layers(figure, (2, 3), layers, agreements, "same likeliest token", share=True, together=together)
    return finished(figure, save_path, partial(visualize_report, report, title=title))


@checked_arguments
def interactive_comparison(
    reports: Sequence[Report], *, title: str | None = None, save_path: str | Path | None = None
) -> go.Figure:
    """Show several transcoders as points: L0 against FVU, the increase in cross-entropy, and the KL divergence.

    A line joins the transcoders that no other one surpasses in both. See ``visualize_comparison``. Raises ConfigError
    if ``reports`` is empty.
    """
    check_interactive_path(save_path, "visualize_comparison")
    comparison = compared(reports)
    shown = comparison.title if title is None else title
    titles = [panel.title for panel in comparison.panels]
    figure = _panels((1, 3), (1000.0, 380.0), titles, title=shown, static="visualize_comparison", right=210.0)
    colours = [to_hex(colour) for colour in mpl.colormaps["viridis"](np.linspace(0, 0.9, len(reports)))]
    symbols = [_SYMBOLS[index % len(_SYMBOLS)] for index in range(len(reports))]
    names = [plain_text(name, 32) for name in comparison.names]
    marker = {"color": colours, "symbol": symbols, "size": 11, "line": {"width": 0.5, "color": "white"}}
    for column, panel in enumerate(comparison.panels, start=1):
        front_x, front_y = (
            [comparison.sparsity[index] for index in panel.front],
            [panel.heights[i] for i in panel.front],
        )
        line = {"color": GREY, "width": 1}
        front = go.Scatter(x=front_x, y=front_y, mode="lines", line=line, hoverinfo="skip", showlegend=False)
        form = ".2%" if panel.is_share else ".4g"
        hover = [
            f"<b>{name}</b><br>L0 {sparsity:.4g}<br>{panel.title} {format(height, form)}"
            for name, sparsity, height in zip(names, comparison.sparsity, panel.heights, strict=True)
        ]
        points = go.Scatter(x=comparison.sparsity, y=panel.heights, mode="markers", marker=marker, showlegend=False)
        points.update(hovertext=hover, hoverinfo="text")
        for trace in (front, points):
            figure.add_trace(trace, row=1, col=column)
        ticks: dict[str, Any] = {"tickformat": ".0%" if panel.limits[1] > 0.1 else ".1%"} if panel.is_share else {}
        figure.update_yaxes(range=list(panel.limits), row=1, col=column, **ticks)
        figure.update_xaxes(range=[0, 1.1 * max(comparison.sparsity)], row=1, col=column)
    figure.update_xaxes(title_text="active features per token (L0)")
    _add_names(figure, names, colours, symbols)
    return finished(figure, save_path, partial(visualize_comparison, reports, title=title))


def _panels(
    grid: tuple[int, int],
    size: tuple[float, float],
    names: Sequence[str],
    *,
    title: str,
    static: str,
    right: float = 20.0,
) -> NotebookPlot:
    """Return a figure with a grid of panels, each with its name above it; the names are written for plotly."""
    rows, columns = grid
    figure = new_figure(size, Margins(left=60.0, right=right, top=34.0, bottom=52.0), title=title, static=static)
    make_subplots(
        figure=figure,
        rows=rows,
        cols=columns,
        subplot_titles=list(names),
        horizontal_spacing=70 / size[0],
        vertical_spacing=90 / size[1] if rows > 1 else 0,
    )
    figure.update_annotations(font={"size": FONT}, xanchor="left")
    layout = cast(Any, figure).layout
    for number, annotation in enumerate(layout.annotations):
        annotation.x = layout[f"xaxis{number + 1 if number else ''}"].domain[0]
    return figure


def _report_names(report: Report) -> list[str]:
    """Return the names of the panels of a report, each with a number that sums it up."""
    reconstruction, logits = report.evaluation.reconstruction, report.evaluation.logits
    change = f"{logits.cross_entropy_original:.2f} to {logits.cross_entropy_replacement:.2f} nats"
    last = f"same likeliest token  <b>{logits.top1_agreement:.1%}</b>"
    if report.graphs:
        replacement = np.mean([graph.replacement for graph in report.graphs])
        last = f"attribution graphs  <b>means {replacement:.2f}, {report.graph_completeness:.2f}</b>"
    return [
        f"FVU  <b>mean {np.mean(reconstruction.fvu_per_layer):.1%}</b>",
        f"L0  <b>mean {np.mean(reconstruction.l0_per_layer):.1f}</b>",
        f"density  <b>dead {reconstruction.dead_share:.1%}, dense {reconstruction.dense_share:.1%}</b>",
        "decoder norms: range, middle 90 %, median",
        f"cross-entropy  <b>{change}</b>",
        last,
    ]


def _add_layers(
    figure: go.Figure,
    place: tuple[int, int],
    layers: Sequence[int],
    values: Sequence[float],
    name: str,
    *,
    share: bool = False,
    together: float | None = None,
) -> None:
    """Add a bar for each layer, and a line for the number of all layers ``together``, or for the mean."""
    row, column = place
    form = ".2%" if share else ".4g"
    template = f"layer %{{x}}<br>{name} %{{y:{form}}}<extra></extra>"
    layers = layers[: len(values)]
    bars = go.Bar(x=list(layers), y=list(values), width=0.7, hovertemplate=template)
    bars.update(marker={"color": BLUE})
    figure.add_trace(bars, row=row, col=column)
    alone = together is None
    height, label = (float(np.mean(values)), "mean") if together is None else (together, "all layers replaced")
    ends = [-0.5, max(layers, default=-1) + 0.5]
    line = {"color": GREY if alone else VERMILLION, "width": 1.5, "dash": "dot" if alone else "dash"}
    template = f"{label}<br>{name} %{{y:{form}}}<extra></extra>"
    across = go.Scatter(x=ends, y=[height, height], mode="lines", line=line, hovertemplate=template)
    figure.add_trace(across, row=row, col=column)
    step = max(1, -(-(max(layers, default=0) + 1) // 12))
    figure.update_xaxes(title_text="layer", range=ends, tickmode="linear", tick0=0, dtick=step, row=row, col=column)
    ticks: dict[str, Any] = {"tickformat": ".0%" if max([*values, height]) > 0.1 else ".1%"} if share else {}
    top = 1.08 * max([*values, height, 1e-6])
    figure.update_yaxes(title_text="" if share else name, range=[min(0.0, *values), top], row=row, col=column, **ticks)
    if not alone:
        figure.update_yaxes(title_text=f"{name}<br>one layer replaced; dashed: all", row=row, col=column)


def _add_densities(figure: go.Figure, report: Report) -> None:
    """Add the histogram of densities: how many features are active on which share of the tokens."""
    counts, edges = report.evaluation.reconstruction.density_histogram, np.asarray(DENSITY_EDGES)
    x, y = np.repeat(edges, 2), np.concatenate([[0], np.repeat(counts, 2), [0]])
    about = [
        f"{count} features<br>active on {low:.3%} to {high:.3%} of tokens"
        for count, low, high in zip(counts, edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    hover = [about[0], *np.repeat(about, 2).tolist(), about[-1]]
    trace = go.Scatter(x=x, y=y, mode="lines", fill="tozeroy", line={"color": BLUE, "width": 1})
    figure.add_trace(trace.update(hovertext=hover, hoverinfo="text"), row=1, col=3)
    lowest = max(0.3 / max(report.evaluation.reconstruction.tokens, 1), DENSITY_EDGES[0])
    figure.update_xaxes(share_axis("share of tokens", lowest), row=1, col=3)
    figure.update_yaxes(title_text="features", rangemode="tozero", row=1, col=3)


def _add_norms(figure: go.Figure, report: Report) -> None:
    """Add the range, the middle 90 % and the median of the decoder norms of each layer."""
    quantiles = np.array(report.decoder_norms)
    low, high, median = (NORM_QUANTILES.index(share) for share in (0.05, 0.95, 0.5))
    layers = np.array(report.evaluation.reconstruction.model_layers)
    for first, last, line in (
        (0, -1, {"color": GREY, "width": 1}),
        (low, high, {"color": BLUE, "width": 6}),
    ):
        x = np.stack([layers, layers, np.full(len(layers), np.nan)], axis=1).ravel()
        y = np.stack([quantiles[:, first], quantiles[:, last], np.full(len(layers), np.nan)], axis=1).ravel()
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip"), row=2, col=1)
    hover = [
        f"layer {layer}<br>median {row[median]:.3g}<br>middle 90 % {row[low]:.3g} to {row[high]:.3g}"
        f"<br>all {row[0]:.3g} to {row[-1]:.3g}"
        for layer, row in zip(layers.tolist(), quantiles.tolist(), strict=True)
    ]
    marker = {"color": "white", "size": 8, "line": {"color": BLUE, "width": 1.5}}
    points = go.Scatter(x=layers, y=quantiles[:, median], mode="markers", marker=marker)
    figure.add_trace(points.update(hovertext=hover, hoverinfo="text"), row=2, col=1)
    step = max(1, -(-(int(layers.max(initial=0)) + 1) // 12))
    figure.update_xaxes(title_text="layer", tickmode="linear", tick0=0, dtick=step, row=2, col=1)
    figure.update_yaxes(title_text="norm", rangemode="tozero", row=2, col=1)


def _add_graphs(figure: go.Figure, report: Report) -> None:
    """Add the scores of the attribution graph of each prompt."""
    hover = [
        BREAK.join(
            [
                plain_text(graph.prompt, 80),
                f"replacement {graph.replacement:.3f}",
                f"completeness {graph.completeness:.3f}",
            ]
        )
        for graph in report.graphs
    ]
    points = go.Scatter(
        x=[graph.replacement for graph in report.graphs],
        y=[graph.completeness for graph in report.graphs],
        mode="markers",
        marker={"color": BLUE, "size": 9, "opacity": 0.8},
        hovertext=hover,
        hoverinfo="text",
    )
    figure.add_trace(points, row=2, col=3)
    figure.update_xaxes(title_text="replacement score", range=[0, 1.02], row=2, col=3)
    figure.update_yaxes(title_text="completeness", range=[0, 1.02], row=2, col=3)


def _add_names(figure: go.Figure, names: Sequence[str], colours: Sequence[str], symbols: Sequence[str]) -> None:
    """Add the key of a comparison: the symbol and the name of each transcoder, as traces without points."""
    for name, colour, symbol in list(zip(names, colours, symbols, strict=True))[:_MOST_NAMES]:
        marker: dict[str, Any] = {"color": colour, "symbol": symbol, "size": 11}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=name, showlegend=True))
    if len(names) > _MOST_NAMES:
        more, marker = f"and {len(names) - _MOST_NAMES} more", {"color": "white", "size": 1}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=more, showlegend=True))
    figure.update_layout(showlegend=True, legend={"x": 1.01, "y": 1, "itemclick": False, "itemdoubleclick": False})


def _thinned(step: npt.NDArray[Any], values: npt.NDArray[Any]) -> tuple[Any, Any]:
    """Return a curve with at most ``_MOST_STEPS`` points: of each stretch, the least and the largest value."""
    if len(values) <= _MOST_STEPS:
        return step, values
    stretches = np.array_split(np.arange(len(values)), _MOST_STEPS // 2)
    kept = sorted({int(stretch[pick(values[stretch])]) for stretch in stretches for pick in (np.argmin, np.argmax)})
    kept = sorted({0, len(values) - 1, *kept})
    return step[kept], values[kept]
