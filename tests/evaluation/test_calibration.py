"""Calibration: probabilities agree with outcomes, and are stored with graphs and transcoders."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.config import CrossLayerConfig, ReLUConfig
from open_clt.errors import CheckpointError, ConfigError
from open_clt.evaluation.calibration import (
    Calibration,
    Logistic,
    edge_confidence,
    find_calibration,
    fit_calibration,
    load_calibration,
    probabilities,
    reliability,
    save_calibration,
    with_confidence,
)
from open_clt.evaluation.trials import Trial, edge_predictions, node_predictions, trials
from open_clt.graphs.consensus import consensus, frequencies
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import answer_row
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Intervention, Iterative
from open_clt.replacement.interventions.observation import observe
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.fingerprint import fingerprint
from open_clt.transcoders.make import make_transcoder
from tests.graphs.hand_graph import hand_graph
from tests.random_transcoders import random_transcoder
from tests.refusals import refuses
from tests.tiny_models import TEXTS

NODE = Logistic(intercept=2.0, weights=(0.5, 1.0), trials=30, share=0.5)
CONSENSUS = Logistic(intercept=0.5, weights=(0.5, 1.0, 2.0), trials=30, share=0.5)


def trial(**facts: float | bool | None) -> Trial:
    values = {"is_edge": False, "frequency": None, "influence": 0.1, "predicted": 1.0, "measured": 1.0}
    return Trial(**{**values, "answer_changed": False, **facts})  # type: ignore[arg-type]


def drawn(count: int, seed: int, frequency: bool = False) -> list[Trial]:
    """Trials whose log odds are a known function of influence, predicted change and frequency."""
    rng, made = np.random.default_rng(seed), list[Trial]()
    for _ in range(count):
        predicted, influence, share = 10 ** rng.uniform(-3, 1), 10 ** rng.uniform(-4, 0), rng.uniform(0.1, 1)
        odds = 1.5 + np.log10(predicted) + np.log10(influence) + (2 * share if frequency else 0)
        happened = rng.random() < 1 / (1 + np.exp(-odds))
        measured = predicted if happened else -predicted
        made.append(
            trial(frequency=share if frequency else None, influence=influence, predicted=predicted, measured=measured)
        )
    return made


@pytest.fixture(scope="module")
def transcoder() -> CrossLayerTranscoder:
    made = make_transcoder(CrossLayerConfig(n_layers=2, d_model=4, n_features=6, nonlinearity=ReLUConfig()))
    assert isinstance(made, CrossLayerTranscoder)
    return made


@pytest.mark.parametrize(
    ("predicted", "measured", "holds"),
    [
        (1, 1, True),
        (-2, -1.01, True),
        (1, 1.99, True),
        (1, 2.01, False),
        (1, 0.49, False),
        (1, -1, False),
        (0, 0, False),
    ],
)
def test_a_change_is_as_predicted_within_a_factor_of_two(predicted: float, measured: float, holds: bool) -> None:
    assert trial(predicted=float(predicted), measured=float(measured)).as_predicted is holds


def test_reliability_by_hand() -> None:
    found = reliability([0.1, 0.15, 0.9, 0.8], [False, True, True, True], bins=2)
    assert found.bins[0] == pytest.approx((2, 0.125, 0.5))
    assert found.bins[1] == pytest.approx((2, 0.85, 1.0))
    assert found.ece == pytest.approx((2 * 0.375 + 2 * 0.15) / 4)
    assert found.brier == pytest.approx((0.01 + 0.85**2 + 0.01 + 0.04) / 4)
    assert reliability([1.0], [True]).bins == ((1, 1.0, 1.0),)


@pytest.mark.parametrize("frequency", [False, True])
def test_fitted_probabilities_are_calibrated_on_other_trials(transcoder: CrossLayerTranscoder, frequency: bool) -> None:
    group = "consensus_node" if frequency else "node"
    calibration = fit_calibration(drawn(3000, 0, frequency), transcoder)
    others = drawn(3000, 1, frequency)
    outcome = [each.as_predicted for each in others]
    fitted = reliability(probabilities(calibration, others, group).tolist(), outcome)
    share = sum(outcome) / len(outcome)
    assert fitted.ece < 0.04
    assert fitted.brier < 0.9 * reliability([share] * len(outcome), outcome).brier
    regression = getattr(calibration, group)
    assert regression.weights == pytest.approx((1, 1, 2)[: len(regression.weights)], abs=0.3)
    assert regression.intercept == pytest.approx(1.5, abs=0.5)


def test_too_few_trials_or_one_outcome_give_no_calibration(transcoder: CrossLayerTranscoder) -> None:
    for few in ([], drawn(10, 0), [trial()] * 50):
        with refuses(ConfigError, 20):
            fit_calibration(few, transcoder)


def test_counts_that_differ_are_refused() -> None:
    with refuses(ConfigError, 1, 0):
        reliability([0.5], [])


@pytest.fixture(scope="module")
def graphs(tiny_gpt2: LanguageModel) -> tuple[ReplacementModel, list[AttributionGraph]]:
    transcoder = random_transcoder(tiny_gpt2)
    made = [attribute(tiny_gpt2, transcoder, text, max_logits=2) for text in (TEXTS[0][:20], TEXTS[1][:20])]
    return ReplacementModel(tiny_gpt2, transcoder), made


@pytest.mark.slow
def test_a_trial_measures_the_change_of_the_answer(graphs: tuple[ReplacementModel, list[AttributionGraph]]) -> None:
    """Compared with an intervention on every node, one at a time."""
    replacement, (graph, _) = graphs
    made = trials([graph], replacement, per_graph=5)
    nodes = [each for each in made if not each.is_edge]
    assert len(nodes) == 5
    assert {each.frequency for each in made} == {None}
    exact = ReplacementModel(replacement.model, replacement.transcoder, error_correction=True)
    before = observe(exact, torch.tensor(graph.info.tokens))
    row, predictions = answer_row(graph), node_predictions(graph)
    token, position = int(graph.nodes.index[row]), int(graph.nodes.position[row])
    features = graph.of_kind(NodeKind.FEATURE).nonzero().flatten().tolist()
    by_prediction = {float(predictions.change[feature]): feature for feature in features}
    for each in nodes:
        node = graph.node(by_prediction[each.predicted])
        ablation = Intervention(node.layer, node.position, node.index, value=0.0)
        run = intervene(exact, before, ablation, Iterative())
        change = (run.logits_after - run.logits_before)[position].double()
        assert each.measured == pytest.approx(float(change[token] - change.mean()), abs=1e-4)


@pytest.mark.slow
def test_trials_of_several_graphs_are_also_those_of_their_consensus(
    graphs: tuple[ReplacementModel, list[AttributionGraph]],
) -> None:
    replacement, made = graphs
    results = trials(made, replacement, per_graph=3)
    kinds = {(each.is_edge, each.frequency is None) for each in results}
    assert kinds == {(False, True), (False, False), (True, True), (True, False)}
    assert {each.frequency for each in results} <= {None, 0.5, 1.0}
    assert all(each.predicted != 0 and math.isfinite(each.measured) for each in results)


def test_edges_into_a_node_predict_what_its_ablation_does() -> None:
    """The edges into a feature, cut together, take away its total."""
    graph = hand_graph().part(~hand_graph().of_kind(NodeKind.TARGET))
    edges, nodes = edge_predictions(graph), node_predictions(graph)
    row = graph.ids().index("1:2:3")
    into = graph.edges.target == row
    share = float(graph.nodes.total[row] / graph.nodes.value[row])
    assert float(edges.change[into].sum()) == pytest.approx(share * float(nodes.change[row]))
    into_answer = graph.edges.target == answer_row(graph)
    assert torch.allclose(edges.change[into_answer], -graph.edges.weight[into_answer].double())


def test_frequencies_of_graphs_are_those_of_their_consensus() -> None:
    whole = hand_graph()
    part = whole.part(torch.tensor([node != "0:2:7" for node in whole.ids()]))
    (nodes, edges), (_, edges_of_part) = frequencies([whole, part])
    table = consensus([whole, part]).consensus
    assert table is not None
    assert torch.equal(nodes, table.frequency)
    assert torch.equal(edges, table.edge_frequency)
    assert torch.equal(edges_of_part, torch.ones(part.n_edges))


def calibrated(mark: str, **groups: Logistic) -> Calibration:
    return Calibration(transcoder_hash=mark, **groups)  # type: ignore[arg-type]


def marked(mark: str | None) -> AttributionGraph:
    graph = hand_graph()
    return replace(graph, info=replace(graph.info, transcoder_hash=mark))


def test_features_have_the_confidence_of_the_regression(tmp_path: Path) -> None:
    graph = with_confidence(marked("a"), calibrated("a", node=NODE))
    predictions = node_predictions(graph)
    for row in range(graph.n_nodes):
        node = graph.node(row)
        if node.kind is not NodeKind.FEATURE:
            assert node.confidence is None
            continue
        change, influence = abs(float(predictions.change[row])), float(predictions.influence[row])
        odds = 2 + 0.5 * math.log10(max(change, 1e-8)) + math.log10(max(influence, 1e-8))
        assert node.confidence == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-5)
    again = AttributionGraph.load(graph.save(tmp_path))
    assert torch.equal(again.nodes.confidence.nan_to_num(-1), graph.nodes.confidence.nan_to_num(-1))
    pruned = graph.prune(0.5, 0.9)
    expected = {graph.node(row).id: graph.node(row).confidence for row in range(graph.n_nodes)}
    assert all(pruned.node(row).confidence == expected[pruned.node(row).id] for row in range(pruned.n_nodes))


def test_a_consensus_has_the_confidence_of_its_own_regression() -> None:
    averaged = consensus([marked("a"), marked("a")])
    assert bool(with_confidence(averaged, calibrated("a", node=NODE)).nodes.confidence.isnan().all())
    graph = with_confidence(averaged, calibrated("a", node=NODE, consensus_node=CONSENSUS))
    alone = with_confidence(averaged, calibrated("a", consensus_node=replace(CONSENSUS, weights=(0.5, 1.0, 0.0))))
    features = graph.of_kind(NodeKind.FEATURE)
    assert bool((graph.nodes.confidence[features] > alone.nodes.confidence[features]).all())


def test_edges_have_a_confidence() -> None:
    graph = marked("a")
    assert bool(edge_confidence(graph, calibrated("a", node=NODE)).isnan().all())
    confidence = edge_confidence(graph, calibrated("a", edge=NODE))
    assert bool(((confidence > 0) & (confidence < 1)).all())


def test_the_calibration_of_another_transcoder_is_refused() -> None:
    with refuses(ConfigError, "another transcoder"):
        with_confidence(marked("a"), calibrated("b", node=NODE))
    assert not bool(with_confidence(marked(None), calibrated("b", node=NODE)).nodes.confidence.isnan().all())


def test_a_calibration_is_saved_and_found(
    transcoder: CrossLayerTranscoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_CLT_CACHE", str(tmp_path / "cache"))
    assert find_calibration(tmp_path, transcoder) is None
    save_calibration(calibrated("other", node=NODE), tmp_path)
    assert find_calibration(tmp_path, transcoder) is None
    calibration = calibrated(fingerprint(transcoder), node=NODE, consensus_node=CONSENSUS)
    save_calibration(calibration, tmp_path)
    assert find_calibration(tmp_path, transcoder) == load_calibration(tmp_path) == calibration


@pytest.mark.parametrize(
    "changes",
    [{"node": {**{"intercept": 0.0, "trials": 1, "share": 1.0}, "weights": [1.0]}}, {"factor": "x"}, {"more": 1}],
)
def test_a_damaged_calibration_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    path = save_calibration(calibrated("a", node=NODE), tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with refuses(CheckpointError, path):
        load_calibration(tmp_path)
