"""Where everything in the picture of an attribution graph goes, in points, without drawing any of it.

Columns are token positions and rows are layers, upwards; tokens stand below, outputs on top. The nodes of one position
and layer share a cell, side by side and, where the page is too narrow, in several lines. Every node's place is as wide
as its label, every column as wide as its widest line and every row as high as its highest cell, so no two labels meet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt

Size: TypeAlias = tuple[float, float]
"""Width and height, in points."""
Cell: TypeAlias = tuple[int, float]
"""Position and row."""


class Box(NamedTuple):
    """A rectangle by its centre, in points."""

    x: float
    y: float
    width: float
    height: float


class Item(NamedTuple):
    """A node between tokens and outputs, as the layout sees it."""

    position: int
    row: float
    size: Size
    order: float
    """Nodes of a cell stand from left to right by this."""


class Output(NamedTuple):
    """A node above all rows, as the layout sees it."""

    position: int
    size: Size


@final
@dataclass(frozen=True, kw_only=True)
class Page:
    """Distances, and the size that a picture keeps to where it can; in points."""

    widest: float = 580.0
    """Cells are folded into lines to stay within this width."""
    wider: float = 1.35
    """How much wider it may become before cells are folded into more than ``deepest`` lines."""
    deepest: int = 3
    narrowest: float = 440.0
    """A graph that needs less is spread out to this width."""
    lowest: float = 270.0
    """A graph that needs less is spread out to this height."""
    gap: float = 6.0
    """Between two boxes of a line."""
    line: float = 4.0
    """Between two lines of a cell."""
    row: float = 11.0
    """Free above and below the nodes of a row, for edges."""
    empty_row: float = 14.0
    """Height of a row without nodes."""
    margin: float = 12.0
    """Between tokens and the first row, and between the last row and the outputs."""


@final
@dataclass(frozen=True)
class PlacedGraph:
    """The finished layout; its origin is the lower left corner."""

    width: float
    height: float
    items: tuple[Box, ...]
    outputs: tuple[Box, ...]
    tokens: tuple[Box, ...]
    rows: dict[float, tuple[float, float]]
    """Bottom and top of each row's band."""
    upright_tokens: bool
    """Whether tokens are written upwards, since columns are too narrow for them; their boxes are turned already."""


def place(
    items: Sequence[Item], tokens: Sequence[Size], outputs: Sequence[Output], rows: Sequence[float], page: Page
) -> PlacedGraph:
    """Lay out a graph: nodes in their cells, tokens below them, outputs above, ``rows`` from the lowest upwards."""
    cells: dict[Cell, list[int]] = defaultdict(list)
    for index in sorted(range(len(items)), key=lambda index: items[index].order):
        cells[items[index].position, items[index].row].append(index)
    needed = sum((output.size[0] + page.gap for output in outputs), 0.0)
    columns, lines, upright, _ = _columns(items, cells, tokens, needed, page)
    right = np.cumsum(columns)
    centres = right - columns / 2

    needs = [max((_height(lines[cell], items, page) for cell in cells if cell[1] == row), default=0.0) for row in rows]
    heights = [need + 2 * page.row if need else page.empty_row for need in needs]
    turned = [size[::-1] if upright else size for size in tokens]
    below = max((height for _, height in turned), default=0.0)
    above = max((output.size[1] for output in outputs), default=0.0)
    stretch = max(0.0, page.lowest - below - above - sum(heights)) / (len(rows) + 1)
    base = below + page.margin + stretch / 2
    edges = base + np.cumsum([0.0, *(height + stretch for height in heights)])
    bands = dict(zip(rows, pairwise(edges.tolist()), strict=True))
    ceiling = float(edges[-1]) + page.margin + stretch / 2

    placed: dict[int, Box] = {}
    for (position, row), folded in lines.items():
        placed |= _in_cell(folded, items, float(centres[position]), sum(bands[row]) / 2, page)
    return PlacedGraph(
        width=float(right[-1]),
        height=ceiling + above,
        items=tuple(placed[index] for index in range(len(items))),
        outputs=_on_top(outputs, centres, float(right[-1]), ceiling + above / 2, page.gap),
        tokens=tuple(Box(float(x), below - size[1] / 2, *size) for x, size in zip(centres, turned, strict=True)),
        rows=bands,
        upright_tokens=upright,
    )


class _Columns(NamedTuple):
    widths: npt.NDArray[np.float64]
    lines: dict[Cell, list[list[int]]]
    """The nodes of each cell, line by line."""
    upright: bool
    fits: bool


def _columns(
    items: Sequence[Item], cells: dict[Cell, list[int]], tokens: Sequence[Size], needed: float, page: Page
) -> _Columns:
    """Flat tokens on a page of normal width, if no cell becomes too deep; else upright ones; else a wider page."""
    candidates: list[_Columns] = []
    for widest, upright in product((page.widest, page.widest * page.wider), (False, True)):
        widths = _widths(items, cells, [size[1 if upright else 0] for size in tokens], widest, page.gap)
        fits = bool(widths.sum() <= widest)
        widths = widths * max(1.0, page.narrowest / widths.sum(), needed / widths.sum())
        lines = {cell: _folded(cells[cell], items, widths[cell[0]] - 2 * page.gap, page.gap) for cell in cells}
        fits = fits and max(map(len, lines.values()), default=0) <= page.deepest
        candidates.append(_Columns(widths, lines, upright, fits))
    return next((candidate for candidate in candidates if candidate.fits), candidates[-1])


def _widths(
    items: Sequence[Item], cells: dict[Cell, list[int]], tokens: Sequence[float], widest: float, gap: float
) -> npt.NDArray[np.float64]:
    """Columns as wide as their cells, the widest of them narrowed until all fit; never narrower than token or node."""
    natural, least = np.zeros(len(tokens)), np.array(tokens)
    for (position, _), members in cells.items():
        widths = [items[index].size[0] for index in members]
        natural[position] = max(natural[position], sum(widths) + gap * (len(widths) - 1))
        least[position] = max(least[position], *widths)
    natural, least = np.maximum(natural, least) + 2 * gap, least + 2 * gap
    # Columns wider than some common width are narrowed to it: to the largest at which the page holds them all.
    caps = np.linspace(natural.max(), least.min(), 200)
    fitting = (cap for cap in caps if np.maximum(least, np.minimum(natural, cap)).sum() <= widest)
    return np.maximum(least, np.minimum(natural, next(fitting, caps[-1])))


def _folded(members: Sequence[int], items: Sequence[Item], width: float, gap: float) -> list[list[int]]:
    """The nodes of a cell in the fewest equally full lines that keep to ``width``."""
    for count in range(1, len(members) + 1):
        full = -(-len(members) // count)
        lines = [list(members[start : start + full]) for start in range(0, len(members), full)]
        if max(_length(line, items, gap) for line in lines) <= width + 1e-6:
            return lines
    return [[index] for index in members]


def _length(line: Sequence[int], items: Sequence[Item], gap: float) -> float:
    return sum(items[index].size[0] for index in line) + gap * (len(line) - 1)


def _height(lines: Sequence[Sequence[int]], items: Sequence[Item], page: Page) -> float:
    return sum(max(items[index].size[1] for index in line) + page.line for line in lines) - page.line


def _in_cell(lines: Sequence[Sequence[int]], items: Sequence[Item], x: float, y: float, page: Page) -> dict[int, Box]:
    """The lines of a cell one below the other, centred at a point."""
    placed: dict[int, Box] = {}
    top = y + _height(lines, items, page) / 2
    for line in lines:
        height = max(items[index].size[1] for index in line)
        left = x - _length(line, items, page.gap) / 2
        for index in line:
            width = items[index].size[0]
            placed[index] = Box(left + width / 2, top - height / 2, width, items[index].size[1])
            left += width + page.gap
        top -= height + page.line
    return placed


def _on_top(
    outputs: Sequence[Output], centres: npt.NDArray[np.float64], width: float, y: float, gap: float
) -> tuple[Box, ...]:
    """Outputs in one line, those of one position side by side over its column or as near to it as there is room."""
    blocks: dict[int, list[int]] = defaultdict(list)
    for index, output in enumerate(outputs):
        blocks[output.position].append(index)
    lengths = {position: sum(outputs[index].size[0] + gap for index in blocks[position]) for position in blocks}
    lefts: dict[int, float] = {}
    free = 0.0
    for position in sorted(blocks):
        lefts[position] = max(free, centres[position] - lengths[position] / 2)
        free = lefts[position] + lengths[position]
    free = width + gap / 2
    for position in sorted(blocks, reverse=True):
        lefts[position] = free = min(lefts[position], free - lengths[position])
    placed: dict[int, Box] = {}
    for position, members in blocks.items():
        left = lefts[position] + gap / 2
        for index in members:
            placed[index] = Box(left + outputs[index].size[0] / 2, y, *outputs[index].size)
            left += outputs[index].size[0] + gap
    return tuple(placed[index] for index in range(len(outputs)))
