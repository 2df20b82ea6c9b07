"""Labels of figures: readable forms of tokens and names, and tick labels that never overlap."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import TextToPath

from open_clt.transcoders.feature import Feature
from open_clt.visualization.style import figure_of

FONT = "DejaVu Sans"
"""Font of every figure; matplotlib ships it, so a figure looks the same on every machine."""

_MARKS = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "·"}
_WITHOUT_INK = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10)}
"""Letters, marks and symbols that have no ink, such as fillers and selectors of variants."""
_SPECIAL = {"<|endoftext|>": "<eot>"}
_LINE = 1.2
"""Distance between two lines of text, as a multiple of the font size."""
_HINTING = 1.12
"""Factor by which a text may become wider than measured, when its letters are fitted to pixels."""
_GAP = 2.0
"""Free pixels between two labels."""


def token_label(text: str, max_chars: int = 14, *, any_font: bool = False) -> str:
    """Return a readable form of a token for a figure, at most ``max_chars`` characters long.

    Spaces at its ends become ``·`` and line breaks become ``⏎``. Invisible characters become their code, such as
    ``\\u200b``, and so do characters that the font lacks, unless the reader's program has ``any_font``.
    """
    visible = _visible if any_font else _in_font
    text = _SPECIAL.get(text, text)
    inner = text.strip(" ")
    leading = len(text) - len(text.lstrip(" "))
    marked = "·" * leading + inner + "·" * (len(text) - len(inner) - leading)
    shown = "".join(_MARKS.get(character, visible(character)) for character in marked)
    return shown if len(shown) <= max_chars else shown[: max_chars - 1] + "…"


def readable(text: str, *, any_font: bool = False) -> str:
    """Return a text on one line, in which invisible characters become their codes.

    So do characters that the font lacks, unless the reader's program has ``any_font``.
    """
    for special, short in _SPECIAL.items():
        text = text.replace(special, short)
    return "".join(map(_visible if any_font else _in_font, " ".join(text.split())))


def feature_name(feature: Feature, labels: Mapping[Feature, str] | None = None, max_chars: int = 48) -> str:
    """Return the name of a feature for an axis: ``L2/417``, followed by its label, if there is one, cut to fit."""
    label = readable((labels or {}).get(feature, ""), any_font=True)
    return _cut(f"{feature} {label}".rstrip(), max_chars)


def wrapped(text: str, width: int = 16, lines: int = 2) -> str:
    """Break a name into at most ``lines`` lines of ``width`` characters; an ellipsis replaces the rest.

    A name with an arrow, such as ``the, a → cat``, is broken at the arrow if it is too long for one line.
    """
    shown = readable(text)
    before, arrow, after = shown.partition(" → ")
    if arrow and lines > 1 and len(shown) > width:
        return f"{_cut(before, width)}\n{_cut(f'→ {after}', width)}"
    return "\n".join(textwrap.wrap(shown, width, max_lines=lines, placeholder="…"))


@lru_cache(2**14)
def text_size(text: str, size: float) -> tuple[float, float]:
    """Return the largest width and height that a text can take when it is drawn, in points."""
    lines = text.split("\n")
    measure, font = TextToPath(), FontProperties(family=FONT, size=size)
    known = ("".join(map(_measured, line)) for line in lines)
    width = max(measure.get_text_width_height_descent(line, font, ismath=False)[0] for line in known)
    return _HINTING * width, _LINE * size * len(lines)


def fit_tick_labels(ax: Axes, x: Sequence[str] = (), y: Sequence[str] = ()) -> None:
    """Label the ticks 0, 1, 2, ... of the axes so that no two labels overlap when they are drawn.

    Labels along x are horizontal if they fit, otherwise slanted, otherwise upright. Where upright labels along x, or
    labels along y, do not fit either, only every second or third label (and so on) is shown.
    """
    if y:
        _label_ticks(ax, ax.yaxis, y, 0, 1)  # labels along y narrow the axes, so they come before x is measured
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
    """Show every ``step``-th label; return the largest ratio of the room that neighbours need to the room they have."""
    along_x = axis is ax.xaxis
    anchor: dict[str, Any] = {
        "ha": "center" if along_x and rotation != 45 else "right",
        "rotation_mode": "anchor" if rotation == 45 else "default",
    }
    ticks = range(0, len(labels), step)
    axis.set_ticks(ticks, [labels[tick] for tick in ticks], rotation=rotation, parse_math=False, **anchor)
    figure = figure_of(ax)
    figure.draw_without_rendering()
    pixels = ax.transData.transform([(tick, tick) for tick in ticks])[:, 0 if along_x else 1]
    if len(pixels) < 2:
        return 0.0
    gaps = np.abs(np.diff(pixels))
    if rotation == 45:
        # Slanted labels overlap only if their lines are too close to each other; their lengths do not matter.
        line = _LINE * float(axis.get_ticklabels()[0].get_fontsize()) * figure.dpi / 72
        needs = np.full(len(gaps), (line + _GAP) / math.sin(math.radians(45)))
    else:
        boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
        sizes = np.array([box.width if along_x else box.height for box in boxes])
        needs = (sizes[1:] + sizes[:-1]) / 2 + _GAP
    return float((needs / gaps.clip(min=1e-9)).max())


def _cut(text: str, width: int) -> str:
    """Cut a text to ``width`` characters, after a whole word if that keeps at least half of the width."""
    if len(text) <= width:
        return text
    words = text[: width - 1].rpartition(" ")[0].rstrip(" ,")
    return f"{words} …" if 2 * len(words) >= width else f"{text[: width - 1]}…"


@cache
def _measured(character: str) -> str:
    """Return the character, or one that is at least as wide as most if the font lacks it."""
    return character if _in_font(character) == character else "W"


@cache
def _in_font(character: str) -> str:
    """Return the character, or its code if it is invisible or not in the font."""
    in_font = get_font(findfont(FONT)).get_char_index(ord(character)) != 0
    return _visible(character) if in_font else _code(character)


@cache
def _visible(character: str) -> str:
    """Return the character, or its code if it is invisible."""
    seen = not unicodedata.category(character).startswith(("C", "Z")) and ord(character) not in _WITHOUT_INK
    return character if seen or character == " " else _code(character)


def _code(character: str) -> str:
    return f"\\u{ord(character):04x}"
