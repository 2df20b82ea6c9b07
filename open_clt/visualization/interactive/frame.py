"""The frame of an interactive figure: size, margins, title, style, colour scales and tick labels that do not overlap.

Sizes are in pixels and fixed, so that labels that fit once fit everywhere. The letters are those of the static figures:
DejaVu Sans, or Verdana, which is as wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from matplotlib.colors import Colormap, to_hex

from open_clt.short_repr import short_repr
from open_clt.visualization.interactive.notebook_plot import NotebookPlot
from open_clt.visualization.interactive.text import plain_text, title_text
from open_clt.visualization.labels import text_size
from open_clt.visualization.style import DIVERGING, GREY, INK, layer_colours, sequential

FONT, TITLE_FONT = 12.0, 14.0
"""Sizes of labels and of titles."""
LINE = 17.0
"""Height of a line of labels."""
_TITLE_LINE = 19.0
_AXIS_TITLE = 24.0
"""Room of the title of an axis."""
_BUTTONS = 130.0
"""Room of the buttons beside the title."""
_BUTTONS_LEFT_OUT = ("sendChartToCloud", "zoomin", "zoomout", "autoscale", "select", "lasso")
"""Buttons of plotly that a figure does not have; the first one would send its data to a server."""
_FAMILY = "DejaVu Sans, Verdana, sans-serif"
_AXIS = {
    "showgrid": False,
    "showline": True,
    "zeroline": False,
    "linecolor": GREY,
    "ticks": "outside",
    "ticklen": 4,
    "tickcolor": GREY,
    "title": {"standoff": 8, "font": {"size": FONT}},
}
_TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": _FAMILY, "size": FONT, "color": INK},
        "title": {"x": 0, "xref": "container", "xanchor": "left", "yanchor": "top", "font": {"size": TITLE_FONT}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hovermode": "closest",
        "hoverlabel": {
            "align": "left",
            "bgcolor": "white",
            "bordercolor": GREY,
            "font": {"family": _FAMILY, "size": FONT, "color": INK},
        },
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "showlegend": False,
        "dragmode": "zoom",
        "modebar": {"remove": [*_BUTTONS_LEFT_OUT], "color": "#BBBBBB"},
    }
)


class Margins(NamedTuple):
    """Room around the axes, without the title."""

    left: float = 60.0
    right: float = 20.0
    top: float = 14.0
    bottom: float = 50.0


class Ticks(NamedTuple):
    """The tick labels of an axis."""

    values: list[int]
    """Coordinates of the labels."""
    texts: list[str]
    """The labels that are shown, as plotly reads them."""
    angle: int
    """Rotation of the labels, in degrees."""
    room: float
    """Room that the labels and the title of the axis need."""

    __repr__ = short_repr

    def axis(self, title: str, **settings: Any) -> dict[str, Any]:
        """Return the settings of an axis with these labels."""
        labels = {"tickmode": "array", "tickvals": self.values, "ticktext": self.texts, "tickangle": self.angle}
        return {**labels, "title": {"text": title}, **settings}


def new_figure(
    size: tuple[float, float], margins: Margins, *, title: str, static: str, traces: Sequence[Any] = ()
) -> NotebookPlot:
    """Return a figure whose axes have a ``size`` in pixels; ``static`` draws the same figure with matplotlib."""
    width = size[0] + margins.left + margins.right
    lines = title_text(title, width - 24 - _BUTTONS, TITLE_FONT)
    top = margins.top + (_TITLE_LINE * (lines.count("<br>") + 1) + 8 if lines else 0.0)
    height = size[1] + top + margins.bottom
    return NotebookPlot(
        data=list(traces),
        layout={
            "template": _TEMPLATE,
            "width": round(width),
            "height": round(height),
            "autosize": False,
            "margin": {"l": margins.left, "r": margins.right, "t": top, "b": margins.bottom, "autoexpand": False},
            "title": {"text": lines, "x": 12 / width, "y": 1 - 10 / height},
            "meta": {"static": static},
        },
    )


def ticks_along_x(labels: Sequence[str], texts: Sequence[str], spacing: float) -> Ticks:
    """Return labels below an axis: horizontal if they fit, otherwise slanted or upright, the last ones not all of them.

    ``labels`` are measured and ``texts`` are shown; ``spacing`` is the distance between two labels.
    """
    widths = [text_size(label, FONT)[0] for label in labels]
    widest = max(widths, default=0.0)
    count = len(labels)
    if max([(left + right) / 2 + 6 for left, right in pairwise(widths)], default=0.0) <= spacing:
        return Ticks(list(range(count)), list(texts), 0, LINE + _AXIS_TITLE)
    angle = -45 if spacing >= LINE * math.sqrt(2) else -90
    step = 1 if angle == -45 else math.ceil(LINE / spacing)
    room = (widest + LINE) * math.sqrt(0.5) if angle == -45 else widest
    return Ticks(list(range(0, count, step)), list(texts)[::step], angle, room + 10 + _AXIS_TITLE)


def ticks_along_y(labels: Sequence[str], texts: Sequence[str], spacing: float) -> Ticks:
    """Return labels beside an axis; where they do not all fit, only every second or third (and so on) is shown."""
    step = max(1, math.ceil(LINE / spacing))
    widest = max((text_size(label, FONT)[0] for label in labels), default=0.0)
    return Ticks(list(range(0, len(labels), step)), list(texts)[::step], 0, widest + 12 + _AXIS_TITLE)


def share_axis(title: str, lowest: float) -> dict[str, Any]:
    """Return the settings of an axis of shares from ``lowest`` to 1, with equal steps of their logarithms."""
    decades = -math.floor(math.log10(lowest))
    exponents = range(0, -decades - 1, -max(1, round(decades / 7)))
    texts = [f"{100 * 10.0**exponent:.10f}".rstrip("0").rstrip(".") + "%" for exponent in exponents]
    texts = [text if exponent >= -6 else f"1e{exponent}" for exponent, text in zip(exponents, texts, strict=True)]
    ticks = {"tickmode": "array", "tickvals": [10.0**exponent for exponent in exponents], "ticktext": texts}
    return {"type": "log", "range": [math.log10(lowest), 0.0], **ticks, "title": {"text": title}}


def value_scale(values: npt.NDArray[Any]) -> dict[str, Any]:
    """Return the colours of a heatmap, as in the static one: zero is white, and negative values have their own."""
    top = max(float(np.max(np.abs(values), initial=0)), 1e-30)
    if np.min(values, initial=0) >= 0:
        return {"colorscale": _sampled(sequential(), 32), "zmin": 0.0, "zmax": top}
    return {"colorscale": correlation_scale(), "zmin": -top, "zmax": top}


def correlation_scale() -> list[tuple[float, str]]:
    """Return the colour scale of signed values."""
    return _sampled(mpl.colormaps[DIVERGING], 21)


def layer_hex(n_layers: int) -> list[str]:
    """Return one colour per layer, as in the static figures."""
    return [to_hex(colour) for colour in layer_colours(n_layers)]


def layer_scale(n_layers: int) -> dict[str, Any]:
    """Return the settings of markers that are coloured by layer, with a key beside the axes."""
    colours = layer_hex(n_layers)
    steps = [((layer + end) / n_layers, colour) for layer, colour in enumerate(colours) for end in (0, 1)]
    ticks = list(range(0, n_layers, -(-n_layers // 16)))
    bar = colour_bar("layer", tickmode="array", tickvals=ticks, ticktext=[f"L{layer}" for layer in ticks])
    return {"colorscale": steps, "cmin": -0.5, "cmax": n_layers - 0.5, "showscale": True, "colorbar": bar}


def colour_bar(title: str, **settings: Any) -> dict[str, Any]:
    """Return the settings of a narrow colour bar with a title."""
    label = {"text": title, "side": "right", "font": {"size": FONT}}
    return {"title": label, "thickness": 12, "len": 0.9, "outlinewidth": 0, "x": 1, "xpad": 14, **settings}


WIDEST = 1230.0
"""Largest width of a figure, which fits a window of 1280 pixels."""
COLOUR_BAR_ROOM = 100.0
"""Room of a colour bar to the right of the axes."""
_MOST_CELLS, _MOST_CHARACTERS = 10_000, 600_000
"""Largest number of cells in double precision, and of characters under the mouse; a page has at most 6 MB."""


def matrix_trace(values: npt.NDArray[Any], texts: list[list[str]], quantity: str) -> go.Heatmap:
    """Return a heatmap with a text for each cell; ``quantity`` names the values.

    The texts of a matrix that is too large for a page are left out: then the mouse shows the labels of the axes and the
    value. Its values are written in single precision.
    """
    title = plain_text(quantity)
    trace = go.Heatmap(z=values.astype(np.float32) if values.size > _MOST_CELLS else values)
    trace.update(colorbar=colour_bar(title))
    # JSON writes "<" and ">" with six characters each.
    characters = sum(len(text) + 10 * text.count("<") for row in texts for text in row)
    if characters <= _MOST_CHARACTERS:
        return trace.update(hovertext=texts, hoverinfo="text")
    return trace.update(hovertemplate=f"%{{y}}<br>%{{x}}<br>{title} %{{z:.3g}}<extra></extra>")


def _sampled(colours: Colormap, count: int) -> list[tuple[float, str]]:
    return [(float(share), to_hex(colours(float(share)))) for share in np.linspace(0, 1, count)]
