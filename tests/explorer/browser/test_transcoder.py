"""The transcoder page in a browser: every panel shows a figure with data, or says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from open_clt.embedded.held_out import HeldOutText
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.measurements import FIGURES, Measurements
from tests.explorer.browser.conftest import SMALL, WIDE, small_texts

pytestmark = pytest.mark.browser
_PATIENCE = 120_000
"""Milliseconds until all figures are there."""
_OVERLAPS = """() => {
  const found = [];
  for (const plot of document.querySelectorAll('#page-transcoder .js-plotly-plot')) {
    for (const name of ['xtick', 'x2tick', 'x3tick', 'x4tick', 'ytick', 'y2tick', 'y3tick', 'y4tick', 'cbaxistick']) {
      const texts = [...plot.querySelectorAll(`.${name} text, .${name}text`)];
      const boxes = texts.map((text) => [text.textContent, text.getBoundingClientRect()]);
      boxes.forEach(([one, a], index) => boxes.slice(index + 1).forEach(([other, b]) => {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (one !== other && wide > 1 && high > 2) found.push(`${name}: ${one} / ${other}`);
      }));
    }
  }
  return found;
}"""
_MARKS = (".point", ".js-line", ".hm image", ".bars path")
"""What plotly draws for points, lines, cells and bars."""


@pytest.fixture(scope="module", autouse=True)
def short_text(served_explorer: tuple[Explorer, str]) -> Iterator[None]:
    """The explorer measures on a short text meanwhile."""
    explorer, _ = served_explorer
    former, explorer.measurements = explorer.measurements, Measurements(HeldOutText(max_tokens=120))
    yield
    explorer.measurements = former


@pytest.fixture(params=[SMALL, WIDE], ids=["small", "wide"])
def transcoder(request: pytest.FixtureRequest, new_page: Callable[..., Any], explorer_url: str) -> Any:
    """The transcoder page with all figures."""
    page = new_page(request.param)
    page.goto(f"{explorer_url}transcoder")
    page.wait_for_selector("#below-tsne details", timeout=_PATIENCE)
    page.wait_for_function("!document.querySelector('#transcoder-work .x-working')")
    return page


def test_every_panel_shows_a_figure_with_data_or_says_what_to_do(transcoder: Any) -> None:
    if transcoder.query_selector("#evaluate"):
        assert transcoder.inner_text("#state-evaluation p").endswith(".")
        transcoder.click("#evaluate")
    for name in FIGURES:
        transcoder.wait_for_function(
            "(marks) => document.querySelector(marks)?.getBoundingClientRect().width > 0",
            arg=", ".join(f"#figure-{name} {mark}" for mark in _MARKS),
            timeout=_PATIENCE,
        )
        assert transcoder.is_visible(f"#holder-{name}")
        assert not transcoder.inner_text(f"#state-{name}").strip()
    assert transcoder.evaluate(_OVERLAPS) == []
    assert transcoder.evaluate("document.querySelectorAll('#page-transcoder .xtick text').length") > 20
    assert small_texts(transcoder) == []
    assert transcoder.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert transcoder.evaluate(
        "[...document.querySelectorAll('.x-figure')].every((each) => each.scrollWidth <= each.clientWidth)"
    )


def test_a_point_of_the_map_opens_its_feature(transcoder: Any) -> None:
    transcoder.click("[data-jump=pca]")
    point = transcoder.locator("#figure-pca .scatterlayer .point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    transcoder.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    transcoder.wait_for_selector("#figure-pca .hoverlayer .hovertext")
    text = transcoder.text_content("#figure-pca .hoverlayer .hovertext")
    transcoder.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    transcoder.wait_for_url("**/features/**")
    _, layer, index = transcoder.url.rsplit("/", 2)
    assert f"L{layer}/{index}" in text
    transcoder.go_back()
    transcoder.wait_for_selector("#page-transcoder:not([hidden])")
    assert transcoder.is_visible("#figure-pca")


def test_the_features_of_a_figure_are_reached_by_keyboard(transcoder: Any) -> None:
    transcoder.focus("#below-importance summary")
    transcoder.keyboard.press("Enter")
    transcoder.keyboard.press("Tab")
    name = transcoder.evaluate("document.activeElement.textContent")
    transcoder.keyboard.press("Enter")
    transcoder.wait_for_url(f"**/features/{name.removeprefix('L')}")


def test_an_address_leads_to_a_figure(transcoder: Any, explorer_url: str) -> None:
    transcoder.click("[data-jump=importance]")
    assert transcoder.url == f"{explorer_url}transcoder/importance"
    transcoder.wait_for_function(
        "document.getElementById('card-importance').getBoundingClientRect().top < innerHeight / 2"
    )


def test_the_figures_can_be_cancelled_and_made_later(
    new_page: Callable[..., Any], explorer_url: str, served_explorer: tuple[Explorer, str]
) -> None:
    explorer, _ = served_explorer
    explorer.measurements = Measurements(HeldOutText(max_tokens=120))
    page = new_page(SMALL)
    page.goto(f"{explorer_url}transcoder")
    page.wait_for_selector("#transcoder-work .x-cancel").click()
    button = page.wait_for_selector("#page-transcoder button:text('Compute the figures')")
    assert "cancelled" in page.inner_text("#state-tsne")
    button.click()
    page.wait_for_selector("#below-tsne details", timeout=_PATIENCE)
