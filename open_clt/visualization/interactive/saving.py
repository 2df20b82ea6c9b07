"""Files of interactive figures: a page that opens without a network, or a picture that Chrome draws.

A page holds the figure and the whole of plotly's program, 4.8 MB. A picture needs the package kaleido and Chrome; our
own figures of the same name (``visualize_...``) need neither.
"""

from __future__ import annotations

import hashlib
import html
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import plotly.graph_objects as go
from matplotlib.figure import Figure

from open_clt.config.arguments import checked_arguments
from open_clt.errors import ConfigError
from open_clt.files import check_file, write_bytes
from open_clt.visualization.interactive.notebook_plot import CONFIG, NotebookPlot
from open_clt.visualization.interactive.text import BREAK
from open_clt.visualization.page import page, write_page

_PICTURES = (".png", ".svg", ".pdf")
_PATIENCE = 120.0
"""Seconds after which Chrome is stopped, because it hangs."""
_PIXELS = 2
"""Number of pixels of a picture per pixel of the figure."""
_EXPORT = f"""
import sys
from plotly import io
figure = io.from_json(sys.stdin.read())
try:
    picture = io.to_image(figure, format=sys.argv[1], scale={_PIXELS})
except (RuntimeError, ValueError, OSError) as error:
    sys.exit(" ".join(str(error).split()))
sys.stdout.buffer.write(picture)
"""
"""Program of the process that draws a picture; if it fails, its last line says why."""
_ANY = "visualize_..."


@checked_arguments
def save_interactive(figure: go.Figure, path: str | Path) -> Path:
    """Write an interactive figure to a file, whole or not at all, and return its path.

    A path that ends in .html becomes a page of its own, which opens without a network; the same figure gives the same
    page. A path that ends in .png, .svg or .pdf becomes a picture. Raises ConfigError for another suffix, and if the
    package kaleido or Chrome, which draw the picture, cannot be used.
    """
    path = Path(path)
    check_interactive_path(path, static_of(figure))
    if path.suffix.lower() == ".html":
        return write_page(path, page_of(figure))
    return write_bytes(path, _picture(figure, path))


def finished(figure: NotebookPlot, save_path: str | Path | None, draw: Callable[[], Figure]) -> go.Figure:
    """Return the figure, after writing it to a file if a path is given; ``draw`` draws the static one of a notebook."""
    if save_path is not None:
        save_interactive(figure, save_path)
    return figure.with_picture(draw)


def check_interactive_path(path: str | Path | None, static: str) -> None:
    """Raise ConfigError if an interactive figure cannot be saved there; None is accepted.

    ``static`` is the function that draws the same figure with matplotlib.
    """
    if path is None:
        return
    suffix = Path(path).suffix.lower()
    if suffix not in (".html", *_PICTURES):
        legal = ", ".join((".html", *_PICTURES))
        raise ConfigError(f"{str(path)!r} does not end in a format of interactive figures; use one of {legal}.")
    if suffix in _PICTURES and find_spec("kaleido") is None:
        raise ConfigError(f"{str(path)!r} needs the package kaleido, which is not installed; {_instead(static)}.")
    check_file(Path(path))


def page_of(figure: go.Figure) -> str:
    """Return a whole page of HTML that shows a figure, with plotly's program in it."""
    name = "figure-" + hashlib.sha256(_json(figure)).hexdigest()[:12]
    body = figure.to_html(config=CONFIG, include_plotlyjs=True, full_html=False, div_id=name)
    title = html.unescape((cast(Any, figure).layout.title.text or "").replace(BREAK, " "))
    return page(title, body, styles=[], scripts=[])


def page_of_all(figures: Sequence[go.Figure], title: str) -> str:
    """Return a whole page of HTML that shows several figures below each other, with plotly's program in it once."""
    parts: list[str] = []
    for number, figure in enumerate(figures):
        name = f"figure-{number}-{hashlib.sha256(_json(figure)).hexdigest()[:12]}"
        parts.append(figure.to_html(config=CONFIG, include_plotlyjs=number == 0, full_html=False, div_id=name))
    return page(title, "\n".join(parts), styles=[], scripts=[])


def static_of(figure: go.Figure) -> str:
    """Return the name of the function that draws the same figure with matplotlib."""
    meta = cast(Any, figure).layout.meta
    return str(cast(dict[str, Any], meta).get("static", _ANY)) if isinstance(meta, dict) else _ANY


def _json(figure: go.Figure) -> bytes:
    return cast(str, figure.to_json()).encode()


def _instead(static: str) -> str:
    return f"save the figure as .html, or draw it with {static}, which saves pictures without Chrome"


def _picture(figure: go.Figure, path: Path) -> bytes:
    """Return the picture that Chrome draws, in a process of its own, which is ended with Chrome if Chrome hangs."""
    command = [sys.executable, "-P", "-c", _EXPORT, path.suffix.lower().removeprefix(".")]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    try:
        picture, complaint = process.communicate(_json(figure), timeout=_PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"Chrome has not drawn {str(path)!r} within {_PATIENCE:.0f} seconds; {_instead(static_of(figure))}."
        ) from error
    finally:
        _end(process)
    if process.returncode != 0 or not picture:
        lines = [line.strip() for line in complaint.decode(errors="replace").splitlines() if line.strip()]
        reason = "Chrome cannot be used" if not lines else f"Chrome cannot be used ({_first_sentence(lines[-1])})"
        raise ConfigError(f"{str(path)!r} cannot be drawn: {reason}; {_instead(static_of(figure))}.")
    return picture


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".")[:100]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and the programs that it started, if it still runs."""
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()
