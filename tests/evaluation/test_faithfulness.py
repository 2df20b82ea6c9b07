"""Faithfulness tells a true graph from a false one, and a perfect transcoder from a poor one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.errors import AttributionError
from open_clt.evaluation.faithfulness import faithfulness, predicted_changes, with_faithfulness
from open_clt.evaluation.faithfulness_report import pearson, spearman
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.targets import Direction, FeaturePreactivation, LogitDifference, Target, TokenLogits
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.replacement.interventions.intervene import InterventionRecord, intervene
from open_clt.replacement.interventions.intervention import Constrained, Intervention
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.feature import FeaturePlace
from tests.graphs.hand_graph import NAMES, hand_graph
from tests.random_transcoders import exact_transcoder, random_transcoder
from tests.refusals import refuses
from tests.tiny_models import write_gpt2

TEXT = "The cat sat on the dog"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> ReplacementModel:
    folder = write_gpt2(tmp_path_factory.mktemp("relu"), activation_function="relu", seed=5)
    return ReplacementModel(load_language_model(str(folder)), exact_transcoder(folder))


@pytest.fixture(scope="module")
def graph(exact: ReplacementModel) -> AttributionGraph:
    return attribute(exact.model, exact.transcoder, TEXT)  # type: ignore[arg-type]


def test_predictions_are_edges_or_sums_over_paths() -> None:
    graph, number = hand_graph(), {name: row for row, name in enumerate(NAMES)}
    ablated = torch.tensor([number["0:1:5"]])
    edges, paths = (predicted_changes(graph, ablated, paths=flag)[0] for flag in (False, True))
    assert edges[number["1:2:3"]] == paths[number["1:2:3"]] == -2.0
    assert edges[number["logit:2:40"]] == -0.5
    assert float(paths[number["logit:2:40"]]) == pytest.approx(-0.5 - 3.0 * 2.0 / 3.25)
    assert float(paths[number["logit:2:41"]]) == pytest.approx(2.0 * 2.0 / 3.25)
    assert edges[number["logit:2:41"]] == edges[number["0:2:7"]] == 0


def test_a_perfect_transcoder_is_faithful(exact: ReplacementModel, graph: AttributionGraph) -> None:
    found = faithfulness(graph, exact, max_features=6)
    assert len(found.features) == 6
    assert found.agreement.kl_divergence == pytest.approx(0, abs=1e-5)
    assert found.agreement.same_top
    assert found.agreement.top1_agreement == 1
    # What is left to get wrong is what freezing attention and norms leaves out.
    assert found.direct.spearman > 0.75
    assert found.direct.slope == pytest.approx(0.85, abs=0.15)
    assert found.total.spearman > 0.75
    assert found.influence.pearson > 0.9
    assert [row.distance for row in found.perturbations] == [1, 2]
    assert all(row.cosine > 0.9 for row in found.perturbations)
    assert all(row.normalised_mse < 0.25 for row in found.perturbations)
    assert "6 features ablated" in found.summary()


def test_a_poor_transcoder_answers_otherwise_than_the_model(tiny_llama: LanguageModel) -> None:
    transcoder = random_transcoder(tiny_llama)
    poor = faithfulness(
        attribute(tiny_llama, transcoder, TEXT), ReplacementModel(tiny_llama, transcoder), max_features=6
    )
    assert poor.agreement.kl_divergence > 0.01
    assert poor.perturbations[-1].normalised_mse > 0.3
    # Edges do not depend on how well it reconstructs: errors are nodes of the graph.
    assert poor.direct.spearman > 0.6


def test_a_graph_with_false_edges_is_found_out(exact: ReplacementModel, graph: AttributionGraph) -> None:
    false = replace(graph, edges=graph.edges._replace(weight=-graph.edges.weight))
    found = faithfulness(false, exact, max_features=4)
    assert found.direct.spearman < -0.7
    assert found.direct.slope < 0


def test_the_ablated_features_span_the_ranking(exact: ReplacementModel, graph: AttributionGraph) -> None:
    found = faithfulness(graph, exact, max_features=3)
    influence = dict(zip(graph.ids(), graph.influence().tolist(), strict=True))
    features = sorted(
        (influence[graph.node(n).id] for n in graph.of_kind(NodeKind.FEATURE).nonzero().flatten().tolist()),
        reverse=True,
    )
    assert found.influence.influence.tolist() == pytest.approx(
        [features[0], features[round((len(features) - 1) / 2)], features[-1]]
    )
    assert (found.influence.kl_divergence >= -1e-6).all()


def test_pruned_graphs_can_be_checked_too(exact: ReplacementModel, graph: AttributionGraph) -> None:
    assert faithfulness(graph.prune(0.6, 0.9), exact, max_features=2).direct.spearman > 0.7


def test_a_foreign_graph_is_refused(exact: ReplacementModel, graph: AttributionGraph, tmp_path: Path) -> None:
    other = ReplacementModel(exact.model, random_transcoder(exact.model))
    with refuses(AttributionError):
        faithfulness(graph, other)
    with refuses(AttributionError, "max_features", 0):
        faithfulness(graph, exact, max_features=0)


def test_any_target_that_a_run_shows_is_measured(exact: ReplacementModel) -> None:
    """The change of a difference's row, and of a feature's, is what an intervention makes of it."""
    difference, feature = LogitDifference(positive=5, negative=9, position=4), FeaturePreactivation(layer=2, feature=3)
    held = Constrained(freeze_attention=False, freeze_norms=False)
    corrected = ReplacementModel(exact.model, exact.transcoder, error_correction=True)

    def logits(record: InterventionRecord) -> float:
        change = record.logits_after[4] - record.logits_before[4]
        return float(change[5] - change[9])

    def preactivation(record: InterventionRecord) -> float:
        return float(record.preactivation_change(corrected.transcoder, 2, torch.tensor([3]))[-1])

    cases: list[tuple[Target, Callable[[InterventionRecord], float]]] = [(difference, logits), (feature, preactivation)]
    for target, read in cases:
        graph = attribute(exact.model, exact.transcoder, TEXT, targets=target)  # type: ignore[arg-type]
        effects = faithfulness(graph, exact, max_features=1).direct
        node = graph.node(int(graph.influence().where(graph.of_kind(NodeKind.FEATURE), torch.tensor(0.0)).argmax()))
        expected = read(
            intervene(corrected, TEXT, Intervention(node.layer, node.position, node.index, value=0.0), held)
        )
        row = graph.adjacency()[-1, graph.ids().index(node.id)]
        assert float(effects.measured[effects.predicted == -row]) == pytest.approx(expected, abs=1e-5)
    probe = Direction(vector=torch.ones(exact.model.d_model))
    graph = attribute(exact.model, exact.transcoder, TEXT, targets=probe)  # type: ignore[arg-type]
    assert len(faithfulness(graph, exact, max_features=1).direct.predicted) == len(effects.predicted) - 1


def test_influence_is_held_against_the_prediction_that_is_explained(exact: ReplacementModel) -> None:
    early = attribute(exact.model, exact.transcoder, TEXT, targets=TokenLogits(tokens=(5,), position=2))  # type: ignore[arg-type]
    found = faithfulness(early, exact, max_features=8)
    later = [number for number, name in enumerate(found.features) if (FeaturePlace.parse(name).position or 0) > 2]
    assert later
    # What stands after the position of a target cannot move it.
    assert float(found.influence.kl_divergence[later].abs().max()) < 1e-6
    assert float(found.influence.kl_divergence.max()) > 1e-3
    assert float(found.influence.influence[later].max()) == 0


def test_a_graph_keeps_the_numbers(exact: ReplacementModel, graph: AttributionGraph, tmp_path: Path) -> None:
    found = faithfulness(graph, exact, max_features=3)
    kept = with_faithfulness(graph, found)
    report = AttributionGraph.load(kept.prune(0.7).save(tmp_path)).info.faithfulness
    assert report == kept.info.faithfulness == json.loads(json.dumps(found.report(), allow_nan=False))
    assert report is not None
    assert report["direct"] == {
        "spearman": found.direct.spearman,
        "slope": found.direct.slope,
        "pairs": len(found.direct.predicted),
    }
    assert report["influence"]["kl_divergence"] == found.influence.kl_divergence.tolist()
    assert [tuple(row.values()) for row in report["perturbations"]] == list(found.perturbations)
    assert report["agreement"]["same_top"] is True
    assert graph.info.faithfulness is None


def test_rank_correlation_sees_order_and_ties() -> None:
    rising = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spearman(rising, rising.exp()) == pytest.approx(1)
    assert spearman(rising, -rising) == pytest.approx(-1)
    # scipy.stats.spearmanr([1, 2, 3, 4], [1, 1, 3, 2])
    assert spearman(rising, torch.tensor([1.0, 1.0, 3.0, 2.0])) == pytest.approx(0.7378647873726218)
    assert pearson(rising, torch.ones(4)) == 0
    assert spearman(torch.zeros(0), torch.zeros(0)) == 0
