"""Text in figures: tokens made readable, and labels that never lie on one another."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import TextToPath

from open_clt.visualization.style import figure_of

FONT = "DejaVu Sans"
"""Comes with matplotlib, so that a figure is the same everywhere."""

_MARKS = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "·"}
_SPECIAL = {"<|endoftext|>": "<eot>"}
_LINE = 1.2
"""Distance of two lines of text, in sizes of the font."""
_HINTING = 1.12
"""How much wider than its measures a text may become when its letters are fitted to pixels."""
_GAP = 2.0
"""Pixels that stay free between two labels."""


def token_label(text: str, max_chars: int = 14) -> str:
    """A token as it can stand in a figure: spaces at its ends as ``·``, line breaks as ``⏎``, never too long.

    Characters that the font lacks, or that cannot be seen, are written as their code, such as ``\\u4f60``.
    """
    text = _SPECIAL.get(text, text)
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    marked = "·" * before + inner + "·" * (len(text) - len(inner) - before)
    shown = "".join(_MARKS.get(character, _visible(character)) for character in marked)
    return shown if len(shown) <= max_chars else shown[: max_chars - 1] + "…"


def wrapped(text: str, width: int = 16, lines: int = 2) -> str:
    """A name broken into at most some lines of ``width`` characters; what is left over becomes an ellipsis.

    A name with an arrow, such as ``the, a → cat``, is broken there if it has to be broken.
    """
    for special, short in _SPECIAL.items():
        text = text.replace(special, short)
    shown = "".join(map(_visible, " ".join(text.split())))
    before, arrow, after = shown.partition(" → ")
    if arrow and lines > 1 and len(shown) > width:
        return f"{_cut(before, width)}\n{_cut(f'→ {after}', width)}"
    return "\n".join(textwrap.wrap(shown, width, max_lines=lines, placeholder="…"))


def text_size(text: str, size: float) -> tuple[float, float]:
    """Width and height that a text takes at most, in points, by the font's own measures."""
    lines = text.split("\n")
    measure, font = TextToPath(), FontProperties(family=FONT, size=size)
    width = max(measure.get_text_width_height_descent(line, font, ismath=False)[0] for line in lines)
    return _HINTING * width, _LINE * size * len(lines)


def fit_tick_labels(ax: Axes, x: Sequence[str] = (), y: Sequence[str] = ()) -> None:
    """Label the ticks 0, 1, 2, ... of the axes so that no two labels overlap, measured as they will be drawn.

    Labels along x lie flat if they fit, else slant, else stand upright; where even that is too tight, and along y, only
    every second, third, ... is shown.
    """
    if y:
        _label_ticks(ax, ax.yaxis, y, 0, 1)  # takes its room, before x is measured
    if x:
        _fit(ax, ax.xaxis, x, (0, 45, 90))
    if y:
        _fit(ax, ax.yaxis, y, (0,))


def _fit(ax: Axes, axis: Axis, labels: Sequence[str], rotations: Sequence[int]) -> None:
    crowding = math.inf
    for rotation in rotations:
        crowding = _label_ticks(ax, axis, labels, rotation, 1)
        if crowding <= 1:
            return
    step = 1
    while crowding > 1 and step < len(labels):
        step = min(max(step + 1, math.ceil(step * crowding)), len(labels))
        crowding = _label_ticks(ax, axis, labels, rotations[-1], step)


def _label_ticks(ax: Axes, axis: Axis, labels: Sequence[str], rotation: int, step: int) -> float:
    """Show every ``step``-th label, and return the room that neighbours need over the room they have, at worst."""
    along_x = axis is ax.xaxis
    anchor: dict[str, Any] = {
        "ha": "center" if along_x and rotation != 45 else "right",
        "rotation_mode": "anchor" if rotation == 45 else "default",
    }
    places = range(0, len(labels), step)
    axis.set_ticks(places, [labels[place] for place in places], rotation=rotation, parse_math=False, **anchor)
    figure = figure_of(ax)
    figure.draw_without_rendering()
    ends = ax.transData.transform([(place, place) for place in places])[:, 0 if along_x else 1]
    if len(ends) < 2:
        return 0.0
    gaps = np.abs(np.diff(ends))
    if rotation == 45:
        # Slanting lines of text stay apart if they do across their direction; how long they are does not matter.
        line = _LINE * float(axis.get_ticklabels()[0].get_fontsize()) * figure.dpi / 72
        needs = np.full(len(gaps), (line + _GAP) / math.sin(math.radians(45)))
    else:
        boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
        sizes = np.array([box.width if along_x else box.height for box in boxes])
        needs = (sizes[1:] + sizes[:-1]) / 2 + _GAP
    return float((needs / gaps.clip(min=1e-9)).max())


def _cut(text: str, width: int) -> str:
    """A line of at most ``width`` characters, ended after a word where that leaves half of it."""
    if len(text) <= width:
        return text
    words = text[: width - 1].rpartition(" ")[0].rstrip(" ,")
    return f"{words} …" if 2 * len(words) >= width else f"{text[: width - 1]}…"


@cache
def _visible(character: str) -> str:
    """The character, or its code if a reader could not see it."""
    seen = not unicodedata.category(character).startswith(("C", "Z")) or character == " "
    drawn = get_font(findfont(FONT)).get_char_index(ord(character)) != 0
    return character if seen and drawn else f"\\u{ord(character):04x}"
