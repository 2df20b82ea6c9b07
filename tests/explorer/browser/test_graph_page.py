"""The graph page in a browser: start, tracing, selection, keys, pins, groups, and the circuit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from open_clt.explorer.explorer import Explorer
from open_clt.explorer.session.session import read_session
from open_clt.explorer.traces import trace_key
from open_clt.explorer.views import Views, circuit_of, labelled
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.operations import node_numbers
from open_clt.graphs.supernodes import suggest_supernodes
from open_clt.transcoders.feature import FeaturePlace
from open_clt.visualization.prompt_report.predictions import predictions
from tests.explorer.browser.conftest import drawn, pin, select, session_of, settled

_PROMPT = "The opposite of hot is"


def _pruned(explorer: Explorer, page: Any) -> AttributionGraph:
    """The pruned graph that the page shows."""
    session = read_session(session_of(page))
    trace = explorer.trace_of(session.graph)
    return Views().shown(trace, session, explorer.models).graph


def test_the_first_page_shows_the_start_graph(page: Any) -> None:
    assert session_of(page)["graph"] == "start"
    assert len(drawn(page, "feature")) > 20
    assert page.input_value("#prompt") == "The capital of the state containing Dallas is"


def test_a_typed_prompt_is_traced(served_explorer: tuple[Explorer, str], page: Any) -> None:
    explorer, _ = served_explorer
    page.fill("#prompt", _PROMPT)
    page.press("#prompt", "Enter")
    page.wait_for_function("(key) => document.getElementById('graph').dataset.graph !== key", arg="start")
    settled(page)
    models = explorer.loaded()
    assert session_of(page)["graph"] == trace_key(models, _PROMPT, explorer.budget)
    tokens = models.model.tokenize(_PROMPT)
    last = predictions(models.replacement, torch.as_tensor(tokens).cpu(), 3)[-1]
    for name, likely in (("model", last.original), ("replacement", last.replacement)):
        shown = page.locator(f'#predictions [data-model="{name}"] .x-chip').all_text_contents()
        assert [text.split()[0].lstrip("·") for text in shown] == [each.token.strip() for each in likely]
        rows = page.evaluate("OpenCLT.explorer.graphPage.view().predictions.at(-1)")[name]
        assert [share for _, share in rows] == pytest.approx([each.probability for each in likely], abs=5e-4)


def test_tracing_shows_its_phase(page: Any) -> None:
    page.evaluate(
        """() => {
          window.phases = [];
          new MutationObserver(() => {
            const line = document.querySelector("#work .x-phase");
            if (line) window.phases.push(line.textContent);
          }).observe(document.getElementById("work"), { childList: true, subtree: true, characterData: true });
        }"""
    )
    page.fill("#prompt", "The currency of Japan is called the")
    page.click("#trace")
    page.wait_for_function("document.getElementById('graph').dataset.graph !== 'start'")
    settled(page)
    assert page.evaluate("window.phases.length") > 0
    assert page.locator("#work > *").count() == 0


def test_the_caption_counts_what_is_drawn(served_explorer: tuple[Explorer, str], page: Any) -> None:
    pruned = _pruned(served_explorer[0], page)
    nodes, edges = page.evaluate("Object.values(OpenCLT.explorer.graphPage.graph().counts())")
    assert nodes == pruned.n_nodes
    assert edges == min(pruned.n_edges, 2000)
    assert page.text_content("#counts") == f"{nodes} nodes, {edges} edges"
    page.uncheck('[data-shape="other"]')
    settled(page)
    hidden = page.evaluate("OpenCLT.explorer.graphPage.view().picture.nodes.filter((n) => n.shape === 'other').length")
    assert hidden > 0
    assert page.text_content("#counts").startswith(f"{nodes - hidden} nodes")


def test_dense_features_can_be_hidden(served_explorer: tuple[Explorer, str], page: Any) -> None:
    rows = served_explorer[0].loaded().row_of
    before = drawn(page, "feature")
    page.select_option("#densest", "0.05")
    page.wait_for_function("OpenCLT.explorer.store.session().densest === 0.05")
    settled(page)
    after = drawn(page, "feature")
    expected = [node for node in before if rows[FeaturePlace.parse(node).feature].density <= 0.05]
    assert 0 < len(expected) < len(before)
    assert after == expected


def _slide(page: Any, percent: int) -> None:
    page.evaluate(
        """(percent) => {
          const slider = document.getElementById("influence");
          slider.value = percent;
          slider.dispatchEvent(new Event("input"));
          slider.dispatchEvent(new Event("change"));
        }""",
        percent,
    )
    page.wait_for_function("(percent) => OpenCLT.explorer.store.session().percent === percent", arg=percent)
    settled(page)


def test_the_slider_shows_fewer_nodes_and_keeps_the_selection_that_remains(page: Any) -> None:
    before = drawn(page, "feature")
    select(page, before[0])
    _slide(page, 60)
    after = drawn(page, "feature")
    assert 0 < len(after) < len(before)
    assert set(after) <= set(before)
    assert session_of(page)["selected"] == before[0]
    unconnected = page.evaluate(
        """() => OpenCLT.explorer.graphPage.graph().nodes().filter((node) => node.shape === "feature" &&
             !(node.from.length && node.to.length)).length"""
    )
    assert unconnected == 0
    lost = next(node for node in before if node not in after)
    _slide(page, 80)
    select(page, lost)
    _slide(page, 60)
    assert session_of(page)["selected"] is None


def test_a_click_selects_and_lists_the_strongest_edges(served_explorer: tuple[Explorer, str], page: Any) -> None:
    node = drawn(page, "feature")[0]
    page.locator(f'#graph [data-node="{node}"] .oc-dot').click()
    settled(page)
    assert page.get_attribute(f'#graph [data-node="{node}"]', "aria-selected") == "true"
    graph = _pruned(served_explorer[0], page)
    row = int(node_numbers(graph, [node])[0])
    ids, edges = graph.ids(), graph.edges
    lists = page.locator("#panel .oc-links")
    for number, (end, other) in enumerate(((edges.target, edges.source), (edges.source, edges.target))):
        rows = (end == row).nonzero().flatten()
        order = rows[edges.weight[rows].abs().argsort(descending=True)][:9]
        expected = [(ids[int(other[edge])], float(edges.weight[edge])) for edge in order]
        shown = page.evaluate(
            """([node, which]) => {
              const graph = OpenCLT.explorer.graphPage.graph();
              return graph[which](graph.node(node)).slice(0, 9).map((link) => [link.node.id, link.weight]);
            }""",
            [node, ("fedBy", "feeds")[number]],
        )
        assert [name for name, _ in shown] == [name for name, _ in expected]
        assert [weight for _, weight in shown] == pytest.approx([weight for _, weight in expected], rel=1e-4)
        texts = lists.nth(number).locator(".oc-number").all_text_contents()
        assert [text[0] == "\u2212" for text in texts] == [weight < 0 for _, weight in expected]
    page.locator(f'#graph [data-node="{node}"] .oc-dot').click()
    assert session_of(page)["selected"] is None


def test_keys_move_between_nodes(page: Any) -> None:
    node = drawn(page, "feature")[0]
    select(page, node)
    third = page.evaluate(
        "(id) => { const g = OpenCLT.explorer.graphPage.graph(); return g.numbered(g.node(id))[2].id; }", node
    )
    page.keyboard.press("3")
    assert session_of(page)["selected"] == third
    page.go_back()
    page.wait_for_function("(id) => OpenCLT.explorer.store.session().selected === id", arg=node)
    page.keyboard.press("Escape")
    assert session_of(page)["selected"] is None


def test_arrow_keys_reach_every_node_from_every_node(page: Any) -> None:
    _slide(page, 50)
    reached = page.evaluate(
        """() => {
          const all = [...document.querySelectorAll("#graph .oc-node:not(.oc-hidden)")];
          const next = new Map();
          for (const element of all) {
            next.set(element, ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"].map((key) => {
              element.focus();
              element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
              return document.activeElement;
            }));
          }
          return all.map((start) => {
            const seen = new Set([start]), open = [start];
            while (open.length) {
              for (const each of next.get(open.pop()).filter((other) => !seen.has(other))) {
                seen.add(each);
                open.push(each);
              }
            }
            return seen.size === all.length;
          });
        }"""
    )
    assert len(reached) > 20
    assert all(reached)


def test_pins_groups_and_the_circuit(served_explorer: tuple[Explorer, str], page: Any) -> None:
    explorer, _ = served_explorer
    # The features of the highest layers are grouped, so the group and the third one form no cycle.
    first, second, third = sorted(drawn(page, "feature")[:3], reverse=True)
    pin(page, first, second)
    page.locator(f'#graph [data-node="{third}"] .oc-dot').click(modifiers=["Control"])
    settled(page)
    assert session_of(page)["pins"] == [first, second, third]
    page.keyboard.down("g")
    for node in (first, second):
        page.locator(f'#graph [data-node="{node}"] .oc-dot').click()
    page.keyboard.up("g")
    page.wait_for_selector("#groups input")
    settled(page)
    page.fill("#groups input", "say a capital")
    page.press("#groups input", "Enter")
    page.wait_for_function("OpenCLT.explorer.store.session().groups[0].name === 'say a capital'")
    settled(page)
    session = read_session(session_of(page))
    trace = explorer.trace_of("start")
    whole = labelled(trace.graph, trace, session, explorer.models).graph
    circuit = circuit_of(whole, session)
    assert circuit is not None
    shown = page.evaluate("OpenCLT.explorer.circuit.shown()")
    assert shown["scores"] == pytest.approx(list(circuit.scores()), abs=1e-4)
    boxes = page.locator("#circuit-graph .oc-group, #circuit-graph .oc-feature")
    assert boxes.count() == 2
    assert "say a capital" in page.text_content("#circuit-graph")
    weights = {
        (circuit.groups[source].label, circuit.groups[target].label): weight
        for target, source, weight in zip(*(column.tolist() for column in circuit.edges), strict=True)
    }
    summed = {(shown["names"][source], shown["names"][target]): weight for source, target, weight in shown["edges"]}
    assert summed == pytest.approx(weights, rel=1e-4)


def test_suggested_groups_can_be_taken_or_refused(served_explorer: tuple[Explorer, str], page: Any) -> None:
    explorer, _ = served_explorer
    page.click("text=Suggest groups")
    page.wait_for_selector("#suggestions [data-members]")
    shown = page.locator("#suggestions [data-members]")
    expected = suggest_supernodes(_pruned(explorer, page), explorer.loaded().transcoder)
    found = [each.split() for each in shown.evaluate_all("(all) => all.map((each) => each.dataset.members)")]
    assert found == [list(each.members) for each in expected]
    shown.nth(1).locator("text=Refuse").click()
    shown.nth(0).locator("text=Take").click()
    settled(page)
    assert [group["members"] for group in session_of(page)["groups"]] == [list(expected[0].members)]
    assert shown.count() == len(expected) - 2


def test_the_heads_of_an_edge_add_up_to_it(page: Any) -> None:
    node = drawn(page, "output")[0]
    select(page, node)
    page.click(".x-heads > summary")
    page.locator(".x-heads details > summary").first.click()
    page.wait_for_selector(".x-heads table")
    parts = page.locator(".x-heads table .x-number").all_text_contents()
    weight = page.evaluate(
        "(id) => { const g = OpenCLT.explorer.graphPage.graph(); return g.fedBy(g.node(id))[0].weight; }", node
    )
    assert sum(float(part.replace("\u2212", "-").replace("+", "")) for part in parts) == pytest.approx(weight, rel=0.1)


def test_a_head_of_an_edge_says_why_it_looked(page: Any) -> None:
    select(page, drawn(page, "output")[0])
    page.click(".x-heads > summary")
    page.locator(".x-heads details > summary").first.click()
    page.wait_for_selector(".x-heads .x-why")
    carried = page.locator(".x-heads table .x-number").first.text_content()
    page.locator(".x-why > summary").first.click()
    page.wait_for_selector(".x-look table")
    look = page.locator(".x-look").first.inner_text()
    assert "of the attention" in look
    assert carried[0] in look
    assert page.locator(".x-look").first.locator("tbody tr").count() >= 1


_PROMPTS = {
    "empty": "",
    "blank": " ",
    "long": "word " * 2000,
    "emoji": "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 capital",
    "right to left": "\u0627\u0644\u0639\u0631\u0628 is",
    "tab": "a\tb",
}


@pytest.mark.parametrize("prompt", _PROMPTS.values(), ids=_PROMPTS.keys())
def test_every_prompt_gives_a_picture_or_a_sentence(page: Any, prompt: str) -> None:
    page.fill("#prompt", prompt)
    page.click("#trace")
    page.wait_for_function(
        "document.querySelector('#banner .x-error') || document.getElementById('graph').dataset.graph !== 'start'"
    )
    settled(page)
    assert len(page.inner_text("body")) > 200
    assert drawn(page)
    error = page.locator("#banner .x-error")
    if error.count():
        assert error.inner_text().rstrip("\u00d7\n ").endswith(".")


def test_a_line_break_in_a_prompt_is_a_token_of_the_picture(page: Any) -> None:
    page.evaluate("() => void OpenCLT.explorer.graphPage.tracePrompt('The cat\\nsat on the')")  # no field holds one
    page.wait_for_function("document.getElementById('graph').dataset.graph !== 'start'")
    settled(page)
    assert any("⏎" in text for text in page.locator("#graph .oc-token").all_text_contents())
    assert page.locator("#banner .x-error").count() == 0


def test_the_weights_of_the_circuit_are_listed(page: Any) -> None:
    pin(page, *drawn(page, "feature")[:3])
    page.click("#weights")
    rows = page.locator("#suggestions tbody tr")
    edges = page.evaluate("OpenCLT.explorer.circuit.shown().edges.map(([, , weight]) => Math.abs(weight))")
    assert rows.count() == min(40, len(edges))
    first = rows.first.locator(".x-number").inner_text().replace("\u2212", "-")
    assert abs(float(first)) == pytest.approx(max(edges), rel=0.02)
    page.click("#suggestions >> text=Close")
    assert rows.count() == 0


def test_another_prompt_says_where_the_pins_are(page: Any) -> None:
    pin(page, drawn(page, "feature")[0])
    page.fill("#prompt", _PROMPT)
    page.press("#prompt", "Enter")
    page.wait_for_selector("#banner .x-info")
    assert session_of(page)["pins"] == []
    page.click("#undo")
    page.wait_for_function("OpenCLT.explorer.store.session().pins.length === 1")
