"""The look of the explorer: screenshots of every view, accessibility, sizes, overlaps, and dashes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.explorer.browser.conftest import (
    SMALL,
    WIDE,
    drawn,
    opened,
    overlapping,
    pin,
    select,
    session_of,
    settled,
    small_texts,
)

_GALLERY = Path(__file__).parents[3] / "visualizations" / "gallery" / "explorer"
_SIZES = {"1280": SMALL, "1920": WIDE}


def _graph(page: Any) -> None:
    # The features of the highest layers are grouped, so the group and the others form no cycle.
    first, second, third, fourth = sorted(drawn(page, "feature")[:4], reverse=True)
    pin(page, first, second, third, fourth)
    page.evaluate(
        """([a, b]) => OpenCLT.explorer.store.act(
             { kind: "group", name: "capitals", members: [a, b] })""",
        [first, second],
    )
    settled(page)
    select(page, first)


def _feature(page: Any) -> None:
    layer, _, index = drawn(page, "feature")[0].split(":")
    page.evaluate("(address) => OpenCLT.explorer.go(address)", f"/features/{layer}/{index}")
    page.wait_for_selector("#feature-page h1")
    page.fill("#own-text", "The capital of the state containing Houston is")
    page.click("#test-text")
    page.wait_for_selector("#own-result .oc-facts")


def _features(page: Any) -> None:
    page.click("#link-features")
    page.fill("#search", "capital")
    page.wait_for_function("location.search.includes('capital')")
    page.wait_for_selector("#feature-list tbody tr")


def _steer(page: Any) -> None:
    _graph(page)
    page.click("text=Steer these")
    page.wait_for_selector("#steers fieldset")
    page.click("#steer-run")
    page.wait_for_selector("#effects tbody tr")
    page.click("#continue")
    page.wait_for_selector('#continuations [data-when="after"]')


def _keys(page: Any) -> None:
    page.keyboard.press("?")
    page.wait_for_selector("#keys")


def _compare(page: Any) -> None:
    page.click("#link-compare")
    page.wait_for_selector("#graph-a .oc-picture")
    page.fill("#second-prompt", "The capital of the state containing Chicago is")
    page.press("#second-prompt", "Enter")
    page.wait_for_selector("#graph-b .oc-picture")
    page.locator("#changed-edges tbody button").first.click()


def _transcoder(page: Any) -> None:
    page.click("#link-transcoder")
    page.wait_for_selector("#below-tsne details", timeout=120_000)
    page.click("[data-jump=norms]")
    page.wait_for_timeout(500)  # plotly draws after its figure is there


VIEWS: dict[str, Callable[[Any], None]] = {
    "start": lambda page: None,
    "graph": _graph,
    "features": _features,
    "feature": _feature,
    "steer": _steer,
    "compare": _compare,
    "transcoder": _transcoder,
    "keys": _keys,
}


@pytest.fixture(params=[f"{view}-{size}" for view in VIEWS for size in _SIZES])
def view(request: pytest.FixtureRequest, new_page: Callable[..., Any], explorer_url: str) -> tuple[str, Any]:
    """Every view at both sizes, by name."""
    name, size = request.param.rsplit("-", 1)
    page = opened(new_page(_SIZES[size]), explorer_url)
    VIEWS[name](page)
    settled(page)
    return request.param, page


def test_a_view_can_be_read_and_used_by_everybody(view: tuple[str, Any]) -> None:
    from axe_playwright_python.sync_playwright import Axe

    name, page = view
    _GALLERY.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=_GALLERY / f"{name}.png", animations="disabled")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert small_texts(page) == []
    assert overlapping(page, "#graph text.oc-label, #graph text.oc-token, #graph text.oc-layer") == []
    assert overlapping(page, "#circuit-graph text.oc-label, #circuit-graph text.oc-token") == []
    assert overlapping(page, "#panel .oc-name, #panel .oc-number") == []
    found = Axe().run(page).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], [node["html"][:120] for node in each["nodes"]][:3]) for each in serious] == []


@pytest.mark.parametrize("name", ["start", "graph", "features", "feature", "steer", "compare", "transcoder"])
def test_a_view_can_be_read_in_a_small_window(name: str, new_page: Callable[..., Any], explorer_url: str) -> None:
    page = opened(new_page({"width": 1024, "height": 700}), explorer_url)
    VIEWS[name](page)
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert small_texts(page) == []
    assert overlapping(page, "header .x-brand, header a, #facts, #tools button, #tools summary") == []
    texts = "text.oc-label, text.oc-token, text.oc-layer"
    for part in ("#graph", "#circuit-graph", "#graph-a", "#graph-b"):
        assert overlapping(page, ", ".join(f"{part} {text}" for text in texts.split(", "))) == []
    visible = ".x-page:not([hidden]) "
    for words in (
        ".x-bar label, .x-bar button, #counts, .x-who",
        ".x-toggles label, .x-key",
        ".x-list td, .x-list th, #changed-edges td, #effects td",
        "legend, .x-steer label",
    ):
        assert overlapping(page, ", ".join(visible + word for word in words.split(", "))) == []
    outside = page.evaluate(
        """() => [...document.querySelectorAll(".x-page:not([hidden]) :is(button, input, select, textarea)")]
             .filter((each) => each.checkVisibility() && !each.closest(".x-scroll, .x-groups"))
             .filter((each) => each.getBoundingClientRect().right > innerWidth + 1).map((each) => each.outerHTML)"""
    )
    assert outside == []


def test_the_circuit_has_no_rows_without_nodes(page: Any) -> None:
    _graph(page)
    rows = page.evaluate("OpenCLT.explorer.circuit.shown().picture.layouts[0].rows")
    boxes = page.evaluate("""() => OpenCLT.explorer.circuit.shown().picture.layouts[0].boxes.map(([, y]) => y)""")
    assert len(rows) >= 2
    assert all(any(row["top"] <= y <= row["bottom"] for y in boxes) for row in rows)


def test_tab_goes_through_the_page_in_the_order_of_its_parts(page: Any) -> None:
    select(page, drawn(page, "feature")[0])
    page.focus("#prompt")
    places: list[str] = []
    for _ in range(60):
        place = page.evaluate(
            """() => {
              const element = document.activeElement;
              const part = element.closest("#graph, #panel, #circuit");
              return part ? part.id : element.id || element.tagName;
            }"""
        )
        if place == "BODY":
            break  # the end of the page
        if not places or places[-1] != place:
            places.append(place)
        outline = page.evaluate(
            """() => {
              const element = document.activeElement, ring = element.querySelector(".oc-ring");
              const style = getComputedStyle(element);
              return style.outlineStyle !== "none" || (ring && getComputedStyle(ring).stroke !== "none");
            }"""
        )
        assert outline, f"the focus on {place} cannot be seen"
        page.keyboard.press("Tab")
    order = [places.index(name) for name in ("prompt", "trace", "influence", "graph", "panel", "circuit")]
    assert order == sorted(order)


def test_negative_edges_are_dashed_and_positive_ones_are_not(page: Any) -> None:
    for style, dashed in (("negative", True), ("positive", False)):
        edge = page.locator(f"#graph .oc-{style}").first
        pattern = edge.evaluate("(each) => getComputedStyle(each).strokeDasharray")
        assert (pattern != "none") is dashed


def test_a_panel_expands_and_escape_closes_it(page: Any) -> None:
    pin(page, drawn(page, "feature")[0])
    page.keyboard.press("e")
    box = page.locator("#circuit").bounding_box()
    assert box["width"] == SMALL["width"]
    assert box["height"] == SMALL["height"]
    page.keyboard.press("Escape")
    assert page.locator("#circuit").bounding_box()["height"] < SMALL["height"]
    assert session_of(page)["selected"] is not None


def test_shift_freezes_the_flag(page: Any) -> None:
    first, second = drawn(page, "feature")[:2]
    page.locator(f'#graph [data-node="{first}"] .oc-dot').hover()
    flag = page.inner_text(".oc-flag.oc-shown")
    page.keyboard.down("Shift")
    page.locator(f'#graph [data-node="{second}"] .oc-dot').hover()
    assert page.inner_text(".oc-flag.oc-shown") == flag
    page.keyboard.up("Shift")
