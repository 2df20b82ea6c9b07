"""The report in Chromium, without a network: what it draws is what Python computed."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from open_clt import OpenCrossLayerTranscoder
from open_clt.embedded.corpus import generate_texts

PROMPT = "The capital of the state containing Dallas is"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--window-size=1280,800",
    "--virtual-time-budget=3000",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

Open = Callable[[str], str]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clt = OpenCrossLayerTranscoder.from_pretrained()
    path = tmp_path_factory.mktemp("report") / "report.html"
    return clt.write_report(PROMPT, path, texts=list(generate_texts(200, seed=1)))


@pytest.fixture
def opened(report: Path, tmp_path: Path) -> Open:
    """A function that opens the report with the rest of its address, and returns the page after its scripts ran."""

    def dump(address: str = "") -> str:
        profile = f"--user-data-dir={tmp_path}"
        command = [str(CHROMIUM), *OPTIONS, profile, "--dump-dom", f"{report.as_uri()}{address}"]
        return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode(errors="replace")

    return dump


def data_of(report: Path) -> dict[str, object]:
    match = re.search(r'id="data">(.*?)</script>', report.read_text(), re.DOTALL)
    assert match is not None
    return json.loads(match[1])


def attributes_of(page: str) -> dict[str, str]:
    """The attributes of the graph's element that its self-check writes."""
    match = re.search(r'<section id="graph"[^>]*>', page)
    assert match is not None
    return {name: html.unescape(value) for name, value in re.findall(r'data-(\w+)="([^"]*)"', match[0])}


def test_every_node_and_edge_is_drawn(report: Path, opened: Open) -> None:
    graph = data_of(report)["graph"]
    drawn = attributes_of(opened())
    assert (int(drawn["nodes"]), int(drawn["edges"])) == (len(graph["nodes"]), len(graph["edges"]))
    assert drawn["selected"] == ""


def test_an_address_selects_a_node_and_lists_its_strongest_edges(report: Path, opened: Open) -> None:
    graph = data_of(report)["graph"]
    nodes = graph["nodes"]
    chosen = max((node for node in nodes if node["feature"]), key=lambda node: node["influence"])
    page = opened(f"#node={quote(chosen['id'])}")
    assert attributes_of(page)["selected"] == chosen["id"]
    page = page[page.index("<main") : page.index("</main>")]
    assert page.count('aria-selected="true"') == 1
    index = nodes.index(chosen)
    fed_by = sorted((e for e in graph["edges"] if e[1] == index), key=lambda edge: -abs(edge[2]))[:9]
    panel = page[page.index('<aside id="panel"') :]
    names = [html.unescape(name) for name in re.findall(r'<span class="oc-name[^"]*">(.*?)</span>', panel)]
    numbers = re.findall(r'<span class="oc-number">(.)', panel)
    assert names[: len(fed_by)] == [nodes[source]["label"] for source, _, _ in fed_by]
    assert numbers[: len(fed_by)] == ["+" if weight > 0 else "\u2212" for _, _, weight in fed_by]
    assert f"Feature {chosen['feature']}" in panel
    assert 'class="oc-example"' in panel


def test_an_unknown_address_selects_nothing(opened: Open) -> None:
    page = opened("#node=%3Cimg%20src%3Dx%3E")
    assert attributes_of(page)["selected"] == ""
    assert "Nothing is selected" in page
