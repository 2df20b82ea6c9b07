"""Whether texts of a figure lie on one another, by the obvious double loop over what was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text


def corners(text: Text) -> np.ndarray:
    """The four corners of a text as drawn, turned as it is turned; pixels."""
    rotation = text.get_rotation()
    upright = text.get_window_extent()
    if rotation not in (0.0, 90.0):
        # A turned text is measured flat, at its anchor, and turned by hand.
        text.set_rotation(0)
        box = text.get_window_extent()
        text.set_rotation(rotation)
        anchor = np.array(text.get_transform().transform(text.get_position()))
        turn = np.deg2rad(rotation)
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        flat = np.array([[box.x0, box.y0], [box.x1, box.y0], [box.x1, box.y1], [box.x0, box.y1]])
        return anchor + (flat - anchor) @ matrix.T
    return np.array(
        [[upright.x0, upright.y0], [upright.x1, upright.y0], [upright.x1, upright.y1], [upright.x0, upright.y1]]
    )


def overlap(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two convex polygons share any area: no edge of either separates them."""
    for polygon in (one, other):
        for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            normal = np.array([start[1] - end[1], end[0] - start[0]])
            first, second = one @ normal, other @ normal
            if first.max() <= second.min() + 1e-6 or second.max() <= first.min() + 1e-6:
                return False
    return True


def overlapping(figure: Figure, texts: Sequence[Text]) -> list[tuple[str, str]]:
    """Pairs of texts that lie on one another."""
    figure.draw_without_rendering()
    shapes = [(text.get_text(), corners(text)) for text in texts if text.get_text().strip() and text.get_visible()]
    return [(a, b) for (a, one), (b, other) in combinations(shapes, 2) if overlap(one, other)]
