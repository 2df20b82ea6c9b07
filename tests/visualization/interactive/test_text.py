"""Text in interactive figures: a text from a prompt, token, label or name is shown as it is, and is never markup."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_clt import visualization_utils as utils
from open_clt.features.records import FeatureRecord, TokenEffect
from open_clt.graphs.supernodes import Supernode, group
from open_clt.transcoders.feature import Feature
from open_clt.visualization.interactive.saving import page_of
from open_clt.visualization.interactive.text import plain_text, title_text, token_text, wrapped_text
from open_clt.visualization.labels import readable, token_label
from tests.graphs.hand_graph import hand_graph
from tests.visualization.interactive.pairs import CURVES, MARKUP, displayed, texts_in
from tests.visualization.test_report_figures import report

COUNT = len(MARKUP)
PLOTLYS_OWN = re.compile(r'</?[bi]>|<br>|<span style="color:#666666">|</span>|<extra></extra>')
"""The markup that our figures use themselves."""


def record(feature: Feature, token: str) -> FeatureRecord:
    effects = (TokenEffect(token, 1.0),)
    return FeatureRecord(feature, 0.1, 2.0, (), effects, effects)


def graph_of_markup() -> Any:
    graph = hand_graph()
    tokens = tuple(MARKUP[index % COUNT] for index in range(len(graph.info.token_strings)))
    targets = tuple(MARKUP[-1 - index % COUNT] for index in range(len(graph.info.target_names)))
    info = replace(graph.info, prompt="".join(MARKUP), token_strings=tokens, target_names=targets, model=MARKUP[0])
    features = [Feature(node.layer, node.index) for node in map(graph.node, range(graph.n_nodes)) if node.kind == 0]
    return replace(graph, info=info, labels={feature: MARKUP[i % COUNT] for i, feature in enumerate(features)})


def figures_of_markup() -> dict[str, go.Figure]:
    """Figures in which every text that a user gives is one of the texts above."""
    square, graph = np.random.default_rng(0).random((COUNT, COUNT)), graph_of_markup()
    labels = {Feature(layer, 0): text for layer, text in enumerate(MARKUP)}
    records = [record(feature, text) for feature, text in labels.items()]
    named = report(MARKUP[0])._replace(model=MARKUP[1])
    features = [node for node in graph.ids() if node[0].isdigit()]
    title = " ".join(MARKUP)
    return {
        "heatmap": utils.interactive_feature_heatmap(square, MARKUP, MARKUP, title=title),
        "activity": utils.interactive_layer_activity(square, MARKUP, quantity=MARKUP[0]),
        "correlations": utils.interactive_cross_layer_correlations(square, MARKUP),
        "importance": utils.interactive_feature_importance(square[:, :1], labels=labels, records=records),
        "curves": utils.interactive_training_curves(CURVES, title=title),
        "report": utils.interactive_report(named._replace(graphs=(named.graphs[0]._replace(prompt=title),))),
        "comparison": utils.interactive_comparison([report(text) for text in MARKUP]),
        "graph": utils.interactive_attribution_graph(graph),
        "supernodes": utils.interactive_attribution_graph(
            group(graph, [Supernode(MARKUP[2], tuple(features[:2]))]), title=title
        ),
    }


@pytest.mark.parametrize("text", MARKUP)
def test_plotly_shows_a_text_as_it_is(text: str) -> None:
    assert displayed(token_text(text, 100)) == token_label(text, 100, any_font=True)
    assert displayed(plain_text(text)) == readable(text, any_font=True)
    assert displayed(wrapped_text(text, 100)) == readable(text, any_font=True)
    assert displayed(title_text(text, 1000.0, 14.0)) == readable(text, any_font=True)


@given(st.text(max_size=60))
def test_plotly_shows_any_text_as_it_is(text: str) -> None:
    shown = token_text(text, 1000)
    marks = "[\u2068\u2069]"
    assert displayed(shown) == re.sub(marks, "", token_label(text, 1000, any_font=True))
    assert not re.search(r"[<$]|%\{", shown)
    shown.encode()


@pytest.mark.parametrize("character", ["\u200b", "\u202e", "\u2028", "\u00ad", "\ud800", "\u3164", "\u0000", "\ufeff"])
def test_a_character_that_cannot_be_seen_is_shown_by_its_code(character: str) -> None:
    assert token_text(f"a{character}b") == f"a\\u{ord(character):04x}b"


def test_letters_from_right_to_left_do_not_turn_their_neighbours() -> None:
    assert token_text("שלום") == "\u2068שלום\u2069"
    assert token_text("a") == "a"


def test_a_token_of_a_language_without_our_font_keeps_its_letters() -> None:
    assert token_text("你好") == "你好"
    assert "你好" in str(cast(Any, utils.interactive_feature_density(np.ones((1, 2)), title="你好")).layout.title.text)


@pytest.mark.parametrize("name", figures_of_markup())
def test_no_text_of_a_figure_holds_markup_of_the_user(name: str) -> None:
    figure = figures_of_markup()[name]
    texts = list(texts_in(json.loads(cast(str, figure.to_json()))))
    left = [PLOTLYS_OWN.sub("", text) for text in texts]
    assert [text for text in left if re.search(r"<(?!eot>)|\$|%\{(?!x|y|text)", text)] == []
    joined = displayed("\n".join(texts))
    assert "<b>x</b>" in joined or "<img src=x" in joined
    assert not re.search("[\u200b\u202e\ud800]", joined)


class Elements(HTMLParser):
    """The names of the elements of a page, and the number of its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)


@pytest.mark.parametrize("name", figures_of_markup())
def test_a_page_holds_its_own_elements_only(name: str) -> None:
    elements = Elements()
    elements.feed(page_of(figures_of_markup()[name]))
    assert set(elements.names) == {"html", "head", "meta", "title", "style", "body", "div", "script"}
    plain = Elements()
    plain.feed(page_of(utils.interactive_feature_density(np.ones((1, 2)))))
    assert elements.names.count("script") == plain.names.count("script")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium")
@pytest.mark.parametrize("name", ["heatmap", "graph", "comparison", "importance"])
def test_a_browser_shows_the_texts_without_a_network(name: str, tmp_path: Path) -> None:
    page = utils.save_interactive(figures_of_markup()[name], tmp_path / "figure.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--proxy-server=127.0.0.1:9"]
    command += [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    document = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout
    body = re.sub(r"<script.*?</script>", "", document, flags=re.DOTALL)
    assert "<img" not in body
    shown = html.unescape(re.sub(r"<[^>]*>", "", body))
    for text in MARKUP[:4]:
        assert token_label(text, 14) in shown or text in shown, text
