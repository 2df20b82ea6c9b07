"""The layout of an attribution graph: the place of every node, token and output in the picture, in points.

Columns are token positions. Rows are layers, the first at the bottom; tokens stand below them and outputs above them.
The nodes of one position and one layer share a cell, where they stand side by side or, if the page is too narrow, in
several lines. A node's box includes its label; a column is as wide as its widest line and a row as high as its highest
cell, so labels do not overlap. The layout tries several widths and takes the one that has to be shrunk least to fit on
a page.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt

from open_clt.short_repr import short_repr

Size: TypeAlias = tuple[float, float]
"""A width and a height, in points."""
Cell: TypeAlias = tuple[int, float]
"""A position and a row."""


class Box(NamedTuple):
    """A rectangle, given by its centre and its size in points."""

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
    """Sort key by which the nodes of a cell stand from left to right."""


class Output(NamedTuple):
    """A node above all rows, as the layout sees it."""

    position: int
    size: Size


@final
@dataclass(frozen=True, kw_only=True)
class Page:
    """Distances within a picture, and limits on its size, in points."""

    widest: float = 470.0
    """Width of a printed page between its margins; cells are folded into lines to keep the picture within it."""
    tallest: float = 480.0
    """Height that a page leaves to nodes and tokens; a higher picture is shrunk."""
    wider: float = 1.7
    """Factor by which a picture may be wider than the page, where a narrower one would be too high."""
    narrowest: float = 440.0
    """Smallest width; a narrower graph is spread out to it."""
    lowest: float = 270.0
    """Smallest height; a lower graph is spread out to it."""
    gap: float = 5.0
    """Distance between two boxes of a line."""
    line: float = 3.0
    """Distance between two lines of a cell."""
    row: float = 8.0
    """Free space above and below the nodes of a row, for edges."""
    empty_row: float = 14.0
    """Height of a row without nodes."""
    margin: float = 12.0
    """Distance between the tokens and the first row, and between the last row and the outputs."""


@final
@dataclass(frozen=True)
class PlacedGraph:
    """A finished layout; its origin is the lower left corner."""

    width: float
    height: float
    items: tuple[Box, ...]
    outputs: tuple[Box, ...]
    tokens: tuple[Box, ...]
    rows: dict[float, tuple[float, float]]
    """Bottom and top of each row's band."""
    upright_tokens: bool
    """Whether tokens are written upwards because columns are narrow; if so, the boxes of tokens are turned too."""

    __repr__ = short_repr


def place(
    items: Sequence[Item], tokens: Sequence[Size], outputs: Sequence[Output], rows: Sequence[float], page: Page
) -> PlacedGraph:
    """Lay out a graph with the given ``rows``, the lowest first: nodes in cells, tokens below, outputs above."""
    cells: dict[Cell, list[int]] = defaultdict(list)
    for index in sorted(range(len(items)), key=lambda index: items[index].order):
        cells[items[index].position, items[index].row].append(index)
    outputs_width = sum((output.size[0] + page.gap for output in outputs), 0.0)
    columns, lines, upright, _ = _columns(items, cells, tokens, outputs_width, page)
    right_edges = np.cumsum(columns)
    centres = right_edges - columns / 2

    heights = list(_row_heights(lines, items, rows, page).values())
    token_sizes = [size[::-1] if upright else size for size in tokens]
    tokens_height = max((height for _, height in token_sizes), default=0.0)
    outputs_height = max((output.size[1] for output in outputs), default=0.0)
    stretch = max(0.0, page.lowest - tokens_height - outputs_height - sum(heights)) / (len(rows) + 1)
    base = tokens_height + page.margin + stretch / 2
    edges = base + np.cumsum([0.0, *(height + stretch for height in heights)])
    bands = dict(zip(rows, pairwise(edges.tolist()), strict=True))
    ceiling = float(edges[-1]) + page.margin + stretch / 2

    placed: dict[int, Box] = {}
    for (position, row), cell_lines in lines.items():
        placed |= _place_cell(cell_lines, items, float(centres[position]), sum(bands[row]) / 2, page)
    return PlacedGraph(
        width=float(right_edges[-1]),
        height=ceiling + outputs_height,
        items=tuple(placed[index] for index in range(len(items))),
        outputs=_place_outputs(outputs, centres, float(right_edges[-1]), ceiling + outputs_height / 2, page.gap),
        tokens=tuple(
            Box(float(x), tokens_height - size[1] / 2, *size) for x, size in zip(centres, token_sizes, strict=True)
        ),
        rows=bands,
        upright_tokens=upright,
    )


class _Columns(NamedTuple):
    """One way to divide a picture into columns, and how well it fits the page."""

    widths: npt.NDArray[np.float64]
    lines: dict[Cell, list[list[int]]]
    """Indices of the nodes of each cell, line by line."""
    upright: bool
    scale: float
    """Factor that shrinks the picture to the page; 1 if it fits as it is."""


def _columns(
    items: Sequence[Item], cells: dict[Cell, list[int]], tokens: Sequence[Size], outputs_width: float, page: Page
) -> _Columns:
    """Try several widths, with horizontal and upright tokens; return the columns that have to be shrunk least."""
    candidates: list[_Columns] = []
    options = {cell: _widths_by_lines(members, items, page.gap) for cell, members in cells.items()}
    width_limits = np.geomspace(page.widest, page.widest * page.wider, 5 if page.wider > 1 else 1).tolist()
    for limit, upright in product(width_limits, (False, True)):
        widths = _widths(options, [size[1 if upright else 0] for size in tokens], limit, page.gap)
        widths = widths * max(1.0, page.narrowest / widths.sum(), outputs_width / widths.sum())
        lines = {cell: _folded(cells[cell], items, widths[cell[0]] - 2 * page.gap, page.gap) for cell in cells}
        heights = _row_heights(lines, items, {row for _, row in cells}, page)
        height = sum(heights.values()) + max((size[0 if upright else 1] for size in tokens), default=0.0)
        scale = min(1.0, page.widest / widths.sum(), page.tallest / height)
        candidates.append(_Columns(widths, lines, upright, scale))
    return max(candidates, key=lambda candidate: candidate.scale)


def _row_heights(
    lines: dict[Cell, list[list[int]]], items: Sequence[Item], rows: Iterable[float], page: Page
) -> dict[float, float]:
    heights = {
        row: max((_height(lines[cell], items, page) for cell in lines if cell[1] == row), default=0.0) for row in rows
    }
    return {row: height + 2 * page.row if height else page.empty_row for row, height in heights.items()}


def _widths(
    options: dict[Cell, list[float]], tokens: Sequence[float], limit: float, gap: float
) -> npt.NDArray[np.float64]:
    """Return widths of columns; rows that spare most width get more lines, until all columns fit within ``limit``.

    ``options`` are the widths of each cell in 1, 2, ... lines.
    """
    lines = dict.fromkeys((row for _, row in options), 1)
    while True:
        cell_widths = {cell: _width_at(options[cell], lines[cell[1]]) for cell in options}
        widths = np.array(tokens)
        for (position, _), width in cell_widths.items():
            widths[position] = max(widths[position], width)
        # A column becomes narrower only if its widest cells do.
        widest_cells = [cell for cell in options if cell_widths[cell] == widths[cell[0]]]
        gains = [(*_gain(widest_cells, options, lines[row], row, tokens), row) for row in lines]
        spared, added_lines, row = max(gains, default=(0.0, 0, 0.0))
        if widths.sum() + 2 * gap * len(widths) <= limit or spared <= 0:
            return widths + 2 * gap
        lines[row] += added_lines


def _gain(
    widest_cells: Sequence[Cell], options: dict[Cell, list[float]], lines: int, row: float, tokens: Sequence[float]
) -> tuple[float, int]:
    """Return the largest width that a row spares per added line, and that number of lines.

    Several lines are tried at once, because one more line may spare nothing where two more do.
    """
    cells = [cell for cell in widest_cells if cell[1] == row]
    most_lines = max((len(options[cell]) for cell in cells), default=0)
    widths = [_width_at(options[cell], lines) for cell in cells]
    best = (0.0, 1)
    for added in range(1, most_lines - lines + 1):
        spared = (
            width - max(_width_at(options[cell], lines + added), tokens[cell[0]])
            for cell, width in zip(cells, widths, strict=True)
        )
        best = max(best, (sum(spared) / added, added))
    return best


def _width_at(widths: Sequence[float], lines: int) -> float:
    """Return the width of a cell that may use ``lines`` lines; it uses at most one line per node."""
    return widths[min(lines, len(widths)) - 1]


def _widths_by_lines(members: Sequence[int], items: Sequence[Item], gap: float) -> list[float]:
    """Return the widths of a cell that is folded into at most 1, 2, ... lines."""
    widths: list[float] = []
    for count in range(1, len(members) + 1):
        width = max(_length(line, items, gap) for line in _split(members, count))
        widths.append(min([width, *widths[-1:]]))
    return widths


def _split(members: Sequence[int], count: int) -> list[list[int]]:
    """Split nodes into at most ``count`` lines of equal length; the last may be shorter."""
    length = -(-len(members) // count)
    return [list(members[start : start + length]) for start in range(0, len(members), length)]


def _folded(members: Sequence[int], items: Sequence[Item], width: float, gap: float) -> list[list[int]]:
    """Fold the nodes of a cell into the fewest equally full lines that are at most ``width`` wide."""
    for count in range(1, len(members) + 1):
        lines = _split(members, count)
        if max(_length(line, items, gap) for line in lines) <= width + 1e-6:
            return lines
    return [[index] for index in members]


def _length(line: Sequence[int], items: Sequence[Item], gap: float) -> float:
    return sum(items[index].size[0] for index in line) + gap * (len(line) - 1)


def _height(lines: Sequence[Sequence[int]], items: Sequence[Item], page: Page) -> float:
    return sum(max(items[index].size[1] for index in line) + page.line for line in lines) - page.line


def _place_cell(
    lines: Sequence[Sequence[int]], items: Sequence[Item], x: float, y: float, page: Page
) -> dict[int, Box]:
    """Place the lines of a cell below each other, centred at a point."""
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


def _place_outputs(
    outputs: Sequence[Output], centres: npt.NDArray[np.float64], width: float, y: float, gap: float
) -> tuple[Box, ...]:
    """Place the outputs in one line; those of a position stand side by side, as near to their column as possible."""
    blocks: dict[int, list[int]] = defaultdict(list)
    for index, output in enumerate(outputs):
        blocks[output.position].append(index)
    lengths = {position: sum(outputs[index].size[0] + gap for index in blocks[position]) for position in blocks}
    left_edges: dict[int, float] = {}
    # From left to right, a block moves right until it is clear of the block before it.
    border = 0.0
    for position in sorted(blocks):
        left_edges[position] = max(border, centres[position] - lengths[position] / 2)
        border = left_edges[position] + lengths[position]
    # From right to left, blocks that leave the picture on the right are moved back.
    border = width + gap / 2
    for position in sorted(blocks, reverse=True):
        left_edges[position] = border = min(left_edges[position], border - lengths[position])
    placed: dict[int, Box] = {}
    for position, members in blocks.items():
        left = left_edges[position] + gap / 2
        for index in members:
            placed[index] = Box(left + outputs[index].size[0] / 2, y, *outputs[index].size)
            left += outputs[index].size[0] + gap
    return tuple(placed[index] for index in range(len(outputs)))
