"""A served explorer and a browser: requests to anything but this computer, and errors in the console, fail a test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from open_clt.explorer.explorer import Explorer
from open_clt.explorer.models import Source
from open_clt.explorer.server.serve import in_background, listen
from tools.explorer_pictures import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT = 30_000
"""Milliseconds after which a wait fails."""
SMALL, WIDE = {"width": 1280, "height": 800}, {"width": 1920, "height": 1080}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, and skip it with the reason where Chromium is missing."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="Chromium is missing; run `apt-get install chromium`"))


@pytest.fixture(scope="session")
def served_explorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Explorer, str]]:
    """An explorer of the embedded model with its address; its models are loaded."""
    explorer = Explorer(Source(), cache=tmp_path_factory.mktemp("explorer"))
    served = listen(explorer, port=0)
    stop = in_background(served)
    job = explorer.worker.submit("wait", explorer.wait_for_models)
    assert job.finished.wait(120)
    yield explorer, served.url
    stop()


@pytest.fixture(scope="session")
def explorer_url(served_explorer: tuple[Explorer, str]) -> str:
    """The address of the explorer's first page."""
    return served_explorer[1]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages, each with its own store; at the end, no page has asked another computer or reported an error.

    ``allowed`` are parts of messages in the console that a test expects.
    """
    contexts: list[Any] = []
    problems: list[str] = []

    def make(size: dict[str, int] = SMALL, *, allowed: tuple[str, ...] = ()) -> Any:
        context = browser.new_context(viewport=size, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.wait_for_function = partial(wait_until, page)

        def route(route: Any) -> None:
            if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:", "file:")):
                route.continue_()
            else:
                problems.append(f"request to {route.request.url}")
                route.abort()

        def heard(message: Any) -> None:
            if message.type in ("error", "warning") and not any(part in message.text for part in allowed):
                problems.append(f"console: {message.text}")

        page.route("**/*", route)
        page.on("console", heard)
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        return page

    yield make
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def page(new_page: Callable[..., Any], explorer_url: str) -> Any:
    """The graph page at 1280 x 800, with the start graph."""
    return opened(new_page(), explorer_url)


def opened(page: Any, address: str) -> Any:
    """Go to an address of the graph page and wait until its graph is drawn."""
    page.goto(address)
    page.wait_for_selector("#graph[data-nodes]")
    page.wait_for_function("OpenCLT.explorer.client.status()?.ready")
    settled(page)
    return page


def settled(page: Any) -> None:
    """Wait until no job runs and no action waits for the server."""
    page.wait_for_function("OpenCLT.explorer.isIdle()")


def session_of(page: Any) -> dict[str, Any]:
    """The session in the browser."""
    return page.evaluate("OpenCLT.explorer.store.session()")


def select(page: Any, node: str | None) -> None:
    """Select a node by its id, as a click would."""
    page.evaluate("(id) => OpenCLT.explorer.graphPage.graph().select(id)", node)
    settled(page)


def drawn(page: Any, shape: str = "") -> list[str]:
    """Ids of the nodes that are drawn in the graph, most influential first."""
    return page.evaluate(
        """(shape) => OpenCLT.explorer.graphPage.graph().nodes().filter((node) => !shape || node.shape === shape)
            .sort((a, b) => b.influence - a.influence).map((node) => node.id)""",
        shape,
    )


def pin(page: Any, *nodes: str) -> None:
    """Pin nodes with the key P."""
    for node in nodes:
        select(page, node)
        page.keyboard.press("p")
        settled(page)


def overlapping(page: Any, selector: str) -> list[str]:
    """Pairs of texts below a selector whose boxes overlap by more than two pixels."""
    return page.evaluate(
        """(selector) => {
          const written = [...document.querySelectorAll(selector)].filter((each) => each.textContent.trim());
          const boxes = written.map((each) => {
            const range = document.createRange();
            range.selectNodeContents(each);
            const inner = range.getBoundingClientRect(), outer = each.getBoundingClientRect();
            const clipped = getComputedStyle(each).overflow === "hidden"; // a text that is cut ends with its element
            const right = clipped ? Math.min(inner.right, outer.right) : inner.right;
            const { left, top, bottom, height } = inner;
            return { text: each.textContent.trim(), box: { left, right, top, bottom, height, width: right - left } };
          }).filter(({ box }) => box.width > 1 && box.height > 1);
          const found = [];
          boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
            const wide = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
            const high = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
            if (wide > 2 && high > 3) found.push(`${a.text} / ${b.text}`);
          }));
          return found;
        }""",
        selector,
    )


def small_texts(page: Any) -> list[str]:
    """Visible texts whose letters are smaller than 11 pixels on the screen."""
    return page.evaluate(
        """() => {
          const found = [];
          const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          while (walker.nextNode()) {
            const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
            if (!text || !element.checkVisibility() || /SCRIPT|STYLE/.test(element.tagName)) continue;
            const graphic = element.closest("svg");
            const scale = graphic && graphic.viewBox.baseVal.width
              ? graphic.getBoundingClientRect().width / graphic.viewBox.baseVal.width : 1;
            if (scale && parseFloat(getComputedStyle(element).fontSize) * scale < 10.95) found.push(text);
          }
          return found;
        }"""
    )
