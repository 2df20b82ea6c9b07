"""The truth test of attribution: interventions on features have exactly the effects that the graph predicts.

Under constrained patching with everything frozen, the change of every later pre-activation (of active and of inactive
features) and of every logit equals the graph's prediction, on models of several kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from open_clt.attribution.attribute import attribute
from open_clt.config import FixedJumpReLUConfig, TopKConfig
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import NodeQuery
from open_clt.graphs.supernodes import supernode
from open_clt.graphs.targets import FeaturePreactivation, SalientLogits
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.replacement.interventions.intervene import InterventionRecord, intervene
from open_clt.replacement.interventions.intervention import Constrained, interventions_on
from open_clt.replacement.interventions.observation import Observed, observe
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.circuit_tracer import load_circuit_tracer
from open_clt.transcoders.nonlinearities import JumpReLU
from tests.random_transcoders import random_transcoder


class Case(NamedTuple):
    """A graph, and the model whose behaviour it must predict."""

    graph: AttributionGraph
    replacement: ReplacementModel
    transcoder: CrossLayerTranscoder
    before: Observed


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def case_of(model: LanguageModel, transcoder: CrossLayerTranscoder, prompt: str | Tensor) -> Case:
    """Make a graph that explains the likely tokens, every active feature, and some inactive features."""
    replacement = ReplacementModel(model, transcoder, error_correction=True)
    before = observe(replacement, prompt)
    last, inactive = len(before.tokens) - 1, list[FeaturePreactivation]()
    for layer, features in enumerate(before.features):
        indices = (features.dense()[last] == 0).nonzero().flatten().tolist()[:4]
        inactive += [FeaturePreactivation(layer=layer, feature=feature, position=last) for feature in indices]
    graph = attribute(model, transcoder, before.tokens, targets=[SalientLogits(max_count=4), *inactive])
    return Case(graph, replacement, transcoder, before)


@pytest.fixture(scope="module")
def embedded() -> Case:
    clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
    transcoder = clt.transcoder
    assert isinstance(transcoder, CrossLayerTranscoder)
    return case_of(clt.language_model, transcoder, "The capital of the state containing Dallas is")


@pytest.fixture(scope="module")
def reference(reference_folder: Path) -> Case:
    folder = reference_folder / "circuit_tracer_tiny"
    transcoder = load_circuit_tracer(folder / "clt")
    assert isinstance(transcoder, CrossLayerTranscoder)
    assert isinstance(transcoder.nonlinearity, JumpReLU)
    with torch.no_grad():
        # One pre-activation equals its threshold exactly, so rounding would decide whether its feature is active.
        transcoder.nonlinearity.log_threshold += 1e-6
    tokens = load_file(folder / "adjacency.safetensors")["input_tokens"]
    return case_of(load_language_model(str(folder / "model")), transcoder, tokens)


@pytest.fixture(scope="module")
def llama(tiny_llama: LanguageModel) -> Case:
    return case_of(tiny_llama, random_transcoder(tiny_llama), "The cat sat on the mat")


@pytest.fixture(scope="module")
def negative(tiny_gpt2: LanguageModel) -> Case:
    """A case with features that are active with negative values."""
    case = case_of(tiny_gpt2, random_transcoder(tiny_gpt2, nonlinearity=FixedJumpReLUConfig()), "The cat sat")
    assert (case.graph.nodes.value[case.graph.of_kind(NodeKind.FEATURE)] < 0).sum() > 5
    return case


@pytest.fixture(scope="module")
def joint(tiny_gpt2: LanguageModel) -> Case:
    """A case in which features of all layers compete."""
    nonlinearity = TopKConfig(k=10, across_layers=True)
    return case_of(tiny_gpt2, random_transcoder(tiny_gpt2, nonlinearity=nonlinearity), "The cat sat")


@pytest.fixture(scope="module")
def offsets(tiny_gpt2: LanguageModel) -> Case:
    """A case with features to which a number is added after the ranking."""
    nonlinearity = TopKConfig(k=20, offsets=True)
    case = case_of(tiny_gpt2, random_transcoder(tiny_gpt2, nonlinearity=nonlinearity), "The cat sat")
    assert (case.graph.nodes.value[case.graph.of_kind(NodeKind.FEATURE)] < 0).any()
    return case


@pytest.fixture(
    params=[
        "embedded",
        "llama",
        "negative",
        "joint",
        "offsets",
        pytest.param("reference", marks=pytest.mark.reference),
    ],
)
def case(request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue(request.param)


def changes(case: Case, record: InterventionRecord) -> Tensor:
    """Measured change of every row's total; NaN for nodes without a row."""
    measured = torch.full((case.graph.n_nodes,), torch.nan)
    features = (NodeKind.FEATURE, NodeKind.TARGET)
    for row in (~case.graph.nodes.total.isnan()).nonzero().flatten().tolist():
        node = case.graph.node(row)
        if node.kind in features:
            layer, feature = node.layer, node.index
            if node.kind is NodeKind.TARGET:
                target = case.graph.info.settings.target(node.index)
                assert isinstance(target, FeaturePreactivation)
                layer, feature = target.layer, target.feature
            change = record.preactivation_change(case.transcoder, layer, torch.tensor([feature]))
            measured[row] = change[node.position, 0]
        else:
            change = (record.logits_after - record.logits_before)[node.position]
            measured[row] = change[node.index] - change.mean()
    return measured


@pytest.mark.parametrize("scale", [0.0, 3.0])
@pytest.mark.parametrize("every", [0, 9], ids=["one feature", "a ninth of all"])
def test_every_change_is_what_the_graph_predicts(case: Case, every: int, scale: float) -> None:
    features = case.graph.of_kind(NodeKind.FEATURE)
    order = case.graph.influence().masked_fill(~features, -1).argsort(descending=True)[: int(features.sum())]
    sources = order[::every] if every else order[:1]
    ids = [case.graph.node(row).id for row in sources.tolist()]
    record = intervene(case.replacement, case.before, interventions_on(ids, scale=scale))
    predicted, measured = (scale - 1) * case.graph.adjacency()[:, sources].sum(1), changes(case, record)
    rows = ~measured.isnan()
    # Active features, inactive features and logits all change.
    for kind in (NodeKind.FEATURE, NodeKind.TARGET, NodeKind.LOGIT):
        assert float(predicted[rows & case.graph.of_kind(kind)].abs().max()) > 0.01
    torch.testing.assert_close(measured[rows], predicted[rows], atol=1e-4, rtol=0)


def test_the_effect_of_ablating_a_supernode_is_what_the_graph_predicts(case: Case) -> None:
    layer = 0
    early = supernode(case.graph, "early", NodeQuery(kinds=(NodeKind.FEATURE,), layers=(layer,)))
    record = intervene(case.replacement, case.before, interventions_on(early, value=0.0))
    sources = case.graph.of_kind(NodeKind.FEATURE) & (case.graph.nodes.layer == layer)
    predicted, measured = -case.graph.adjacency()[:, sources].sum(1), changes(case, record)
    rows = ~measured.isnan()
    torch.testing.assert_close(measured[rows], predicted[rows], atol=1e-4, rtol=0)


@pytest.mark.parametrize("patching", [Constrained(freeze_attention=False), Constrained(freeze_norms=False)], ids=str)
def test_predictions_are_wrong_if_attention_or_norms_are_not_frozen(case: Case, patching: Constrained) -> None:
    """This shows that the comparison with the graph can fail."""
    sources = case.graph.of_kind(NodeKind.FEATURE).nonzero().flatten()[::5]
    ids = [case.graph.node(row).id for row in sources.tolist()]
    record = intervene(case.replacement, case.before, interventions_on(ids, value=0.0), patching)
    predicted, measured = -case.graph.adjacency()[:, sources].sum(1), changes(case, record)
    rows = ~measured.isnan()
    assert float((predicted - measured)[rows].abs().max()) > 1e-3
