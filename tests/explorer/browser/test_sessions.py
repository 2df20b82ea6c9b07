"""Sessions in a browser: undo, labels, saving and opening, and exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from open_clt.explorer.explorer import Explorer
from open_clt.explorer.models import Source
from open_clt.explorer.server.serve import in_background, listen
from open_clt.explorer.session.session_file import load_session
from open_clt.graphs.formats.circuit_tracer_reader import read_circuit_tracer
from tests.explorer.browser.conftest import WAIT, drawn, opened, pin, select, session_of, settled

_EVIL = "<img src=x onerror=alert(1)></script><b>"


def _key(page: Any, key: str, times: int = 1) -> None:
    for _ in range(times):
        page.keyboard.press(key)
        settled(page)


def _label(page: Any, node: str, text: str) -> None:
    """Label the feature of a node in the panel."""
    select(page, node)
    page.keyboard.press("l")
    page.fill("#panel .x-label", text)
    page.press("#panel .x-label", "Enter")
    page.wait_for_function("(text) => Object.values(OpenCLT.explorer.store.session().labels).includes(text)", arg=text)
    settled(page)


def _saved(page: Any, folder: Path, kind: str = "session") -> Path:
    """Let the page write a file, and return its path."""
    with page.expect_download() as download:
        if kind == "session":
            page.click("#save")
        else:
            page.click("#export > summary")
            page.click(f'[data-export="{kind}"]')
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_six_undos_return_to_the_start_and_six_redos_to_the_end(page: Any) -> None:
    start = session_of(page)
    first, second, third = drawn(page, "feature")[:3]
    pin(page, first, second, third)
    page.click("text=Group the pins")
    page.wait_for_selector("#groups input")
    settled(page)
    _label(page, first, "Texas")
    page.uncheck('[data-shape="error"]')
    settled(page)
    select(page, None)
    end = session_of(page)
    assert page.locator("#undo").is_enabled()
    _key(page, "z", 6)
    assert session_of(page) == start
    assert not page.locator("#undo").is_enabled()
    _key(page, "Shift+Z", 6)
    assert session_of(page) == end


def test_keys_are_dead_while_something_is_typed(page: Any) -> None:
    select(page, drawn(page, "feature")[0])
    page.focus("#prompt")
    page.keyboard.type("pgzle?3")
    settled(page)
    assert session_of(page)["pins"] == []
    assert page.locator("dialog").count() == 0
    assert page.input_value("#prompt").endswith("pgzle?3")


def test_a_label_is_seen_everywhere_and_stays_text(page: Any, tmp_path: Path) -> None:
    node = drawn(page, "feature")[0]
    pin(page, node)
    _label(page, node, _EVIL)
    layer, _, index = node.split(":")
    assert page.inner_text("#panel .oc-title") == _EVIL
    assert _EVIL in page.get_attribute(f'#graph [data-node="{node}"]', "aria-label")
    assert _EVIL[:12] in page.text_content("#circuit-graph")
    other = drawn(page, "output")[0]
    select(page, other)
    assert _EVIL in page.locator("#panel .oc-links button").evaluate_all("(all) => all.map((each) => each.title)")
    exported = json.loads(_saved(page, tmp_path, "json").read_text())
    assert _EVIL in json.dumps(exported, ensure_ascii=False)
    html = _saved(page, tmp_path, "html")
    page.click("#link-features")
    page.fill("#search", "onerror")
    page.wait_for_selector(f'[data-feature="L{layer}/{index}"]')
    assert _EVIL in page.text_content(f'[data-feature="L{layer}/{index}"]')
    assert page.locator("img").count() == 0
    page.goto(html.as_uri())
    page.wait_for_selector("#graph[data-nodes]")
    assert _EVIL in page.get_attribute(f'[data-node="{node}"]', "aria-label")
    assert page.locator("img").count() == 0


def test_a_saved_session_opens_after_a_restart_and_in_python(
    new_page: Callable[..., Any], tmp_path: Path, page: Any, explorer_url: str
) -> None:
    first, second = drawn(page, "feature")[:2]
    pin(page, first, second)
    page.click("text=Group the pins")
    page.wait_for_selector("#groups input")
    _label(page, first, "Texas")
    page.mouse.move(640, 20)
    session, picture = session_of(page), page.locator("#graph").screenshot(animations="disabled")
    path = _saved(page, tmp_path)
    saved = load_session(path)
    assert saved.session.groups[0].members == (first, second)
    assert saved.circuit is not None
    assert saved.graph.check().holds

    later = Explorer(Source(), cache=tmp_path / "cache")
    served = listen(later, port=0)
    stop = in_background(served)
    try:
        again = opened(new_page(), served.url)
        with again.expect_file_chooser() as chooser:
            again.click("#open")
        chooser.value.set_files(path)
        again.wait_for_function("OpenCLT.explorer.store.session().groups.length === 1")
        settled(again)
        again.mouse.move(640, 20)
        assert session_of(again) == session
        assert again.locator("#graph").screenshot(animations="disabled") == picture
        again.close()  # an open page would say that its server does not answer
    finally:
        stop()


def test_a_session_of_another_transcoder_is_refused(page: Any, tmp_path: Path) -> None:
    path = _saved(page, tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "transcoder": "another"}))
    before = session_of(page)
    page.set_input_files("#open-file", path)
    page.wait_for_selector("#banner .x-error")
    assert "another transcoder" in page.inner_text("#banner")
    assert session_of(page) == before


@pytest.mark.parametrize(("kind", "beginning"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_pictures_are_written(page: Any, tmp_path: Path, kind: str, beginning: bytes) -> None:
    path = _saved(page, tmp_path, kind)
    assert path.read_bytes().startswith(beginning)
    assert path.stat().st_size > 10_000


def test_an_exported_graph_opens_again_without_a_model(page: Any, tmp_path: Path) -> None:
    nodes = drawn(page, "feature")
    pin(page, nodes[0])
    path = _saved(page, tmp_path, "json")
    viewed = read_circuit_tracer(path)
    assert viewed.view.pinned == (nodes[0],)
    page.set_input_files("#open-file", path)
    page.wait_for_function("OpenCLT.explorer.store.session().graph.startsWith('file')")
    settled(page)
    assert session_of(page)["pins"] == [nodes[0]]
    assert set(drawn(page, "feature")) <= set(nodes)
    assert path.name in page.inner_text("#note")


def test_an_exported_page_works_without_a_network(new_page: Callable[..., Any], page: Any, tmp_path: Path) -> None:
    path = _saved(page, tmp_path, "html")
    assert path.stat().st_size < 6e6
    offline = new_page()
    offline.context.set_offline(True)
    offline.goto(path.as_uri())
    offline.wait_for_selector("#graph[data-nodes]")
    node = drawn(page, "feature")[0]
    dot = offline.locator(f'#graph [data-node="{node}"] .oc-dot')
    dot.hover()
    assert offline.inner_text(".oc-flag.oc-shown")
    dot.click()
    assert offline.get_attribute("#graph", "data-selected") == node
    offline.keyboard.press("/")
    offline.keyboard.type("dallas")
    found = offline.locator("#graph .oc-found").evaluate_all("(all) => all.map((each) => each.dataset.node)")
    assert len(found) > 3
    offline.keyboard.press("Enter")
    assert offline.get_attribute("#graph", "data-selected") in found
    assert offline.inner_text("#found-nodes") == f"1 of {len(found)}"
    assert offline.evaluate("document.activeElement.id") == "find-node"


def test_a_file_that_is_neither_a_session_nor_a_graph_is_refused(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    page.set_input_files("#open-file", path)
    page.wait_for_selector("#banner .x-error")
    assert "a.json" in page.inner_text("#banner")


def test_a_reload_keeps_the_session(page: Any) -> None:
    node = drawn(page, "feature")[0]
    pin(page, node)
    before = session_of(page)
    page.reload()
    page.wait_for_selector("#graph[data-nodes]", timeout=WAIT)
    settled(page)
    assert session_of(page) == before
    assert page.get_attribute(f'#graph [data-node="{node}"]', "aria-selected") == "true"
