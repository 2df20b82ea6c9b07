"""A check for overlapping texts in a figure, by the obvious double loop over all texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text


def corners(text: Text) -> np.ndarray:
    """The four corners of a text as it is drawn, with its rotation, in pixels."""
    rotation = text.get_rotation()
    extent = text.get_window_extent()
    if rotation not in (0.0, 90.0):
        # The extent of a slanted text is larger than the text, so its flat box is measured and then rotated.
        text.set_rotation(0)
        box = text.get_window_extent()
        text.set_rotation(rotation)
        anchor = np.array(text.get_transform().transform(text.get_position()))
        angle = np.deg2rad(rotation)
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        flat = np.array([[box.x0, box.y0], [box.x1, box.y0], [box.x1, box.y1], [box.x0, box.y1]])
        return anchor + (flat - anchor) @ matrix.T
    return np.array([[extent.x0, extent.y0], [extent.x1, extent.y0], [extent.x1, extent.y1], [extent.x0, extent.y1]])


def overlap(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two convex polygons share any area, which is so if no edge of either separates them."""
    for polygon in (first, second):
        for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            normal = np.array([start[1] - end[1], end[0] - start[0]])
            projection, other_projection = first @ normal, second @ normal
            if projection.max() <= other_projection.min() + 1e-6 or other_projection.max() <= projection.min() + 1e-6:
                return False
    return True


def overlapping(figure: Figure, texts: Sequence[Text]) -> list[tuple[str, str]]:
    """Pairs of texts that overlap."""
    figure.draw_without_rendering()
    shapes = [(text.get_text(), corners(text)) for text in texts if text.get_text().strip() and text.get_visible()]
    return [(a, b) for (a, corners_a), (b, corners_b) in combinations(shapes, 2) if overlap(corners_a, corners_b)]
