"""Views of records in notebooks: every view is short HTML without text that a browser would run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from importlib import import_module
from typing import Any

import pytest
import torch

from open_clt.evaluation.evaluate import Evaluation
from open_clt.evaluation.faithfulness_report import Agreement, Effects, Faithfulness, InfluenceCheck, Perturbation
from open_clt.evaluation.measured_on import MeasuredOn
from open_clt.evaluation.report import GraphReport, Report
from open_clt.features.firing import TopFeature, TopFeatures
from open_clt.features.records import ExampleGroup, FeatureExample, FeatureLabel, FeatureRecord, TokenEffect, TokenShare
from open_clt.graphs.operations import compare_graphs
from open_clt.graphs.supernodes import Supernode, group
from open_clt.html_repr import html_repr
from open_clt.language.language_model import LanguageModel
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.replacement.comparison import Comparison, Continuations, LogitComparison
from open_clt.replacement.generation import Generation
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Intervention
from open_clt.replacement.model import ReplacementModel
from open_clt.training.data.module import HarvestCost
from open_clt.training.result import TrainingResult
from open_clt.training.step.module import Curves
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.metrics import DENSITY_EDGES, LayerMetrics, TranscoderMetrics
from open_clt.visualization.notebook.html import Markup, escaped
from open_clt.visualization.notebook.views import VIEWS, view_of
from tests.graphs.hand_graph import hand_graph
from tests.random_transcoders import random_transcoder

BAD = "<script>alert(1)</script><img src=x onerror='alert(1)'>&\"'"
LARGEST = 300_000
"""Largest number of characters of a view."""

LOGITS = LogitComparison(1.0, 1.5, 0.25, 0.75)
WRITTEN = [Generation(BAD, f" and {word} {BAD}", torch.arange(3), 2) for word in ("walnut", "cherry")]
METRICS = TranscoderMetrics(100, (LayerMetrics(0.1, 4.0, 0.2, 0.0),) * 20, (1,) * (len(DENSITY_EDGES) - 1))
EVALUATION = Evaluation(METRICS, LOGITS, 3.0, (LOGITS,) * 20)
CURVES = Curves([1, 2, 3], *([1.0, 2.0, 3.0] for _ in range(5)))
RECORD = FeatureRecord(
    feature=Feature(1, 2),
    density=0.25,
    max_activation=3.0,
    examples=(FeatureExample((BAD, "\n", " b"), torch.tensor([3.0, 0.0, -1.0]), 0),),
    top_tokens=(TokenEffect(BAD, 1.0),),
    bottom_tokens=(TokenEffect("", -1.0),),
    histogram=(3.0, 2.0, 0.0),
    groups=(ExampleGroup(BAD, (FeatureExample((BAD,), torch.ones(1), 0),)),),
    fires_on=(TokenShare(BAD, 0.5),),
    label=FeatureLabel(BAD, automatic=True),
)
PAIRS = Effects(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
FAITHFULNESS = Faithfulness(
    (BAD,), PAIRS, PAIRS, InfluenceCheck(torch.ones(2), torch.ones(2)), (Perturbation(1, 0.5, 0.5, 2),),
    Agreement(0.1, False, 0.5),
)  # fmt: skip


def bad_graph() -> Any:
    graph = hand_graph(tokens=("<bos>", BAD, "\n"))
    info = replace(graph.info, prompt=BAD, model=BAD, target_names=(BAD,) * len(graph.info.target_names))
    return replace(graph, info=info, labels={Feature(0, 5): BAD})


def grouped() -> Any:
    return group(bad_graph(), [Supernode(BAD, ("0:2:5", "0:2:7"))])


def models(model: LanguageModel) -> dict[str, Any]:
    """Records that a language model makes."""
    transcoder = random_transcoder(model)
    clt = OpenCrossLayerTranscoder(model, num_features=24)
    clt._trained = True  # pyright: ignore[reportPrivateUsage]
    replacement = ReplacementModel(model, transcoder, layers=[0], error_correction=True)
    change = Intervention(layer=1, position=2, feature=3, value=2.0)
    return {
        "OpenCrossLayerTranscoder": clt,
        "LanguageModel": model,
        "Transcoder": transcoder,
        "ReplacementModel": replacement,
        "FeatureActivations": clt.get_feature_activations(BAD),
        "InterventionRecord": intervene(ReplacementModel(model, transcoder), BAD, change),
        "TrainingResult": TrainingResult(
            transcoder, CURVES, METRICS, 0.1, 3, 100, 1.5, finished=False, harvest=HarvestCost(0.0, 0.0, 0.0, 0.0)
        ),
    }


RECORDS: dict[str, Callable[[], Any]] = {
    "FeatureRecord": lambda: RECORD,
    "TopFeatures": lambda: TopFeatures([TopFeature(Feature(0, index), 1, BAD, -2.0) for index in range(99)]),
    "AttributionGraph": bad_graph,
    "GroupedGraph": grouped,
    "GraphComparison": lambda: compare_graphs(bad_graph(), hand_graph()),
    "Faithfulness": lambda: FAITHFULNESS,
    "Comparison": lambda: Comparison(LOGITS, 0.5, 1.0, 3.0, Continuations(*WRITTEN), BAD),
    "LogitComparison": lambda: LOGITS,
    "Generation": lambda: WRITTEN[0],
    "Evaluation": lambda: EVALUATION,
    "Report": lambda: Report(
        BAD, BAD, {}, 9, MeasuredOn(BAD, 1, 2, ""), EVALUATION, ((0.0,) * 7,) * 20, (GraphReport(BAD, 0.5, 0.5),)
    ),
    "TranscoderMetrics": lambda: METRICS,
    "Curves": lambda: CURVES,
}
FROM_MODELS = [name.rpartition(".")[2] for name in VIEWS if name.rpartition(".")[2] not in RECORDS]


class Elements(HTMLParser):
    """The tags of a page, the attributes that run code, and whether all elements are closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(page: str) -> None:
    elements = Elements(page)
    assert elements.open == []
    assert elements.handlers == []
    assert not {"script", "iframe", "object", "link"} & set(elements.tags)
    assert "src=x" not in page.replace("&lt;img src=x", "")
    assert 0 < len(page) < LARGEST


@pytest.mark.parametrize("name", RECORDS)
def test_the_view_of_a_record_is_short_and_escapes_all_texts(name: str) -> None:
    record = RECORDS[name]()
    assert type(record).__name__ == name
    page = record._repr_html_()
    assert page is not None
    check(page)


@pytest.mark.slow
def test_the_view_of_what_a_model_makes_is_short_and_escapes_all_texts(tiny_gpt2: LanguageModel) -> None:
    made = models(tiny_gpt2)
    assert set(made) == set(FROM_MODELS)
    for record in made.values():
        check(record._repr_html_())


def test_every_class_of_the_table_has_its_view(tiny_gpt2: LanguageModel) -> None:
    for name, view in VIEWS.items():
        module, _, cls = name.rpartition(".")
        assert getattr(import_module(module), cls)._repr_html_ is html_repr
        function = view.partition(".")[2]
        assert callable(getattr(import_module(f"open_clt.visualization.notebook.{view.partition('.')[0]}"), function))


def test_a_view_runs_no_forward_pass(tiny_gpt2: LanguageModel) -> None:
    made, passes = models(tiny_gpt2), []
    hook = (tiny_gpt2.hook_name(0, "hook_resid_mid"), passes.append)
    with tiny_gpt2.hooks([hook]):
        for record in made.values():
            record._repr_html_()
    assert passes == []


def test_the_view_of_a_graph_has_its_picture_scores_and_check() -> None:
    graph = hand_graph()
    page, scores = graph._repr_html_(), graph.scores()  # pyright: ignore[reportPrivateUsage]
    assert page is not None
    assert "data:image/png;base64," in page
    assert f"{scores.replacement:.3f}" in page
    assert f"{scores.completeness:.3f}" in page
    assert escaped(graph.missing() or "rows add up") in page


def test_a_comparison_shows_both_continuations_and_what_they_share_only_quietly() -> None:
    page = view_of(RECORDS["Comparison"]())
    assert page is not None
    assert page.count("walnut") == page.count("cherry") == 1
    alone = view_of(RECORDS["Comparison"]()._replace(continuations=None))
    assert alone is not None
    assert "continuation" not in alone


def test_tokens_are_shaded_by_their_activations() -> None:
    page = view_of(RECORD)
    assert page is not None
    assert page.index("rgba(0,114,178,0.60)") < page.index("rgba(213,94,0,")


def test_a_dead_feature_says_so() -> None:
    dead = FeatureRecord(Feature(0, 1), 0.0, 0.0, (), (), ())
    page = view_of(dead)
    assert page is not None
    assert "active on no token" in page


def test_a_subclass_has_the_view_of_its_class_and_other_values_have_none(tiny_gpt2: LanguageModel) -> None:
    assert view_of(3) is None
    assert view_of(random_transcoder(tiny_gpt2, reach=1)) is not None


def test_markup_is_not_escaped_again() -> None:
    assert escaped(Markup("<b>")) == "<b>"
    assert escaped("<b>") == "&lt;b&gt;"
    assert escaped(float("nan")) == escaped(None)
