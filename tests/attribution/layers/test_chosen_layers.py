"""Graphs of transcoders of some layers: as those of the transcoder of all layers that computes the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.attribution.qk import explain_attention
from open_clt.errors import AttributionError
from open_clt.evaluation.effects import measured_changes
from open_clt.evaluation.faithfulness import faithfulness
from open_clt.evaluation.faithfulness_report import Faithfulness
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.targets import FeaturePreactivation
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Constrained, Intervention
from open_clt.replacement.interventions.observation import observe
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from tests.attribution.cases import KINDS, PROMPT
from tests.attribution.test_attribute import slow_row
from tests.chosen_layers import spread
from tests.random_transcoders import random_architecture
from tests.reference.autograd_attribution import SlowAttribution
from tests.refusals import refuses
from tests.tiny_models import write_gpt2

LAYERS = (1, 2, 4)
OTHERS = [0, 3]


@pytest.fixture(scope="module")
def five_layers(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_language_model(str(write_gpt2(tmp_path_factory.mktemp("five") / "model", n_layer=5)))


def chosen(kind: str, **settings: object) -> CrossLayerTranscoder:
    """A random transcoder of the layers 1, 2 and 4."""
    transcoder = random_architecture(replace(KINDS[kind], layers=LAYERS, **settings))
    assert isinstance(transcoder, CrossLayerTranscoder)
    return transcoder


@pytest.mark.parametrize(
    "kind",
    ["skip, reach 2", "normalised clt", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if "skip," not in k)],
)
@pytest.mark.parametrize("use_first_position", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_graph_is_that_of_a_transcoder_of_all_layers_that_computes_the_same(
    five_layers: LanguageModel, kind: str, use_first_position: bool
) -> None:
    transcoder = chosen(kind, use_first_position=use_first_position)
    graph, expected = (attribute(five_layers, each, PROMPT) for each in (transcoder, spread(transcoder, 5)))
    assert graph.nodes.ids() == expected.nodes.ids()
    assert {*graph.nodes.layer[graph.of_kind(NodeKind.FEATURE)].tolist()} <= {*LAYERS}
    torch.testing.assert_close(graph.adjacency(), expected.adjacency(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(graph.nodes.value, expected.nodes.value)
    assert graph.scores() == pytest.approx(expected.scores(), abs=1e-6)
    assert graph.check().relative_to_row < 1e-5


def test_rows_equal_autograd_where_errors_of_other_layers_are_whole_mlp_outputs(five_layers: LanguageModel) -> None:
    transcoder = chosen("skip, reach 2")
    graph = attribute(five_layers, transcoder, PROMPT, max_logits=2)
    slow = SlowAttribution(five_layers, spread(transcoder, 5), five_layers.tokenize(PROMPT), 1)
    adjacency, errors = graph.adjacency(), graph.of_kind(NodeKind.ERROR)
    for target in (0, int(graph.of_kind(NodeKind.FEATURE).sum()) - 1, graph.n_nodes - 1):
        row, expected = adjacency[target], slow_row(slow, graph, target)
        cells = torch.zeros_like(expected.errors)
        cells[graph.nodes.layer[errors], graph.nodes.position[errors]] = row[errors]
        torch.testing.assert_close(cells, expected.errors, atol=1e-5, rtol=1e-4)
    outputs = torch.stack([slow.outputs[layer][1:] for layer in OTHERS])
    torch.testing.assert_close(slow.errors[:, OTHERS].transpose(0, 1), outputs)
    assert bool((cells[OTHERS, 1:] != 0).any())
    slow.close()


def test_naming_all_layers_changes_nothing(tiny_gpt2: LanguageModel) -> None:
    config = KINDS["skip, reach 2"]
    graphs = [
        attribute(tiny_gpt2, random_architecture(each), PROMPT) for each in (config, replace(config, layers=(0, 1, 2)))
    ]
    assert torch.equal(*(graph.adjacency() for graph in graphs))
    assert graphs[0].nodes.ids() == graphs[1].nodes.ids()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clt", "skip, reach 2", "normalised skip"])
def test_a_graph_predicts_interventions(five_layers: LanguageModel, kind: str) -> None:
    transcoder = chosen(kind)
    graph, exact = attribute(five_layers, transcoder, PROMPT), ReplacementModel(five_layers, transcoder)
    exact.error_correction = True
    before, adjacency = observe(exact, PROMPT), graph.adjacency()
    for source in graph.of_kind(NodeKind.FEATURE).nonzero().flatten().tolist()[::9]:
        node = graph.node(source)
        run = intervene(exact, before, Intervention(node.layer, node.position, node.index, value=0.0), Constrained())
        measured = measured_changes(graph, transcoder, run)
        later = ~measured.isnan() & (torch.arange(graph.n_nodes) != source)
        torch.testing.assert_close(measured[later], -adjacency[later, source], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_faithfulness_equals_that_of_the_transcoder_of_all_layers(five_layers: LanguageModel) -> None:
    transcoder = chosen("clt")
    results: list[Faithfulness] = []
    for each in (transcoder, spread(transcoder, 5)):
        graph = attribute(five_layers, each, PROMPT, max_logits=2)
        results.append(faithfulness(graph, ReplacementModel(five_layers, each, layers=LAYERS), max_features=4))
    for effects in zip(*((result.direct, result.total) for result in results), strict=True):
        torch.testing.assert_close(*(each.predicted for each in effects), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(*(each.measured for each in effects), atol=1e-5, rtol=1e-4)


def test_targets_name_the_layers_of_the_model(five_layers: LanguageModel) -> None:
    transcoder = chosen("clt")
    graph = attribute(five_layers, transcoder, PROMPT, targets=FeaturePreactivation(layer=4, feature=7, position=3))
    (target,) = graph.of_kind(NodeKind.TARGET).nonzero().flatten().tolist()
    assert graph.node(target).layer == 4
    assert graph.check().relative_to_row < 1e-5
    with refuses(AttributionError, "L3/7", "1, 2 and 4"):
        attribute(five_layers, transcoder, PROMPT, targets=FeaturePreactivation(layer=3, feature=7, position=3))


@pytest.mark.slow
def test_attention_is_explained_with_the_same_sources(five_layers: LanguageModel) -> None:
    transcoder = chosen("clt")
    tables = [
        explain_attention(five_layers, each, PROMPT, layer=3, head=1, query=5, key=2)
        for each in (transcoder, spread(transcoder, 5))
    ]
    torch.testing.assert_close(*(table.table() for table in tables), atol=1e-6, rtol=1e-5)


def test_a_budget_keeps_the_rows_whole(five_layers: LanguageModel) -> None:
    graph = attribute(five_layers, chosen("clt"), PROMPT, max_feature_nodes=5)
    assert int(graph.of_kind(NodeKind.FEATURE).sum()) == 5
    assert graph.check().relative_to_row < 1e-5
