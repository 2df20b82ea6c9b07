"""Faithfulness: its numbers separate true graphs from false ones, and perfect transcoders from poor ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats

from open_clt.attribution.attribute import attribute
from open_clt.errors import AttributionError, ConfigError
from open_clt.evaluation.faithfulness import faithfulness, predicted_changes, with_faithfulness
from open_clt.evaluation.faithfulness_report import Perturbation, pearson, spearman
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
    graph, node = hand_graph(), {name: row for row, name in enumerate(NAMES)}
    ablated = torch.tensor([node["0:1:5"]])
    edges, paths = (predicted_changes(graph, ablated, paths=flag)[0] for flag in (False, True))
    assert edges[node["1:2:3"]] == paths[node["1:2:3"]] == -2.0
    assert edges[node["logit:2:40"]] == -0.5
    assert float(paths[node["logit:2:40"]]) == pytest.approx(-0.5 - 3.0 * 2.0 / 3.25)
    assert float(paths[node["logit:2:41"]]) == pytest.approx(2.0 * 2.0 / 3.25)
    assert edges[node["logit:2:41"]] == edges[node["0:2:7"]] == 0


def test_a_perfect_transcoder_is_faithful(exact: ReplacementModel, graph: AttributionGraph) -> None:
    result = faithfulness(graph, exact, max_features=6)
    assert len(result.features) == 6
    assert result.agreement.kl_divergence == pytest.approx(0, abs=1e-5)
    assert result.agreement.same_top
    assert result.agreement.top1_agreement == 1
    # The remaining differences come from attention and norms, which the graph takes to be frozen.
    assert result.direct.spearman > 0.75
    assert result.direct.slope == pytest.approx(0.85, abs=0.15)
    assert result.total.spearman > 0.75
    assert result.influence.pearson > 0.9
    assert [row.distance for row in result.perturbations] == [1, 2]
    assert all(row.cosine > 0.9 for row in result.perturbations)
    assert all(row.normalised_mse < 0.25 for row in result.perturbations)
    assert result.summary().startswith("6 ")


def test_a_poor_transcoder_does_not_agree_with_the_model(tiny_llama: LanguageModel) -> None:
    transcoder = random_transcoder(tiny_llama)
    poor = faithfulness(
        attribute(tiny_llama, transcoder, TEXT), ReplacementModel(tiny_llama, transcoder), max_features=6
    )
    assert poor.agreement.kl_divergence > 0.01
    assert poor.perturbations[-1].normalised_mse > 0.3
    # Edges do not depend on the quality of the reconstruction, because errors are nodes of the graph.
    assert poor.direct.spearman > 0.6


def test_a_graph_with_false_edges_has_negative_scores(exact: ReplacementModel, graph: AttributionGraph) -> None:
    false = replace(graph, edges=graph.edges._replace(weight=-graph.edges.weight))
    result = faithfulness(false, exact, max_features=4)
    assert result.direct.spearman < -0.7
    assert result.direct.slope < 0


def test_the_ablated_features_span_the_ranking_by_influence(exact: ReplacementModel, graph: AttributionGraph) -> None:
    result = faithfulness(graph, exact, max_features=3)
    influence = dict(zip(graph.ids(), graph.influence().tolist(), strict=True))
    features = sorted(
        (influence[graph.node(row).id] for row in graph.of_kind(NodeKind.FEATURE).nonzero().flatten().tolist()),
        reverse=True,
    )
    assert result.influence.influence.tolist() == pytest.approx(
        [features[0], features[round((len(features) - 1) / 2)], features[-1]]
    )
    assert (result.influence.kl_divergence >= -1e-6).all()


def test_pruned_graphs_can_be_checked_too(exact: ReplacementModel, graph: AttributionGraph) -> None:
    assert faithfulness(graph.prune(0.6, 0.9), exact, max_features=2).direct.spearman > 0.7


def test_a_graph_of_another_transcoder_is_refused(
    exact: ReplacementModel, graph: AttributionGraph, tmp_path: Path
) -> None:
    replacement = ReplacementModel(exact.model, random_transcoder(exact.model))
    with refuses(AttributionError):
        faithfulness(graph, replacement)
    with refuses(ConfigError, "max_features", 0):
        faithfulness(graph, exact, max_features=0)


@pytest.mark.slow
def test_every_target_that_a_run_records_is_measured(exact: ReplacementModel) -> None:
    """The measured change of a logit difference, and of a feature, is the change that an intervention makes."""
    difference, feature = LogitDifference(positive=5, negative=9, position=4), FeaturePreactivation(layer=2, feature=3)
    frozen = Constrained(freeze_attention=False, freeze_norms=False)
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
            intervene(corrected, TEXT, Intervention(node.layer, node.position, node.index, value=0.0), frozen)
        )
        row = graph.adjacency()[-1, graph.ids().index(node.id)]
        assert float(effects.measured[effects.predicted == -row]) == pytest.approx(expected, abs=1e-5)
    probe = Direction(vector=torch.ones(exact.model.d_model))
    graph = attribute(exact.model, exact.transcoder, TEXT, targets=probe)  # type: ignore[arg-type]
    assert len(faithfulness(graph, exact, max_features=1).direct.predicted) == len(effects.predicted) - 1


def test_influence_is_compared_with_the_explained_prediction(exact: ReplacementModel) -> None:
    early = attribute(exact.model, exact.transcoder, TEXT, targets=TokenLogits(tokens=(5,), position=2))  # type: ignore[arg-type]
    result = faithfulness(early, exact, max_features=8)
    later = [row for row, name in enumerate(result.features) if (FeaturePlace.parse(name).position or 0) > 2]
    assert later
    # Features after the position of a target cannot change it.
    assert float(result.influence.kl_divergence[later].abs().max()) < 1e-6
    assert float(result.influence.kl_divergence.max()) > 1e-3
    assert float(result.influence.influence[later].max()) == 0


def test_a_graph_stores_its_faithfulness(exact: ReplacementModel, graph: AttributionGraph, tmp_path: Path) -> None:
    result = faithfulness(graph, exact, max_features=3)
    checked = with_faithfulness(graph, result)
    report = AttributionGraph.load(checked.prune(0.7).save(tmp_path)).info.faithfulness
    assert report == checked.info.faithfulness == json.loads(json.dumps(result.report(), allow_nan=False))
    assert report is not None
    assert report["direct"] == {
        "spearman": result.direct.spearman,
        "slope": result.direct.slope,
        "pairs": len(result.direct.predicted),
    }
    assert report["influence"]["kl_divergence"] == result.influence.kl_divergence.tolist()
    assert [tuple(row.values()) for row in report["perturbations"]] == list(result.perturbations)
    assert report["agreement"]["same_top"] is True
    assert graph.info.faithfulness is None


def test_rank_correlation_depends_on_order_and_ties() -> None:
    rising = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spearman(rising, rising.exp()) == pytest.approx(1)
    assert spearman(rising, -rising) == pytest.approx(-1)
    # scipy.stats.spearmanr([1, 2, 3, 4], [1, 1, 3, 2])
    assert spearman(rising, torch.tensor([1.0, 1.0, 3.0, 2.0])) == pytest.approx(0.7378647873726218)
    assert pearson(rising, torch.ones(4)) == 0
    assert spearman(torch.zeros(0), torch.zeros(0)) == 0


def test_correlations_equal_those_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(-3, 4, (50,), generator=generator).float()  # with many ties
    second = first + torch.randn(50, generator=generator)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
    assert pearson(first, second) == pytest.approx(stats.pearsonr(first.double(), second.double()).statistic, abs=1e-12)


def test_a_distance_of_one_is_one_layer() -> None:
    assert [Perturbation(distance, 1.0, 0.0, 2).words for distance in (1, 2)] == ["1 layer later", "2 layers later"]
