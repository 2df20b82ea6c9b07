"""Figures in notebooks: a figure that a cell returns is shown as a picture."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

import open_clt.visualization
from open_clt.visualization.figures import visualize_layer_activity


def test_a_notebook_shows_a_figure_as_a_picture_of_its_size() -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    settings = dict(mpl.rcParams)
    figure = visualize_layer_activity(np.eye(3), ["The", " capital", " of"])
    shown, metadata = formatters.DisplayFormatter().format(figure)
    width, height = struct.unpack(">II", shown["image/png"][16:24])  # the header of a PNG file
    size = metadata["image/png"]
    assert (size["width"], size["height"]) == tuple(round(96 * inches) for inches in figure.get_size_inches())
    assert (width, height) == pytest.approx((1.5 * size["width"], 1.5 * size["height"]), abs=2)
    assert dict(mpl.rcParams) == settings


def test_every_figure_of_the_package_is_shown_as_a_picture() -> None:
    modules = list(Path(open_clt.visualization.__path__[0]).rglob("*.py"))
    assert len(modules) > 5
    made = {path.name for path in modules if re.search(r"\b(Figure|plt\.figure|subplots)\(figsize", path.read_text())}
    assert made == set()
