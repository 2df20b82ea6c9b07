"""States of the explorer in a browser: cancelled and replaced jobs, a server that is gone, memory and threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from open_clt.explorer.explorer import Explorer
from open_clt.explorer.models import Source
from open_clt.explorer.server.serve import in_background, listen
from open_clt.explorer.traces import trace_key
from tests.explorer.browser.conftest import drawn, opened, pin, session_of, settled

_LONG = " ".join(["The capital of Texas is Austin."] * 6)


def test_a_cancelled_trace_leaves_the_graph_and_the_next_one_works(
    served_explorer: tuple[Explorer, str], page: Any
) -> None:
    explorer, _ = served_explorer
    before = session_of(page)["graph"]
    page.evaluate(
        """() => new MutationObserver((_, observer) => {
             const button = document.querySelector("#work .x-cancel");
             if (button) { observer.disconnect(); button.click(); window.cancelled = true; }
           }).observe(document.getElementById("work"), { childList: true })"""
    )
    page.fill("#prompt", _LONG)
    page.click("#trace")
    page.wait_for_function("window.cancelled && !document.querySelector('#work > *')")
    settled(page)
    assert session_of(page)["graph"] == before
    assert page.locator("#banner .x-error").count() == 0
    page.fill("#prompt", "The opposite of big is")
    page.click("#trace")
    page.wait_for_function("document.getElementById('graph').dataset.graph !== 'start'")
    assert session_of(page)["graph"] == trace_key(explorer.loaded(), "The opposite of big is", explorer.budget)


def test_of_ten_traces_in_a_row_the_last_one_wins(served_explorer: tuple[Explorer, str], page: Any) -> None:
    explorer, _ = served_explorer
    prompts = [f"The opposite of {word} is" for word in "hot cold big small up down old new good bad".split()]
    page.evaluate("(prompts) => { for (const each of prompts) OpenCLT.explorer.graphPage.tracePrompt(each); }", prompts)
    expected = trace_key(explorer.loaded(), prompts[-1], explorer.budget)
    page.wait_for_function("(key) => document.getElementById('graph').dataset.graph === key", arg=expected)
    settled(page)
    assert session_of(page)["graph"] == expected
    assert page.locator("#work > *").count() == 0


def test_the_page_goes_on_when_the_server_is_back(new_page: Callable[..., Any], tmp_path: Path) -> None:
    first = listen(Explorer(Source(), cache=tmp_path), port=0)
    port, stop = first.server.port, in_background(first)
    page = opened(new_page(allowed=("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")), first.url)
    node = drawn(page, "feature")[0]
    stop()
    page.wait_for_selector("#banner .x-gone")
    page.evaluate("(node) => void OpenCLT.explorer.store.act({ kind: 'pin', node })", node)
    second = listen(Explorer(Source(), cache=tmp_path), port=port)
    stop = in_background(second)
    try:
        page.wait_for_selector("#banner .x-gone", state="detached")
        page.wait_for_function("OpenCLT.explorer.store.session().pins.length === 1")
        page.wait_for_function("OpenCLT.explorer.client.status()?.ready")
        settled(page)
        assert session_of(page)["pins"] == [node]
        pin(page, drawn(page, "feature")[1])
        assert len(session_of(page)["pins"]) == 2
    finally:
        stop()


def test_a_served_explorer_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    served = listen(Explorer(Source(), cache=tmp_path), port=0)
    stop = in_background(served)
    job = served.explorer.worker.submit("wait", served.explorer.wait_for_models)
    assert job.finished.wait(120)
    stop()
    left = {thread for thread in set(threading.enumerate()) - before if "explorer" in thread.name}
    assert left == set()


def test_only_this_computer_is_listened_to(tmp_path: Path) -> None:
    served = listen(Explorer(Source(), cache=tmp_path), port=0)
    try:
        assert served.server.host == "127.0.0.1"
        assert served.server.socket.getsockname()[0] == "127.0.0.1"
    finally:
        served.server.server_close()
        served.explorer.close()
