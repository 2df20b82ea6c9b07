"""Text in interactive figures: the one form in which plotly shows every character of a text as it is.

Plotly reads a part of HTML in titles, labels and hover texts (``<b>``, ``<a href>``, ``<br>``, entities), formulas
between dollar signs, and references such as ``%{meta}``. A text from a prompt, a token, a label or a name may hold any
of them, so it goes through one of these functions before it enters a figure.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable

from open_clt.visualization.labels import readable, token_label
from open_clt.visualization.titles import fitted

_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "{": "&#123;"})
_FROM_RIGHT = ("R", "AL")
"""Classes of letters that are written from right to left."""
_ISOLATE, _END = "\u2068", "\u2069"
"""Marks around a text that keep the direction of its letters from the text around it."""
BREAK = "<br>"
"""The line break of plotly."""


def token_text(token: str, max_chars: int = 40) -> str:
    """Return a token for a figure: its outer spaces, line breaks and invisible characters can be seen."""
    return _escaped(token_label(token, max_chars, any_font=True))


def plain_text(text: str, max_chars: int = 200) -> str:
    """Return a text on one line for a figure; invisible characters become their codes, and a long text is cut."""
    shown = readable(text, any_font=True)
    return _escaped(shown if len(shown) <= max_chars else f"{shown[: max_chars - 1]}…")


def wrapped_text(text: str, width: int = 60, max_lines: int = 4) -> str:
    """Return a text for a figure, in lines of at most ``width`` characters; an ellipsis replaces what does not fit."""
    lines = textwrap.wrap(readable(text, any_font=True), width, max_lines=max_lines, placeholder=" …")
    return BREAK.join(map(_escaped, lines))


def lines_text(text: str) -> str:
    """Return a text whose lines were broken and made readable before, for a figure."""
    return BREAK.join(_escaped(readable(line, any_font=True)) for line in text.split("\n"))


def title_text(title: str, width: float, font: float) -> str:
    """Return a title for a figure, in lines of at most ``width`` pixels."""
    return lines_text(fitted(title, width, font, any_font=True))


def tokens_text(tokens: Iterable[str]) -> str:
    """Return several tokens for a figure, on one line."""
    return "  ".join(token_text(token, 20) for token in tokens)


def _escaped(text: str) -> str:
    """Write what plotly would read as markup in entities; isolate letters that are written from right to left."""
    written = text.translate(_ENTITIES)
    from_right = any(unicodedata.bidirectional(character) in _FROM_RIGHT for character in text)
    return f"{_ISOLATE}{written}{_END}" if from_right else written
