"""The report of a prompt: one file that needs no network, in which no text of a prompt or a label becomes HTML."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.config import TopKConfig
from open_clt.errors import AttributionError, CheckpointError, ConfigError, TextError
from open_clt.features.feature_files import write_feature_files
from open_clt.features.records import FeatureExample, FeatureRecord, TokenEffect
from open_clt.graphs.operations import sizes_at_replacement
from open_clt.graphs.targets import FeaturePreactivation
from open_clt.language.language_model import LanguageModel
from open_clt.language.transcoders.neurons import neurons_of
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder
from open_clt.visualization.page import asset, data_script, escaped, page
from open_clt.visualization.prompt_report.predictions import predictions
from open_clt.visualization.prompt_report.report import write_report
from tests.random_transcoders import random_transcoder
from tests.refusals import refuses
from tests.tiny_models import TEXTS

HOSTILE = "</script><img src=x onerror=alert(1)>&amp;\"'<!--\u2028"
LARGEST = 6_000_000


class Parsed(HTMLParser):
    """The elements, attributes and texts of a page, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.comments: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def data_of(text: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


def largest(record: dict[str, Any]) -> list[Any]:
    """The examples of a feature with the largest activations."""
    return record["groups"][0]["examples"]


@pytest.fixture(scope="module")
def transcoder(tiny_gpt2: LanguageModel) -> Transcoder:
    return random_transcoder(tiny_gpt2, nonlinearity=TopKConfig(k=4))


@pytest.fixture(scope="module")
def hostile_report(tiny_gpt2: LanguageModel, transcoder: Transcoder, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report whose prompt, labels, examples and further lines are hostile."""
    graph = attribute(tiny_gpt2, transcoder, HOSTILE)
    features = {Feature(int(x), int(y)) for x, y in zip(graph.nodes.layer, graph.nodes.index, strict=True)}
    labels = {feature: HOSTILE for feature in features if min(feature) >= 0}
    path = write_report(
        tiny_gpt2,
        transcoder,
        HOSTILE,
        tmp_path_factory.mktemp("report") / "report.html",
        texts=[*TEXTS, HOSTILE * 4],
        labels=labels,
        max_ablations=2,
        facts={HOSTILE: HOSTILE},
    )
    return path.read_text()


def test_no_element_or_attribute_comes_from_text(hostile_report: str) -> None:
    parsed = Parsed(hostile_report)
    tags = {tag for tag, _ in parsed.elements}
    assert "img" not in tags
    assert [tag for tag, _ in parsed.elements].count("script") == 2
    assert [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")] == []
    assert parsed.comments == []
    shown = [text for text in parsed.texts if HOSTILE in text]
    assert len(shown) >= 4, "the title, the heading, the fact and the prompt are not shown as they are"


def test_the_data_hold_texts_as_they_are(hostile_report: str) -> None:
    data = data_of(hostile_report)
    labels = {node["label"] for node in data["graph"]["nodes"] if node["feature"]}
    assert labels == {HOSTILE}
    examples = [example for record in data["features"].values() for example in largest(record)]
    assert any("onerror" in "".join(tokens) for tokens, _, _ in examples)


def test_scripts_make_no_html_of_texts() -> None:
    for name in ("elements.js", "feature.js", "graph.js", "panel.js", "node_search.js", "report.js", "dashboards.js"):
        assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", asset(name)) == []


def test_the_page_needs_no_network(hostile_report: str) -> None:
    addresses = set(re.findall(r"\b(?:https?|wss?|ftp):[^\s\"'`)]*|(?<=[\"'(])//[\w.]+", hostile_report))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name of SVG, which nothing requests
    parsed = Parsed(hostile_report)
    assert [element for element in parsed.elements if element[0] in ("link", "base", "iframe", "object")] == []
    assert all("src" not in attributes for _, attributes in parsed.elements)
    policies = [each["content"] for tag, each in parsed.elements if tag == "meta" and "http-equiv" in each]
    assert len(policies) == 1
    assert str(policies[0]).startswith("default-src 'none'")


def test_the_report_shows_predictions_graph_faithfulness_and_how_it_was_made(
    tiny_gpt2: LanguageModel, transcoder: Transcoder, hostile_report: str
) -> None:
    parsed = Parsed(hostile_report)
    headings = [text for (tag, _), text in zip(parsed.elements, parsed.texts, strict=False) if tag]
    assert headings
    for heading in ("Features", "Tokens and predictions", "Faithfulness", "How it was made"):
        assert heading in parsed.texts
    graph = attribute(tiny_gpt2, transcoder, HOSTILE).prune()
    values = data_of(hostile_report)["graph"]
    assert {node["id"] for node in values["nodes"]} <= set(graph.ids())
    assert len(values["tokens"]) == len(graph.info.tokens)
    assert 0 < len(values["edges"]) <= graph.n_edges
    assert len(hostile_report.encode()) < LARGEST


def test_predictions_are_those_of_both_models(tiny_gpt2: LanguageModel, transcoder: Transcoder) -> None:
    tokens = tiny_gpt2.tokenize(TEXTS[0])
    replacement = ReplacementModel(tiny_gpt2, transcoder)
    rows = predictions(replacement, tokens, count=3)
    assert [row.token for row in rows] == tiny_gpt2.token_strings(tokens)
    for logits, side in (
        (tiny_gpt2.logits(tokens[None]), "original"),
        (replacement.logits(tokens[None]), "replacement"),
    ):
        shares, ids = logits[0].softmax(-1).topk(3)
        for row, row_shares, row_ids in zip(rows, shares, ids, strict=True):
            likely = getattr(row, side)
            assert [each.token for each in likely] == tiny_gpt2.token_strings(row_ids)
            torch.testing.assert_close(torch.tensor([each.probability for each in likely]), row_shares)


def test_examples_come_from_feature_files(tiny_gpt2: LanguageModel, transcoder: Transcoder, tmp_path: Path) -> None:
    graph = attribute(tiny_gpt2, transcoder, TEXTS[0])
    first = Feature(int(graph.nodes.layer[0]), int(graph.nodes.index[0]))
    example = FeatureExample(("a", " stored", " text"), torch.tensor([0.0, 2.0, 1.0]), 1)
    record = FeatureRecord(first, 0.25, 2.0, (example,), (TokenEffect(" up", 1.0),), (TokenEffect(" down", -1.0),))
    config = transcoder.config
    write_feature_files([record], tmp_path, n_layers=config.n_layers, n_features=config.n_features)
    path = write_report(
        tiny_gpt2, transcoder, TEXTS[0], tmp_path / "a.html", features=tmp_path, max_ablations=0, node_threshold=1.0
    )
    stored = data_of(path.read_text())["features"]
    assert list(stored) == [str(first)]
    assert largest(stored[str(first)]) == [[["a", " stored", " text"], [1, 2.0, 2, 1.0], 1]]
    assert stored[str(first)]["density"] == 0.25


def test_examples_from_texts_are_the_strongest_contexts(
    tiny_gpt2: LanguageModel, transcoder: Transcoder, tmp_path: Path
) -> None:
    path = write_report(tiny_gpt2, transcoder, TEXTS[0], tmp_path / "a.html", texts=TEXTS * 3, max_ablations=0)
    records = data_of(path.read_text())["features"].values()
    assert records
    for record in records:
        peaks = [abs(active[2 * active[::2].index(peak) + 1]) for _, active, peak in largest(record)]
        assert peaks == sorted(peaks, reverse=True)
        assert [abs(record["max"])] == peaks[:1] or not record["density"]


def test_features_are_compared_with_neurons_of_the_same_graph(
    tiny_gpt2: LanguageModel, transcoder: Transcoder, tmp_path: Path
) -> None:
    path = write_report(tiny_gpt2, transcoder, TEXTS[0], tmp_path / "a.html", max_ablations=0, neurons=40)
    parsed = Parsed(path.read_text())
    assert "Features and neurons" in parsed.texts
    cells = parsed.texts[parsed.texts.index("neurons") :]
    graph = attribute(tiny_gpt2, transcoder, TEXTS[0])
    neurons = attribute(tiny_gpt2, "neurons", TEXTS[0], max_feature_nodes=40)
    for name, values in {
        "active": (f"{graph.info.n_active_features:,}", f"{neurons.info.n_active_features:,}"),
        "with rows in the graph": (f"{graph.info.n_active_features:,}", "40"),
        "replacement score of the whole graph": tuple(f"{each.scores().replacement:.3f}" for each in (graph, neurons)),
        "needed for a replacement score of 0.5": tuple(
            "not reached" if math.isnan(size) else f"{size:,.0f}"
            for size in (sizes_at_replacement(each, [0.5])[0.5] for each in (graph, neurons))
        ),
    }.items():
        row = cells.index(name)
        assert tuple(cells[row + 1 : row + 3]) == values


def test_neurons_are_not_compared_with_neurons(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    with refuses(ConfigError, "neurons"):
        write_report(tiny_gpt2, neurons_of(tiny_gpt2), TEXTS[0], tmp_path / "a.html", neurons=40)
    with refuses(ConfigError, "neurons", "target"):
        target = FeaturePreactivation(layer=0, feature=1)
        write_report(tiny_gpt2, random_transcoder(tiny_gpt2), TEXTS[0], tmp_path / "a.html", neurons=40, targets=target)
    with refuses(ConfigError, "neurons", 0):
        write_report(tiny_gpt2, neurons_of(tiny_gpt2), TEXTS[0], tmp_path / "a.html", neurons=0)


@pytest.mark.parametrize("name", ["report", "report.txt", "report.pdf"])
def test_a_path_that_is_not_html_is_refused_before_anything_is_computed(
    tiny_gpt2: LanguageModel, transcoder: Transcoder, tmp_path: Path, name: str
) -> None:
    with refuses(ConfigError, name, ".html"):
        write_report(tiny_gpt2, transcoder, "", tmp_path / name)


def test_mistakes_are_one_sentence_and_write_nothing(
    tiny_gpt2: LanguageModel, transcoder: Transcoder, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    with refuses(ConfigError, tmp_path / "none"):
        write_report(tiny_gpt2, transcoder, TEXTS[0], report, features=tmp_path / "none")
    with refuses(CheckpointError, "index.json.gz"):
        write_report(tiny_gpt2, transcoder, TEXTS[0], report, features=tmp_path)
    with refuses(AttributionError, 1.5):
        write_report(tiny_gpt2, transcoder, TEXTS[0], report, node_threshold=1.5, max_ablations=0)
    with refuses(TextError):
        write_report(tiny_gpt2, transcoder, TEXTS[0], report, texts=[], max_ablations=0)
    assert not report.exists()


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "\u2028\u2029", "&lt;", "\ud800"])
def test_values_and_titles_come_back_as_they_were(text: str) -> None:
    content = page(text, escaped(text), styles=[], scripts=[], data=data_script("data", {"text": text}))
    written = content.encode(errors="backslashreplace").decode()
    assert data_of(written) == {"text": text}
    assert [tag for tag, _ in Parsed(written).elements].count("script") == 2
    assert not {"\u2028", "\u2029"} & set(data_script("data", [text]))
