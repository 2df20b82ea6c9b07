"""Titles of figures: what a picture shows and of what, in lines that fit the picture.

A new figure has a title: that of the user, or one that says what is shown, on which prompt or text, and of which model,
as far as the figure knows them. An empty title leaves it out. Axes that a user gives have the user's title only. In a
new figure, the title uses the whole width of the picture; in given axes, it uses their width.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from open_clt.visualization.labels import readable, text_size
from open_clt.visualization.style import BLUE, NotebookFigure, figure_of, save, styled

TITLE_FONT = 9.5
"""Font size of titles, in points."""
_BESIDE_FONT = 8.0
"""Font size of the note to the right of a title, in points."""
_MOST_LINES = 3
"""Largest number of lines of a title."""
_LONGEST_PROMPT, _LONGEST_NAME = 90, 40
"""Largest numbers of characters of a prompt and of a model's name in a title."""
_GAP = 10.0
"""Distance between a title and the note to its right, in points."""


def title_of(what: str, *, prompt: str = "", text: str = "", model: str = "", link: str = "on") -> str:
    """Return a title such as ``Most active features on “The capital of France is” (embedded)``.

    ``prompt`` is shown in quotes; ``text`` is the description of a text, such as ``16,384 tokens``. Long parts are cut.
    ``link`` is the word before the prompt or the text.
    """
    shown_text = (
        f"“{_cut(readable(prompt, any_font=True), _LONGEST_PROMPT)}”" if prompt else readable(text, any_font=True)
    )
    on = f" {link} {shown_text}" if shown_text else ""
    name = readable(Path(model).name if Path(model).is_absolute() else model, any_font=True)
    shown = name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"
    return what + on + (f" ({shown})" if model else "")


def fitted(
    title: str, width: float, font: float = TITLE_FONT, *, lines: int = _MOST_LINES, any_font: bool = False
) -> str:
    """Break a title into at most ``lines`` lines that are at most ``width`` points wide; an ellipsis ends a cut one."""
    broken = [""]
    for word in readable(title, any_font=any_font).split():
        longer = f"{broken[-1]} {word}".lstrip()
        if text_size(longer, font)[0] <= width or not broken[-1]:
            broken[-1] = longer
        else:
            broken.append(word)
    if len(broken) > lines:
        broken = [*broken[: lines - 1], f"{broken[lines - 1]} …"]
    return "\n".join(_narrowed(line, width, font) for line in broken)


class Titles(NamedTuple):
    """The texts above a picture."""

    given: str | None
    """Title that the user gives; None if the user gives none."""
    default: str
    """Title of a new figure for which the user gives none."""
    beside: str = ""
    """Short note to the right of the title."""


@contextmanager
def drawing(
    ax: Axes | None, size: tuple[float, float], save_path: str | Path | None, titles: Titles
) -> Generator[Axes]:
    """Yield ``ax``, or the axes of a new figure of ``size`` inches, with a title and a note; then save the figure."""
    title, beside = titles.given if ax is not None or titles.given is not None else titles.default, titles.beside
    with styled(save_path):
        if ax is None:
            ax = NotebookFigure(figsize=size, layout="constrained").add_subplot()
            title_figure(figure_of(ax), title or "")
        elif title:
            ax.set_title(_above(ax, title, beside), parse_math=False)
        if beside:
            ax.set_title(beside, loc="right", fontsize=_BESIDE_FONT)
        yield ax
        save(figure_of(ax), save_path)


def title_figure(figure: Figure, title: str) -> None:
    """Write a title above the panels of a figure, from its left border on."""
    if title:
        width = 0.97 * 72 * float(figure.get_size_inches()[0])
        figure.suptitle(fitted(title, width), ha="left", x=0.01, fontsize=TITLE_FONT, parse_math=False)


def panel_title(ax: Axes, title: str, beside: str = "") -> None:
    """Write the name of a panel, and on its right a number that sums it up."""
    ax.set_title(title)
    if beside:
        ax.set_title(beside, loc="right", color=BLUE)


def _above(ax: Axes, title: str, beside: str) -> str:
    """Break a title so that it fits above its axes, beside the note or, if it has several lines, above it."""
    width = ax.get_window_extent().width / figure_of(ax).dpi * 72
    note = text_size(beside, _BESIDE_FONT)[0] + _GAP if beside else 0.0
    if text_size(readable(title), TITLE_FONT)[0] <= width - note:
        return readable(title)
    return fitted(title, width) + ("\n" if beside else "")


def _narrowed(line: str, width: float, font: float) -> str:
    """Cut a line that is too wide, such as one long word."""
    shown = line
    while text_size(shown, font)[0] > width and len(shown) > 2:
        shown = f"{shown[:-2]}…"
    return shown


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"
