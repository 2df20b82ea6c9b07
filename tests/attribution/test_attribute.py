"""Attribution: rows equal those of autograd, add up to their targets' totals, and predict interventions."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from open_clt.attribution.attribute import AttributionSettings, attribute, attribute_all
from open_clt.config import CrossLayerConfig, JumpReLUConfig
from open_clt.errors import AttributionError, ConfigError, TextError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.targets import Direction, FeaturePreactivation, LogitDifference, TokenLogits
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from tests.attribution.cases import KINDS, PROMPT
from tests.attribution.held_model import check_ablations
from tests.random_transcoders import architecture, random_architecture
from tests.reference.autograd_attribution import SlowAttribution, SlowRow
from tests.refusals import refuses

MODELS_AND_KINDS = [(model, kind) for model in ("gpt2", "llama") for kind in KINDS]


def sums(graph: AttributionGraph, row: Tensor, kind: NodeKind) -> Tensor:
    """A row's edges from one kind of source, as a grid of layer + 1 and position."""
    chosen = graph.of_kind(kind)
    cells = torch.zeros(graph.info.n_layers + 2, len(graph.info.tokens))
    return cells.index_put((graph.nodes.layer[chosen] + 1, graph.nodes.position[chosen]), row[chosen])


def slow_row(slow: SlowAttribution, graph: AttributionGraph, node_index: int) -> SlowRow:
    """The row of a node by autograd."""
    node = graph.node(node_index)
    if node.kind is NodeKind.FEATURE:
        return slow.feature_row(node.layer, node.position, node.index)
    return slow.logit_row(node.index, node.position)


@pytest.mark.parametrize(("name", "kind"), MODELS_AND_KINDS)
def test_rows_equal_autograd(models: dict[str, LanguageModel], name: str, kind: str) -> None:
    model, first = models[name], 0 if kind == "normalised clt" else 1
    transcoder = random_architecture(replace(KINDS[kind], use_first_position=first == 0))
    graph = attribute(model, transcoder, PROMPT, max_logits=3, batch_size=7)
    slow = SlowAttribution(model, transcoder, model.tokenize(PROMPT), first)
    features = [graph.node(int(node)) for node in graph.of_kind(NodeKind.FEATURE).nonzero()]
    assert {(node.layer, node.position, node.index) for node in features} == set(slow.features)
    adjacency, layers = graph.adjacency(), model.n_layers
    for target in [*range(0, len(features), 4), *range(graph.n_nodes - 3, graph.n_nodes)]:
        row, expected = adjacency[target], slow_row(slow, graph, target)
        from_features = {(node.layer, node.position, node.index): float(row[i]) for i, node in enumerate(features)}
        assert from_features == pytest.approx(expected.features, abs=1e-5)
        close = {"atol": 1e-5, "rtol": 1e-4}
        torch.testing.assert_close(sums(graph, row, NodeKind.ERROR)[1:-1], expected.errors, **close)
        torch.testing.assert_close(sums(graph, row, NodeKind.EMBEDDING)[0], expected.embeddings, **close)
        torch.testing.assert_close(sums(graph, row, NodeKind.POSITIONAL)[0], expected.positional, **close)
        torch.testing.assert_close(sums(graph, row, NodeKind.BIAS)[1:].sum(1), expected.biases, **close)
        mlp_outputs = sums(graph, row, NodeKind.MLP_OUTPUT)[1 : layers + 1, :first]
        torch.testing.assert_close(mlp_outputs, expected.mlp_outputs, **close)
        assert float(graph.nodes.total[target]) == pytest.approx(expected.total, abs=1e-4)
    slow.close()


@pytest.mark.parametrize(("name", "kind"), MODELS_AND_KINDS)
def test_rows_are_complete(models: dict[str, LanguageModel], name: str, kind: str) -> None:
    graph = attribute(models[name], random_architecture(KINDS[kind]), PROMPT)
    assert graph.check().relative_to_row < 1e-5
    # Rounding scales with the row's entries, so the first bound is the strict one. Entries of opposite signs can cancel
    # to a total of a thousandth of the row, of which the same rounding is a thousand times as large a share.
    assert graph.check().relative_to_total < 1e-3
    row_sums = graph.adjacency().sum(1)
    has_row = ~graph.nodes.total.isnan()
    torch.testing.assert_close(row_sums[has_row], graph.nodes.total[has_row], atol=1e-4, rtol=1e-5)


def test_a_compatible_graph_is_the_complete_one_without_three_kinds_of_nodes(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    complete, compatible = (attribute(tiny_gpt2, transcoder, PROMPT, compatible=flag) for flag in (False, True))
    shared = ~complete.of_kind(NodeKind.POSITIONAL, NodeKind.BIAS, NodeKind.MLP_OUTPUT)
    torch.testing.assert_close(compatible.adjacency(), complete.adjacency()[shared][:, shared])
    assert compatible.check().relative_to_row > 0.01


@pytest.mark.parametrize(("name", "kind"), MODELS_AND_KINDS)
def test_an_edge_is_the_measured_effect_of_an_ablation(models: dict[str, LanguageModel], name: str, kind: str) -> None:
    """Without a feature's writes, and with all else frozen, pre-activations and logits change by minus their edges."""
    check_ablations(models[name], random_architecture(KINDS[kind]))


def test_batches_do_not_change_rows(tiny_llama: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    small, large = (attribute(tiny_llama, transcoder, PROMPT, batch_size=size) for size in (1, 64))
    torch.testing.assert_close(small.adjacency(), large.adjacency(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("compatible", [False, True])
def test_a_budget_for_all_features_gives_the_unbounded_graph(tiny_gpt2: LanguageModel, compatible: bool) -> None:
    transcoder = random_architecture(KINDS["clt"])
    unbounded = attribute(tiny_gpt2, transcoder, PROMPT, compatible=compatible)
    bounded = attribute(tiny_gpt2, transcoder, PROMPT, compatible=compatible, max_feature_nodes=10_000)
    assert bounded.ids() == unbounded.ids()
    torch.testing.assert_close(bounded.adjacency(), unbounded.adjacency())


def test_a_budget_keeps_rows_complete_by_folding_into_errors(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    whole = attribute(tiny_gpt2, transcoder, PROMPT)
    part = attribute(tiny_gpt2, transcoder, PROMPT, max_feature_nodes=9, batch_size=4)
    assert int(part.of_kind(NodeKind.FEATURE).sum()) == 9
    assert part.info.n_active_features == int(whole.of_kind(NodeKind.FEATURE).sum())
    assert part.check().relative_to_row < 1e-5
    assert part.scores().replacement < whole.scores().replacement
    # An explored feature's row does not depend on what else was explored.
    row_of = {name: row for row, name in enumerate(whole.ids())}
    shared = torch.tensor([row_of[name] for name in part.ids()])
    not_errors = ~part.of_kind(NodeKind.ERROR)
    torch.testing.assert_close(
        part.adjacency()[:, not_errors], whole.adjacency()[shared][:, shared[not_errors]], atol=1e-6, rtol=1e-5
    )


def test_a_budget_explores_the_most_influential_features(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    whole = attribute(tiny_gpt2, transcoder, PROMPT)
    part = attribute(tiny_gpt2, transcoder, PROMPT, max_feature_nodes=12, batch_size=4)
    influence = dict(zip(whole.ids(), whole.influence().tolist(), strict=True))
    chosen = {part.node(i).id for i in range(part.n_nodes) if part.node(i).kind is NodeKind.FEATURE}
    everything = {whole.node(i).id for i in range(whole.n_nodes) if whole.node(i).kind is NodeKind.FEATURE}
    assert sum(influence[name] for name in chosen) > 0.9 * sum(
        sorted((influence[name] for name in everything), reverse=True)[:12]
    )


def test_salient_logits_are_the_fewest_that_hold_the_probability(tiny_gpt2: LanguageModel) -> None:
    graph = attribute(tiny_gpt2, random_architecture(KINDS["clt"]), PROMPT, max_logits=300, logit_probability=0.7)
    probabilities = graph.nodes.weight[graph.of_kind(NodeKind.LOGIT)]
    assert float(probabilities.sum()) >= 0.7
    assert float(probabilities[:-1].sum()) < 0.7
    actual = tiny_gpt2.logits(tiny_gpt2.tokenize(PROMPT)[None])[0, -1].softmax(-1).sort(descending=True).values
    torch.testing.assert_close(probabilities, actual[: probabilities.shape[0]])


def test_given_tokens_and_positions_are_targets(tiny_gpt2: LanguageModel) -> None:
    token = tiny_gpt2.token_ids([" the"])[0][0]
    graph = attribute(
        tiny_gpt2, random_architecture(KINDS["clt"]), PROMPT, targets=TokenLogits(tokens=(" the", 7), position=3)
    )
    last = [graph.node(graph.n_nodes - 2), graph.node(graph.n_nodes - 1)]
    assert [(node.index, node.position) for node in last] == [(token, 3), (7, 3)]
    assert last[0].label.startswith("output ' the' (p=")
    logits = tiny_gpt2.logits(tiny_gpt2.tokenize(PROMPT)[None])[0, 3]
    torch.testing.assert_close(graph.nodes.total[-2:], logits[[token, 7]] - logits.mean())
    assert graph.check().relative_to_row < 1e-5
    row = graph.adjacency()[-1]
    assert not row[graph.nodes.position > 3].any()


def test_a_logit_difference_is_the_difference_of_two_rows(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    both = attribute(tiny_gpt2, transcoder, PROMPT, targets=TokenLogits(tokens=(5, 9)))
    difference = attribute(tiny_gpt2, transcoder, PROMPT, targets=LogitDifference(positive=5, negative=9))
    rows = both.adjacency()[-2:, :-2]
    torch.testing.assert_close(difference.adjacency()[-1, :-1], rows[0] - rows[1], atol=1e-5, rtol=1e-4)
    assert difference.check().relative_to_row < 1e-5


def test_a_direction_may_be_an_unembedding(tiny_llama: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    W_U = tiny_llama.bridge.W_U
    probe = Direction(vector=W_U[:, 5] - W_U.mean(1), name="probe")
    graph = attribute(tiny_llama, transcoder, PROMPT, targets=[TokenLogits(tokens=(5,)), probe])
    adjacency = graph.adjacency()
    torch.testing.assert_close(adjacency[-1], adjacency[-2], atol=1e-5, rtol=1e-4)
    assert graph.node(graph.n_nodes - 1).label == "probe"


@pytest.mark.parametrize("kind", ["clt", "normalised skip"])
def test_a_feature_may_be_a_target(tiny_gpt2: LanguageModel, kind: str) -> None:
    transcoder = random_architecture(KINDS[kind])
    whole = attribute(tiny_gpt2, transcoder, PROMPT)
    in_layer_2 = whole.of_kind(NodeKind.FEATURE) & (whole.nodes.layer == 2)
    row = int(in_layer_2.nonzero()[-1])
    node = whole.node(row)
    target = FeaturePreactivation(layer=2, feature=node.index, position=node.position)
    graph = attribute(tiny_gpt2, transcoder, PROMPT, targets=target)
    width = int((whole.of_kind(NodeKind.LOGIT) == 0).sum())
    torch.testing.assert_close(graph.adjacency()[-1, :width], whole.adjacency()[row, :width])
    assert graph.scores().completeness <= 1


def test_a_prompt_may_be_given_as_tokens(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    tokens = tiny_gpt2.tokenize(PROMPT)
    as_text, as_list = (attribute(tiny_gpt2, transcoder, prompt) for prompt in (PROMPT, tokens.tolist()))
    torch.testing.assert_close(as_text.adjacency(), as_list.adjacency())
    assert as_text.info.tokens == as_list.info.tokens


def test_several_prompts_give_the_graph_of_each_prompt(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    prompts = [PROMPT, tiny_gpt2.tokenize("One two three"), [0, 5, 9]]
    settings: dict[str, Any] = {"max_feature_nodes": 7, "targets": TokenLogits(tokens=(5,)), "compatible": True}
    graphs = list(attribute_all(tiny_gpt2, transcoder, prompts, **settings))
    assert len(graphs) == 3
    for graph, prompt in zip(graphs, prompts, strict=True):
        alone = attribute(tiny_gpt2, transcoder, prompt, **settings)
        assert graph.info == alone.info
        torch.testing.assert_close(graph.adjacency(), alone.adjacency())


def test_all_prompts_are_checked_before_the_first_is_attributed(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    with refuses(AttributionError, "3 of 3", "'word word"):
        next(attribute_all(tiny_gpt2, transcoder, [PROMPT, PROMPT, "word " * 100]))
    with refuses(AttributionError, "2 of 2"):
        next(attribute_all(tiny_gpt2, transcoder, [PROMPT, [4]]))
    with refuses(AttributionError):
        next(attribute_all(tiny_gpt2, transcoder, PROMPT))
    with refuses(AttributionError, "position", 99):
        next(attribute_all(tiny_gpt2, transcoder, [PROMPT], targets=TokenLogits(tokens=(5,), position=99)))


@pytest.mark.parametrize(("prompts", "shown"), [([PROMPT, "One two"], True), ([PROMPT], False)])
def test_several_prompts_show_a_progress_bar_in_a_terminal(
    tiny_gpt2: LanguageModel,
    prompts: list[str],
    shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich treat standard error as a terminal
    for graph in attribute_all(tiny_gpt2, random_architecture(KINDS["clt"]), prompts, max_feature_nodes=2):
        print(graph.info.prompt)
    captured = capsys.readouterr()
    assert captured.out.splitlines() == prompts
    assert ("attributing" in captured.err) == shown
    assert ("2/2" in captured.err) == shown
    list(attribute_all(tiny_gpt2, random_architecture(KINDS["clt"]), prompts, max_feature_nodes=2, progress=False))
    assert capsys.readouterr().err == ""


def test_attribution_settings_are_the_keywords_of_attribute() -> None:
    parameters = inspect.signature(attribute).parameters.values()
    keywords = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    assert set(AttributionSettings.__annotations__) == keywords


@pytest.mark.parametrize("name", ["molt", "sae"])
def test_a_transcoder_without_linear_edges_is_refused(tiny_gpt2: LanguageModel, name: str) -> None:
    transcoder = random_architecture(architecture(name, d_model=tiny_gpt2.d_model))
    with refuses(AttributionError):
        attribute(tiny_gpt2, transcoder, PROMPT)


def test_mistakes_are_refused_by_name(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    silent = CrossLayerTranscoder(
        CrossLayerConfig(n_layers=3, n_features=8, d_model=32, nonlinearity=JumpReLUConfig(initial_threshold=1e6))
    ).eval()
    unfitting = CrossLayerTranscoder(CrossLayerConfig(n_layers=2, n_features=32, d_model=8))

    def fails(named: str, prompt: object = PROMPT, clt: CrossLayerTranscoder = transcoder, **settings: object) -> None:
        with refuses(AttributionError, *named.split()):
            attribute(tiny_gpt2, clt, prompt, **settings)  # type: ignore[arg-type]

    fails("1", [0])
    fails("e", "e")
    fails("", clt=silent)
    fails("max_feature_nodes 0", max_feature_nodes=0)
    fails("max_count 0", max_logits=0)
    fails("targets", targets=[])
    fails("TokenLogits", targets=TokenLogits(tokens=()))
    fails("Zebras", targets=TokenLogits(tokens=("Zebras run",)))
    fails("300", targets=TokenLogits(tokens=(300,)))
    fails("position 99", targets=TokenLogits(tokens=(5,), position=99))
    fails("L0/99", targets=FeaturePreactivation(layer=0, feature=99))
    fails("3", targets=Direction(vector=torch.zeros(3)))
    with refuses(ConfigError, tiny_gpt2.name):
        attribute(tiny_gpt2, unfitting, PROMPT)
    for prompt in ("word " * 100, [0, 300], [0] * 65):
        with refuses(TextError):
            attribute(tiny_gpt2, transcoder, prompt)
