"""The report in Chromium, without a network: what it draws is what Python computed, and it answers mouse and keys."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from open_clt import OpenCrossLayerTranscoder, write_report
from open_clt.embedded.corpus import generate_texts
from open_clt.graphs.supernodes import Supernode, group
from open_clt.transcoders.feature import Feature
from open_clt.visualization.graph.page_data import graph_data
from open_clt.visualization.page import data_script, page

PROMPT = "The capital of the state containing Dallas is"
HOSTILE = "</script><img src=x onerror=document.title='ran'>&\"'<!--"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
SIZES = ("1280,800", "1920,1080")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]


@pytest.fixture(scope="module")
def clt() -> OpenCrossLayerTranscoder:
    return OpenCrossLayerTranscoder.from_pretrained()


@pytest.fixture(scope="module")
def report(clt: OpenCrossLayerTranscoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    return clt.write_report(PROMPT, path, texts=list(generate_texts(200, seed=1)))


@pytest.fixture(scope="module")
def small_report(clt: OpenCrossLayerTranscoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose graph is small enough for labels, which are hostile."""
    path = tmp_path_factory.mktemp("small") / "report.html"
    labels = {Feature(layer, index): HOSTILE for layer in range(5) for index in range(768)}
    texts = [f"{PROMPT}{HOSTILE}" * 8]
    parts = (clt.language_model, clt.transcoder, PROMPT, path)
    return write_report(*parts, labels=labels, texts=texts, node_threshold=0.5, max_ablations=0)


Opened = Callable[..., str]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """A function that opens a report and returns the page after its scripts ran; it writes nothing to the console."""

    def dump(report: Path, address: str = "", *, size: str = SIZES[0]) -> str:
        command = [str(CHROMIUM), *OPTIONS, f"--window-size={size}", f"--user-data-dir={tmp_path / 'profile'}"]
        process = subprocess.run(
            [*command, "--dump-dom", f"{report.as_uri()}{address}"], capture_output=True, check=True, timeout=120
        )
        log = process.stderr.decode(errors="replace")
        assert [line for line in log.splitlines() if "CONSOLE" in line] == []
        return process.stdout.decode(errors="replace")

    return dump


@pytest.fixture
def run_in(opened: Opened, tmp_path: Path) -> Callable[..., Any]:
    """A function that runs a function body in the page of a report and returns the value that it returns."""

    def run(report: Path, script: str, **settings: Any) -> Any:
        page = report.read_text().replace(
            "</body>", f"<script>{HELPERS}\nanswer((() => {{{script}}})());</script></body>"
        )
        changed = tmp_path / "changed.html"
        changed.write_text(page)
        result = re.search(r'<pre id="answer">(.*?)</pre>', opened(changed, **settings), re.DOTALL)
        assert result is not None, "the script did not end"
        return json.loads(html.unescape(result[1]))

    return run


HELPERS = """
const answer = (value) => {
  const element = document.createElement("pre");
  element.id = "answer";
  element.textContent = JSON.stringify(value);
  document.body.append(element);
};
const picture = document.querySelector(".oc-picture");
const nodes = () => [...document.querySelectorAll(".oc-node:not(.oc-hidden)")];
const node = (id) => nodes().find((each) => each.dataset.node === id);
const selected = () => document.getElementById("graph").dataset.selected;
const press = (key, target = document.activeElement) =>
  target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const at = (element) => {
  const box = (element.querySelector(".oc-dot") || element).getBoundingClientRect();
  return { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true };
};
const point = (element) => picture.dispatchEvent(new PointerEvent("pointermove", at(element)));
const click = (element) => picture.dispatchEvent(new MouseEvent("click", at(element)));
const boxes = (selector) => [...document.querySelectorAll(selector)].map((each) => {
  const { left, right, top, bottom } = each.getBoundingClientRect();
  return { text: each.textContent, left, right, top, bottom };
}).filter((box) => box.text.trim());
"""


def data_of(report: Path) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', report.read_text(), re.DOTALL)
    assert match is not None
    return json.loads(match[1])


def attributes_of(page: str) -> dict[str, str]:
    """The attributes of the graph's element that the page's own check writes."""
    match = re.search(r'<section id="graph"[^>]*>', page)
    assert match is not None
    return {name: html.unescape(value) for name, value in re.findall(r'data-(\w+)="([^"]*)"', match[0])}


def strongest(graph: dict[str, Any], chosen: dict[str, Any]) -> list[tuple[dict[str, Any], float]]:
    """The nodes that feed a node most, with the weights of their edges."""
    index = graph["nodes"].index(chosen)
    links = [(graph["nodes"][source], weight) for source, target, weight in graph["edges"] if target == index]
    return sorted(links, key=lambda link: -abs(link[1]))


def most_influential(graph: dict[str, Any]) -> dict[str, Any]:
    return max((node for node in graph["nodes"] if node["feature"]), key=lambda node: node["influence"])


def test_every_node_and_edge_is_drawn(report: Path, small_report: Path, opened: Opened) -> None:
    for path, labelled in ((report, "false"), (small_report, "true")):
        graph = data_of(path)["graph"]
        drawn = attributes_of(opened(path))
        assert (int(drawn["nodes"]), int(drawn["edges"])) == (len(graph["nodes"]), len(graph["edges"]))
        assert (drawn["selected"], drawn["labelled"]) == ("", labelled)


def test_an_address_selects_a_node_and_lists_its_strongest_edges(report: Path, opened: Opened) -> None:
    graph = data_of(report)["graph"]
    chosen = most_influential(graph)
    page = opened(report, f"#node={quote(chosen['id'])}")
    assert attributes_of(page)["selected"] == chosen["id"]
    page = page[page.index("<main") : page.index("</main>")]
    assert page.count('aria-selected="true"') == 1
    fed_by = strongest(graph, chosen)[:9]
    panel = page[page.index('<aside id="panel"') :]
    names = [html.unescape(name) for name in re.findall(r'<span class="oc-name[^"]*">(.*?)</span>', panel)]
    signs = re.findall(r'<span class="oc-number">(.)', panel)
    assert names[: len(fed_by)] == [node["brief"] or node["label"] for node, _ in fed_by]
    assert signs[: len(fed_by)] == ["+" if weight > 0 else "\u2212" for _, weight in fed_by]
    assert f"Feature {chosen['feature']}" in panel
    assert 'class="f-example"' in panel


def test_a_supernode_is_a_box_that_lists_its_members(
    clt: OpenCrossLayerTranscoder, run_in: Callable[..., Any], tmp_path: Path
) -> None:
    graph = clt.attribute(PROMPT, max_feature_nodes=60).prune(node_threshold=0.6)
    features = [name for name in graph.ids() if re.fullmatch(r"\d+:\d+:\d+", name)][:3]
    grouped = group(graph, [Supernode(HOSTILE, tuple(features))])
    data = data_script("data", {"graph": graph_data(grouped), "features": {}, "advice": "none"})
    tools = '<span class="r-toggles"></span>'
    places = '<section id="graph" style="height: 700px"></section><aside id="panel"></aside><div id="features"></div>'
    scripts = ("elements.js", "feature.js", "graph.js", "panel.js", "node_search.js", "report.js")
    path = tmp_path / "grouped.html"
    path.write_text(
        page("grouped", tools + places, styles=("graph.css", "feature.css", "report.css"), scripts=scripts, data=data)
    )
    script = """
      const box = document.querySelector(".oc-group");
      click(box);
      const members = [...document.querySelectorAll("#panel .oc-member")].map((each) => each.textContent);
      document.querySelector("#panel summary.oc-member").click();
      return [selected(), box.querySelectorAll(".oc-box").length, box.textContent, members, document.images.length];
    """
    chosen, boxes, text, members, images = run_in(path, script)
    assert (chosen, boxes, images) == (HOSTILE, 1, 0)
    assert "3 features" in text
    assert len(members) == 3


def test_an_unknown_address_selects_nothing(report: Path, opened: Opened) -> None:
    page = opened(report, "#node=%3Cimg%20src%3Dx%3E")
    assert attributes_of(page)["selected"] == ""
    assert "Nothing is selected" in page


def test_a_click_and_keys_select(report: Path, run_in: Callable[..., Any]) -> None:
    graph = data_of(report)["graph"]
    chosen = most_influential(graph)
    script = f"""
      const steps = [];
      const element = node({json.dumps(chosen["id"])});
      click(element); steps.push(selected());
      press("3", document.body); steps.push(selected());
      press("Escape", document.body); steps.push(selected());
      element.focus(); press("Enter"); steps.push(selected());
      click(element); steps.push(selected());
      return steps;
    """
    third = strongest(graph, chosen)[2][0]["id"]
    assert run_in(report, script) == [chosen["id"], third, "", chosen["id"], ""]


def test_edges_are_faint_at_rest_and_those_of_the_selected_node_stand_out(
    report: Path, run_in: Callable[..., Any]
) -> None:
    graph = data_of(report)["graph"]
    chosen = most_influential(graph)
    script = f"""
      const look = () => [...document.querySelectorAll(".oc-edge")].map((each) => {{
        const style = getComputedStyle(each);
        return [each.classList.contains("oc-near"), Number(style.strokeOpacity), style.stroke, style.strokeDasharray];
      }});
      const rest = look();
      click(node({json.dumps(chosen["id"])}));
      return [rest, look()];
    """
    rest, marked = run_in(report, script)
    faint = sorted(opacity for _, opacity, _, _ in rest)
    assert faint[0] < 0.1
    assert faint[len(faint) // 2] < 0.2
    assert faint[-1] > 0.5
    index = graph["nodes"].index(chosen)
    assert sum(near for near, *_ in marked) == sum(index in edge[:2] for edge in graph["edges"])
    assert {(near, opacity) for near, opacity, *_ in marked} == {(True, 0.75), (False, 0.05)}
    colours = {(colour, dashes != "none") for _, _, colour, dashes in marked}
    assert colours == {("rgb(0, 114, 178)", False), ("rgb(213, 94, 0)", True)}
    assert sum(dashes != "none" for *_, dashes in marked) == sum(edge[2] < 0 for edge in graph["edges"])


def test_the_flag_names_the_node_and_moves_nothing(report: Path, run_in: Callable[..., Any]) -> None:
    chosen = most_influential(data_of(report)["graph"])
    script = f"""
      const element = node({json.dumps(chosen["id"])}), before = nodes().map((each) => each.innerHTML).join();
      point(element);
      const flag = document.querySelector(".oc-flag"), box = flag.getBoundingClientRect();
      const {{ clientX, clientY }} = at(element);
      const covers = box.left <= clientX && clientX <= box.right && box.top <= clientY && clientY <= box.bottom;
      return [flag.textContent, flag.classList.contains("oc-shown"), covers, box.width > 0 && box.left >= 0,
        before === nodes().map((each) => each.innerHTML).join()];
    """
    text, *facts = run_in(report, script)
    assert facts == [True, False, True, True]
    for part in (chosen["label"], chosen["feature"], chosen["token"]):
        assert part in text


def test_arrows_reach_every_node_from_every_node_and_tab_enters_once(report: Path, run_in: Callable[..., Any]) -> None:
    script = """
      const moves = {};
      for (const each of nodes()) {
        moves[each.dataset.node] = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"].map((key) => {
          each.focus();
          press(key);
          return document.activeElement.dataset.node;
        });
      }
      return [moves, document.querySelectorAll('.oc-node[tabindex="0"]').length];
    """
    moves, stops = run_in(report, script)
    assert stops == 1
    assert set(moves) == {node["id"] for node in data_of(report)["graph"]["nodes"]}
    for start in moves:
        seen, waiting = {start}, deque([start])
        while waiting:
            for reached in moves[waiting.popleft()]:
                if reached not in seen:
                    seen.add(reached)
                    waiting.append(reached)
        assert seen == set(moves), f"not every node is reached from {start}"


def test_kinds_of_nodes_can_be_hidden(report: Path, run_in: Callable[..., Any]) -> None:
    graph = data_of(report)["graph"]
    error = next(node for node in graph["nodes"] if node["shape"] == "error")
    script = f"""
      click(node({json.dumps(error["id"])}));
      const before = selected();
      document.querySelector('input[data-shape="error"]').click();
      const host = document.getElementById("graph");
      return [before, selected(), Number(host.dataset.nodes), Number(host.dataset.edges)];
    """
    hidden = {index for index, node in enumerate(graph["nodes"]) if node["shape"] == "error"}
    edges = [edge for edge in graph["edges"] if not hidden & set(edge[:2])]
    assert run_in(report, script) == [error["id"], "", len(graph["nodes"]) - len(hidden), len(edges)]


@pytest.mark.parametrize("size", SIZES)
def test_texts_are_legible_and_do_not_overlap(
    report: Path, small_report: Path, run_in: Callable[..., Any], size: str
) -> None:
    script = """
      const scale = picture.getBoundingClientRect().width / picture.viewBox.baseVal.width;
      const sizes = [...document.querySelectorAll("body *")].filter((each) => [...each.childNodes].some(
        (child) => child.nodeType === 3 && child.textContent.trim()) && each.getClientRects().length).map(
        (each) => parseFloat(getComputedStyle(each).fontSize) * (picture.contains(each) ? scale : 1));
      const page = document.scrollingElement;
      return { texts: boxes(".oc-picture text"), rows: boxes(".oc-links .oc-name"), smallest: Math.min(...sizes),
        wider: page.scrollWidth - page.clientWidth };
    """
    for path in (report, small_report):
        seen = run_in(path, script, size=size)
        assert seen["smallest"] >= 10.99
        assert seen["wider"] <= 0
        assert len(seen["texts"]) >= 15
        assert overlapping(seen["texts"]) == []
        assert overlapping(seen["rows"]) == []


def overlapping(boxes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes overlap by more than a pixel."""
    return [
        (one["text"], other["text"])
        for index, one in enumerate(boxes)
        for other in boxes[:index]
        if min(one["right"], other["right"]) - max(one["left"], other["left"]) > 1
        and min(one["bottom"], other["bottom"]) - max(one["top"], other["top"]) > 1
    ]


def test_hostile_labels_and_texts_stay_texts(small_report: Path, run_in: Callable[..., Any]) -> None:
    script = """
      const feature = nodes().find((each) => each.classList.contains("oc-feature"));
      click(feature); point(feature);
      const places = [".oc-title", ".oc-flag b", ".r-feature summary span"];
      const texts = new Set(places.map((each) => document.querySelector(each).textContent));
      const examples = document.querySelectorAll(".f-example").length;
      return [document.images.length, document.title, [...texts], examples];
    """
    images, title, texts, examples = run_in(small_report, script)
    assert images == 0
    assert title != "ran"
    assert texts == [HOSTILE]
    assert examples > 0


def test_a_feature_of_the_list_shows_its_examples_when_it_is_opened(
    report: Path, opened: Opened, tmp_path: Path
) -> None:
    script = 'document.querySelector(".r-feature summary").click();'
    changed = tmp_path / "opened.html"
    changed.write_text(report.read_text().replace("</body>", f"<script>{script}</script></body>"))
    page = opened(changed)
    section = page[page.index('<div id="features"') :]
    assert 'class="f-example"' in section
    assert "Show in the graph" in section
