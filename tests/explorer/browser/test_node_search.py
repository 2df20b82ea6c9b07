"""The search of nodes on the graph page, in a browser: by token, label, layer, feature and kind, with the keyboard."""

from __future__ import annotations

from typing import Any

import pytest

from tests.explorer.browser.conftest import session_of, settled


def _nodes(page: Any) -> list[dict[str, Any]]:
    """The nodes that are drawn, most influential first."""
    return page.evaluate(
        """() => OpenCLT.explorer.graphPage.graph().nodes().sort((a, b) => b.influence - a.influence).map(
             ({ from, to, ...node }) => ({ id: node.id, label: node.label, brief: node.brief, token: node.token,
               layer: node.layer, feature: node.feature, kind: node.kind }))"""
    )


def _found(page: Any, text: str) -> set[str]:
    """The nodes that the search marks for a text."""
    page.fill("#find-node", text)
    return set(page.locator("#graph .oc-found").evaluate_all("(all) => all.map((each) => each.dataset.node)"))


def test_nodes_are_found_by_token_label_layer_feature_and_kind(page: Any) -> None:
    nodes = _nodes(page)
    at_dallas = {node["id"] for node in nodes if "dallas" in f"{node['token']} {node['label']}".lower()}
    assert {node["kind"] for node in nodes if node["id"] in at_dallas} >= {"feature", "token", "biases"}
    assert _found(page, "dallas") == at_dallas
    assert _found(page, "Dallas L0") == {node["id"] for node in nodes if node["id"] in at_dallas and node["layer"] == 0}
    assert _found(page, "l2") == {node["id"] for node in nodes if node["layer"] == 2}
    feature = next(node for node in nodes if node["feature"])
    assert feature["id"] in _found(page, feature["feature"])
    assert feature["id"] in _found(page, feature["brief"])
    assert _found(page, "error") >= {node["id"] for node in nodes if node["kind"] == "error"} != set()
    assert _found(page, "zebra crossing") == set()
    assert page.inner_text("#found-nodes") == "no node"
    assert _found(page, "") == set()
    assert page.text_content("#found-nodes") == ""


def test_enter_goes_to_the_next_match_and_the_keyboard_is_enough(page: Any) -> None:
    page.keyboard.press("/")
    page.keyboard.type("l1")
    expected = [node["id"] for node in _nodes(page) if node["layer"] == 1]
    assert page.inner_text("#found-nodes") == f"{len(expected)} nodes"
    for number, node in enumerate([*expected[:3], *expected[1::-1]]):
        page.keyboard.press("Enter" if number < 3 else "Shift+Enter")
        settled(page)
        assert session_of(page)["selected"] == node
        assert page.inner_text("#found-nodes") == f"{expected.index(node) + 1} of {len(expected)}"
        assert page.evaluate("document.activeElement.id") == "find-node"
    page.keyboard.press("Shift+Enter")
    settled(page)
    assert session_of(page)["selected"] == expected[-1]
    page.keyboard.press("Enter")
    settled(page)
    assert session_of(page)["selected"] == expected[0]
    page.keyboard.press("Escape")
    assert page.input_value("#find-node") == ""
    assert page.locator("#graph .oc-found").count() == 0
    assert session_of(page)["selected"] == expected[0]


@pytest.mark.parametrize("shape", ["error", "feature"])
def test_hidden_nodes_are_not_found(page: Any, shape: str) -> None:
    before = _found(page, "dallas")
    hidden = {node["id"] for node in _nodes(page) if node["kind"] == shape}
    assert before & hidden
    page.uncheck(f'[data-shape="{shape}"]')
    settled(page)
    marked = page.locator("#graph .oc-found:not(.oc-hidden)")
    assert set(marked.evaluate_all("(all) => all.map((each) => each.dataset.node)")) == before - hidden
