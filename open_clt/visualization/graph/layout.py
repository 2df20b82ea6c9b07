"""Where everything in the picture of an attribution graph goes, in points, without drawing any of it.

Columns are token positions and rows are layers, upwards; tokens stand below, outputs on top. The nodes of one position
and layer share a cell, side by side and, where the page is too narrow, in several lines. Every node's place is as wide
as its label, every column as wide as its widest line and every row as high as its highest cell, so no two labels meet.
Of several widths, that is taken at which the picture has to be made least smaller to stand on a page.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
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

    widest: float = 470.0
    """Cells are folded into lines to stay within this width: that of a page of paper, with its margins."""
    tallest: float = 480.0
    """Height that a picture and its text leave to the nodes of a page."""
    wider: float = 1.7
    """How much wider than the page a picture may be, where it would be even higher otherwise."""
    narrowest: float = 440.0
    """A graph that needs less is spread out to this width."""
    lowest: float = 270.0
    """A graph that needs less is spread out to this height."""
    gap: float = 5.0
    """Between two boxes of a line."""
    line: float = 3.0
    """Between two lines of a cell."""
    row: float = 8.0
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

    heights = list(_row_heights(lines, items, rows, page).values())
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
    scale: float
    """How much smaller it has to be made for the page; 1 is not at all."""


def _columns(
    items: Sequence[Item], cells: dict[Cell, list[int]], tokens: Sequence[Size], needed: float, page: Page
) -> _Columns:
    """The columns that have to be made least smaller, of several widths, with tokens written flat and upwards."""
    candidates: list[_Columns] = []
    widest_of = np.geomspace(page.widest, page.widest * page.wider, 5 if page.wider > 1 else 1).tolist()
    for widest, upright in product(widest_of, (False, True)):
        widths = _widths(items, cells, [size[1 if upright else 0] for size in tokens], widest, page)
        widths = widths * max(1.0, page.narrowest / widths.sum(), needed / widths.sum())
        lines = {cell: _folded(cells[cell], items, widths[cell[0]] - 2 * page.gap, page.gap) for cell in cells}
        heights = _row_heights(lines, items, {row for _, row in cells}, page)
        height = sum(heights.values()) + max((size[0 if upright else 1] for size in tokens), default=0.0)
        scale = min(1.0, page.widest / widths.sum(), page.tallest / height)
        candidates.append(_Columns(widths, lines, upright, scale))
    return max(candidates, key=lambda candidate: candidate.scale)


def _row_heights(
    lines: dict[Cell, list[list[int]]], items: Sequence[Item], rows: Iterable[float], page: Page
) -> dict[float, float]:
    needs = {
        row: max((_height(lines[cell], items, page) for cell in lines if cell[1] == row), default=0.0) for row in rows
    }
    return {row: need + 2 * page.row if need else page.empty_row for row, need in needs.items()}


def _widths(
    items: Sequence[Item], cells: dict[Cell, list[int]], tokens: Sequence[float], widest: float, page: Page
) -> npt.NDArray[np.float64]:
    """Columns as wide as their cells; rows are given more lines, those first that gain most, until all columns fit."""
    needs = {cell: _widths_by_lines(members, items, page.gap) for cell, members in cells.items()}
    lines = dict.fromkeys((row for _, row in cells), 1)
    while True:
        now = {cell: _at(needs[cell], lines[cell[1]]) for cell in cells}
        widths = np.array(tokens)
        for (position, _), width in now.items():
            widths[position] = max(widths[position], width)
        # Only the widest cell of a column holds it open.
        held = [cell for cell in cells if now[cell] == widths[cell[0]]]
        best = max(((*_gain(held, needs, lines[row], row, tokens), row) for row in lines), default=(0.0, 0, 0.0))
        if widths.sum() + 2 * page.gap * len(widths) <= widest or best[0] <= 0:
            return widths + 2 * page.gap
        lines[best[2]] += best[1]


def _gain(
    held: Sequence[Cell], needs: dict[Cell, list[float]], lines: int, row: float, tokens: Sequence[float]
) -> tuple[float, int]:
    """How much width more lines of a row spare, by line, and how many it takes: one may be no use where two are."""
    here = [cell for cell in held if cell[1] == row]
    deepest = max((len(needs[cell]) for cell in here), default=0)
    best = (0.0, 1)
    for more in range(1, deepest - lines + 1):
        spared = (_at(needs[cell], lines) - max(_at(needs[cell], lines + more), tokens[cell[0]]) for cell in here)
        best = max(best, (sum(spared) / more, more))
    return best


def _at(widths: Sequence[float], lines: int) -> float:
    """Width of a cell in some lines; it has no use for more than it has nodes."""
    return widths[min(lines, len(widths)) - 1]


def _widths_by_lines(members: Sequence[int], items: Sequence[Item], gap: float) -> list[float]:
    """Width of a cell folded into at most 1, 2, ... lines."""
    found: list[float] = []
    for count in range(1, len(members) + 1):
        width = max(_length(line, items, gap) for line in _in_lines(members, count))
        found.append(min([width, *found[-1:]]))
    return found


def _in_lines(members: Sequence[int], count: int) -> list[list[int]]:
    full = -(-len(members) // count)
    return [list(members[start : start + full]) for start in range(0, len(members), full)]


def _folded(members: Sequence[int], items: Sequence[Item], width: float, gap: float) -> list[list[int]]:
    """The nodes of a cell in the fewest equally full lines that keep to ``width``."""
    for count in range(1, len(members) + 1):
        lines = _in_lines(members, count)
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
