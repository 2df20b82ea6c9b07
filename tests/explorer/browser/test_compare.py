"""The compare page in a browser: two graphs with linked selection, and two transcoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from open_clt.embedded.held_out import HeldOutText
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.measurements import Measurements
from open_clt.explorer.views import EDGE_THRESHOLD
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.operations import GraphComparison, compare_graphs
from tests.explorer.browser.conftest import SMALL, WIDE, small_texts

pytestmark = pytest.mark.browser
FIRST = "The capital of the state containing Dallas is"
SECOND = "The capital of the state containing Chicago is"


@pytest.fixture
def compared(new_page: Callable[..., Any], explorer_url: str) -> Any:
    """The compare page with the graphs of two prompts."""
    page = new_page(SMALL)
    page.goto(f"{explorer_url}compare")
    page.wait_for_selector("#graph-a .oc-picture")
    page.fill("#first-prompt", FIRST)
    page.fill("#second-prompt", SECOND)
    page.press("#second-prompt", "Enter")
    _settled(page)
    return page


def _settled(page: Any) -> None:
    page.wait_for_selector("#graph-b .oc-picture")
    page.wait_for_function("!document.querySelector('#compare-work .x-working')")


def _graphs(page: Any, explorer: Explorer, percent: int = 80) -> list[AttributionGraph]:
    keys = page.evaluate("['first', 'second'].map((name) => new URLSearchParams(location.search).get(name))")
    return [explorer.trace_of(key).graph.prune(percent / 100, EDGE_THRESHOLD) for key in keys]


def _expected(page: Any, explorer: Explorer, *, across: bool = False) -> GraphComparison:
    return compare_graphs(*_graphs(page, explorer), across_positions=across)


def _selected(page: Any, graph: str) -> str | None:
    return page.evaluate("(id) => document.querySelector(`#${id} [aria-selected=true]`)?.dataset.node ?? null", graph)


def _click(page: Any, graph: str, node: str) -> None:
    """Click the mark of a node, wherever it is scrolled to."""
    page.locator(f'#{graph} [data-node="{node}"] :is(.oc-dot, .oc-box, .oc-token)').first.click(force=True)


def _shared_count(page: Any) -> int:
    return int(page.inner_text("#shared-nodes"))


def test_the_number_of_shared_nodes_is_that_of_python(compared: Any, served_explorer: tuple[Explorer, str]) -> None:
    explorer, _ = served_explorer
    expected = _expected(compared, explorer)
    assert _shared_count(compared) == len(expected.shared_nodes)
    assert f"only in A: {len(expected.nodes_only_first)}, only in B: {len(expected.nodes_only_second)}" in (
        compared.inner_text("#compare-legend")
    )
    own = compared.evaluate("[...document.querySelectorAll('#graph-a .oc-own')].map((node) => node.dataset.node)")
    assert set(own) <= set(expected.nodes_only_first)
    drawn = compared.evaluate("[...document.querySelectorAll('#graph-a .oc-shared')].map((node) => node.dataset.node)")
    assert set(drawn) <= set(expected.shared_nodes)
    assert own
    assert drawn
    compared.check("#across")
    compared.wait_for_function("location.search.includes('across=1')")
    across = _expected(compared, explorer, across=True)
    compared.wait_for_function(f"document.getElementById('shared-nodes').textContent === '{len(across.shared_nodes)}'")


def test_selecting_left_selects_right(compared: Any, served_explorer: tuple[Explorer, str]) -> None:
    explorer, _ = served_explorer
    shared = [
        node
        for node in _expected(compared, explorer).shared_nodes
        if compared.query_selector(f'#graph-a [data-node="{node}"]')
    ]
    features = [node for node in shared if node[0].isdigit()]
    _click(compared, "graph-a", features[-1])
    assert _selected(compared, "graph-a") == _selected(compared, "graph-b") == features[-1]
    assert "in A" in compared.inner_text("#linked")
    assert features[-1].replace(":", "%3A") in compared.url
    compared.reload()
    _settled(compared)
    compared.wait_for_selector("#graph-b [aria-selected=true]")
    assert _selected(compared, "graph-a") == _selected(compared, "graph-b") == features[-1]
    compared.keyboard.press("Escape")
    assert _selected(compared, "graph-a") is _selected(compared, "graph-b") is None


def test_a_node_of_one_graph_selects_its_feature_elsewhere_or_nothing(
    compared: Any, served_explorer: tuple[Explorer, str]
) -> None:
    explorer, _ = served_explorer
    expected = _expected(compared, explorer)
    features = [
        {tuple(node.split(":")[::2]) for node in graph.ids() if node[0].isdigit()}
        for graph in _graphs(compared, explorer)
    ]
    for node in [node for node in expected.nodes_only_first if node[0].isdigit()][:8]:
        compared.evaluate("(id) => document.querySelector(`#graph-a [data-node='${id}']`)?.focus()", node)
        if compared.evaluate("document.activeElement.dataset.node") != node:
            continue
        compared.keyboard.press("Enter")
        assert _selected(compared, "graph-a") == node
        other, feature = _selected(compared, "graph-b"), tuple(node.split(":")[::2])
        assert (other is not None) == (feature in features[1])
        if other is not None:
            assert tuple(other.split(":")[::2]) == feature
        compared.keyboard.press("Escape")


def test_the_table_lists_the_edges_that_changed_most(compared: Any, served_explorer: tuple[Explorer, str]) -> None:
    explorer, _ = served_explorer
    expected = _expected(compared, explorer)
    pairs = (*expected.shared_edges, *expected.edges_only_first, *expected.edges_only_second)
    largest = max(pairs, key=lambda pair: abs(pair.first - pair.second))
    row = compared.locator("#changed-edges tbody tr").first
    keys = row.locator("button").evaluate_all("(buttons) => buttons.map((button) => button.dataset.key)")
    assert keys == [largest.source, largest.target]
    row.locator("button").nth(1).click()
    assert largest.target in (_selected(compared, "graph-a"), _selected(compared, "graph-b"))


def test_back_returns_to_the_former_comparison(compared: Any) -> None:
    shared = _shared_count(compared)
    compared.check("#across")
    compared.wait_for_function(f"document.getElementById('shared-nodes').textContent !== '{shared}'")
    compared.go_back()
    compared.wait_for_function(f"document.getElementById('shared-nodes').textContent === '{shared}'")
    assert not compared.is_checked("#across")


def test_an_empty_prompt_is_a_sentence(compared: Any) -> None:
    compared.fill("#second-prompt", " ")
    compared.press("#second-prompt", "Enter")
    compared.wait_for_selector("#banner .x-error")
    assert compared.inner_text("#banner .x-error span").endswith(".")
    assert compared.query_selector("#graph-b .oc-picture")


@pytest.mark.parametrize("size", [SMALL, WIDE])
@pytest.mark.parametrize("path", ["compare", "compare/transcoders"])
def test_the_page_fits_its_window(new_page: Callable[..., Any], explorer_url: str, size: Any, path: str) -> None:
    page = new_page(size)
    page.goto(f"{explorer_url}{path}")
    page.wait_for_selector("#page-compare:not([hidden]) .x-bar")
    if path == "compare":
        page.wait_for_selector("#graph-a .oc-picture")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert small_texts(page) == []
    assert len(page.inner_text("#page-compare")) > 60


@pytest.fixture
def short_text(served_explorer: tuple[Explorer, str]) -> Iterator[None]:
    """The explorer measures on a short text meanwhile."""
    explorer, _ = served_explorer
    former, explorer.measurements = explorer.measurements, Measurements(HeldOutText(max_tokens=120))
    yield
    explorer.measurements = former


@pytest.mark.usefixtures("short_text")
def test_two_transcoders_are_compared(
    new_page: Callable[..., Any], explorer_url: str, served_explorer: tuple[Explorer, str]
) -> None:
    explorer, _ = served_explorer
    page = new_page(SMALL)
    page.goto(f"{explorer_url}compare/transcoders?with=embedded")
    page.wait_for_function("document.getElementById('second-transcoder')?.value === 'embedded'")
    page.click("#transcoders-run")
    page.wait_for_selector("#transcoders-table", timeout=120_000)
    page.wait_for_selector("#figure-comparison .scatterlayer .point")
    report = explorer.measurements.reports["embedded"]
    cells = page.locator("#transcoders-table tbody tr").nth(1).locator("td").all_inner_texts()
    assert cells[0] == f"{report.evaluation.reconstruction.fvu:.4f}"
    page.reload()
    page.wait_for_selector("#transcoders-table")
    page.fill("#second-transcoder", "/nowhere/at-all")
    page.press("#second-transcoder", "Enter")
    page.wait_for_selector("#banner .x-error")
    assert "/nowhere/at-all" in page.inner_text("#banner .x-error span")
    assert page.is_hidden("#holder-comparison")
