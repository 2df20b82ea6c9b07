"""The parts of a view: tables, facts, shaded tokens, bars and pictures, as HTML in which every text is escaped.

A part takes plain texts and numbers, which it escapes, or ``Markup``, which is HTML already. Styles stand beside the
elements, because a notebook may show several views in any order. Colours of texts are those of the notebook.
"""

from __future__ import annotations

import html
import math
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import final

from open_clt.visualization.labels import token_label
from open_clt.visualization.style import NotebookFigure

_POSITIVE, _NEGATIVE = "0,114,178", "213,94,0"
"""Red, green and blue of the colours for positive and for negative activations, as in figures."""
_LONGEST = 2000
"""Largest number of characters of a text."""
_WIDEST = 760
"""Largest width of a picture, in pixels of the page."""
_SHARPNESS = 100
"""Dots per inch of a picture: enough for letters, and small."""
_CELL = "text-align:left;vertical-align:baseline;font-size:inherit;padding:2px 10px 2px 0;background:none"
_QUIET = "opacity:0.65;font-weight:normal"


@final
class Markup(str):
    """HTML, which is not escaped again."""

    __slots__ = ()


def escaped(value: object) -> Markup:
    """Return a text or a number as HTML; None and NaN become a dash, and long texts are cut."""
    if isinstance(value, Markup):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Markup("–")
    if isinstance(value, float):
        return Markup(html.escape(f"{value:.4g}"))
    if isinstance(value, int) and not isinstance(value, bool):
        return Markup(f"{value:,}")
    text = str(value)
    return Markup(html.escape(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"))


def joined(parts: Iterable[object], separator: str = "") -> Markup:
    """Return parts one after the other."""
    return Markup(separator.join(map(escaped, parts)))


def card(title: object, *parts: object, note: object = "") -> str:
    """Return a whole view: a title, a quiet note beside it, and parts below each other."""
    head = f"<b>{escaped(title)}</b>" + (f' <span style="{_QUIET}">{escaped(note)}</span>' if note else "")
    blocks = "".join(f"<div>{escaped(part)}</div>" for part in parts if part)
    return f'<div style="line-height:1.5;max-width:{_WIDEST}px">{head}{blocks}</div>'


def facts(rows: Iterable[tuple[str, object]]) -> Markup:
    """Return a table of names and values; rows without a value are left out."""
    cells = [
        f'<tr style="background:none"><td style="{_CELL};{_QUIET};white-space:nowrap">{escaped(name)}</td>'
        f'<td style="{_CELL}">{escaped(value)}</td></tr>'
        for name, value in rows
        if value is not None and value != ""
    ]
    return Markup(f'<table style="border-collapse:collapse;border:none;margin:4px 0">{"".join(cells)}</table>')


def table(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """Return a table with a line of heads."""
    first = "".join(f'<th style="{_CELL};{_QUIET}">{escaped(head)}</th>' for head in heads)
    lines = [f'<tr style="background:none">{"".join(_cell(cell) for cell in row)}</tr>' for row in rows]
    style = "border-collapse:collapse;border:none;margin:4px 0"
    return Markup(
        f'<table style="{style}"><thead><tr style="background:none">{first}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def token(text: str, *, share: float = 0.0, hint: str = "", strong: bool = False) -> Markup:
    """Return a token, shaded by a share from -1 to 1; ``hint`` appears when the mouse is over it."""
    colour = _POSITIVE if share >= 0 else _NEGATIVE
    style = "border-radius:2px;white-space:pre-wrap;font-family:monospace;font-size:90%"
    if abs(share) > 0:
        style += f";background:rgba({colour},{0.08 + 0.52 * min(abs(share), 1.0):.2f})"
    if strong:
        style += ";font-weight:bold"
    visible = text.replace("\n", "⏎\n").replace("\t", "⇥")
    return Markup(f'<span style="{style}" title="{html.escape(hint)}">{escaped(visible)}</span>')


def shaded(tokens: Sequence[str], activations: Sequence[float], largest: float, peak: int | None = None) -> Markup:
    """Return tokens that are shaded by their activations, relative to the largest."""
    scale = max(abs(largest), 1e-30)
    return joined(
        token(text, share=value / scale, hint=f"{value:.3g}" if value else "", strong=position == peak)
        for position, (text, value) in enumerate(zip(tokens, activations, strict=True))
    )


def bar(share: float, text: str = "") -> Markup:
    """Return a bar whose length is a share from -1 to 1, followed by a text."""
    width, colour = 90 * min(abs(share), 1.0), _POSITIVE if share >= 0 else _NEGATIVE
    box = f"display:inline-block;height:0.7em;width:{width:.0f}px;background:rgba({colour},0.75);margin-right:6px"
    return Markup(f'<span style="{box}"></span>{escaped(text)}')


def histogram(counts: Sequence[float], low: float, high: float) -> Markup:
    """Return a small histogram with the values of its ends."""
    highest = max([*counts, 1e-30])
    bars = "".join(
        f'<span title="{count:g}" style="display:inline-block;width:5px;margin-right:1px;'
        f'height:{34 * count / highest:.1f}px;background:rgba({_POSITIVE},0.75)"></span>'
        for count in counts
    )
    ends = f'<span style="{_QUIET}">{escaped(low)} to {escaped(high)}</span>'
    return Markup(f'<div style="height:36px;white-space:nowrap">{bars}</div>{ends}')


def names(tokens: Iterable[str]) -> Markup:
    """Return some tokens as a list in one line."""
    return joined((token(token_label(text, 24)) for text in tokens), "&ensp;")


def folded(summary: str, content: object) -> Markup:
    """Return content that a click on its summary opens."""
    head = f'<summary style="cursor:pointer;{_QUIET}">{escaped(summary)}</summary>'
    return Markup(f"<details>{head}{escaped(content)}</details>")


def picture(figure: object, description: str) -> Markup:
    """Return a figure of this package as a picture within the page."""
    assert isinstance(figure, NotebookFigure), "views draw new figures"
    data, width = b64encode(figure.png(_SHARPNESS)).decode(), min(figure.shown_size()[0], _WIDEST)
    style = f"width:{width}px;max-width:100%;background:white"
    return Markup(f'<img alt="{html.escape(description)}" style="{style}" src="data:image/png;base64,{data}">')


def percent(share: float | None) -> str:
    """Return a share as a percentage."""
    return "–" if share is None or math.isnan(share) else f"{share:.3g}" if share > 10 else f"{share:.1%}"


def quiet(text: object) -> Markup:
    """Return a text in the colour of notes."""
    return Markup(f'<span style="{_QUIET}">{escaped(text)}</span>')


def _cell(value: object) -> str:
    return f'<td style="{_CELL}">{escaped(value)}</td>'
