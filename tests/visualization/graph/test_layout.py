from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from open_clt.visualization.graph.layout import Box, Item, Output, Page, PlacedGraph, place


def random_nodes(seed: int, positions: int, layers: int, count: int) -> tuple[list[Item], list[tuple[float, float]]]:
    """Nodes of random sizes, most of them at late positions, and tokens of random widths."""
    rng = np.random.default_rng(seed)
    node_positions = np.minimum((positions * rng.random(count) ** 0.4).astype(int), positions - 1).tolist()
    rows = (rng.integers(0, 2 * layers, count) / 2).tolist()
    sizes = np.stack([rng.uniform(4, 90, count), rng.uniform(4, 16, count)], axis=1).tolist()
    columns = zip(node_positions, rows, sizes, rng.random(count), strict=True)
    items = [Item(position, row, (width, height), order) for position, row, (width, height), order in columns]
    return items, [(width, 10.0) for width in rng.uniform(4, 70, positions).tolist()]


def overlaps(first: Box, second: Box) -> bool:
    apart_x = abs(first.x - second.x) >= (first.width + second.width) / 2 - 1e-6
    apart_y = abs(first.y - second.y) >= (first.height + second.height) / 2 - 1e-6
    return not (apart_x or apart_y)


SHAPES = [(1, 1, 1), (9, 4, 50), (9, 4, 200), (40, 12, 60), (3, 26, 60), (12, 5, 0)]


@pytest.fixture(params=SHAPES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[list[Item], list[Output], PlacedGraph]:
    positions, layers, count = request.param
    items, tokens = random_nodes(count, positions, layers, count)
    outputs = [Output(positions - 1, (60.0, 14.0))] * 10 + [Output(0, (30.0, 14.0))]
    rows = sorted({*map(float, range(layers)), *(item.row for item in items)})
    return items, outputs, place(items, tokens, outputs, rows, Page())


Case = tuple[list[Item], list[Output], PlacedGraph]


def test_boxes_do_not_overlap_and_lie_within_the_picture(case: Case) -> None:
    _, _, placed = case
    boxes = [*placed.items, *placed.outputs, *placed.tokens]
    assert not [pair for pair in combinations(boxes, 2) if overlaps(*pair)]
    assert all(box.x - box.width / 2 >= -1e-6 and box.x + box.width / 2 <= placed.width + 1e-6 for box in boxes)
    assert all(box.y - box.height / 2 >= -1e-6 and box.y + box.height / 2 <= placed.height + 1e-6 for box in boxes)


def test_layers_are_stacked_between_tokens_and_outputs(case: Case) -> None:
    items, _, placed = case
    bands = [placed.rows[row] for row in sorted(placed.rows)]
    assert all(lower[1] == pytest.approx(upper[0]) for lower, upper in pairwise(bands))
    for item, box in zip(items, placed.items, strict=True):
        bottom, top = placed.rows[item.row]
        assert bottom < box.y - box.height / 2 < box.y + box.height / 2 < top
    assert max(box.y + box.height / 2 for box in placed.tokens) < bands[0][0]
    assert min(box.y - box.height / 2 for box in placed.outputs) > bands[-1][1]


def test_a_node_stands_between_the_tokens_on_either_side_of_its_own(case: Case) -> None:
    items, _, placed = case
    columns = [-np.inf, *(box.x for box in placed.tokens), np.inf]
    assert columns == sorted(columns)
    for item, box in zip(items, placed.items, strict=True):
        assert columns[item.position] < box.x < columns[item.position + 2]


def test_tokens_are_upright_on_a_crowded_page() -> None:
    rows = [half_layers / 2 for half_layers in range(8)]
    items, tokens = random_nodes(0, 30, 4, 40)
    items = [item._replace(size=(item.size[0] / 4, item.size[1])) for item in items]
    crowded = place(items, tokens, [], rows, Page())
    roomy = place(items[:0], tokens[:4], [], rows, Page())
    assert crowded.upright_tokens
    assert crowded.width <= Page().widest * Page().wider
    assert not roomy.upright_tokens
    assert roomy.width == pytest.approx(Page().narrowest)
