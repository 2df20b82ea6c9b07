"""QK attributions: the score of an attention head is the sum of a table of sources, and removing one changes it so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from open_clt.attribution.attention_table import Look
from open_clt.attribution.attribute import attribute
from open_clt.attribution.graph_attention import with_attention
from open_clt.attribution.heads import carried_edges
from open_clt.attribution.qk import AttentionExplainer, explain_attention, explain_edge
from open_clt.errors import AttributionError, LanguageModelError
from open_clt.graphs.attention import GraphAttention
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.language.attention_scores import Rotation, read_attention_scores
from open_clt.language.language_model import LanguageModel
from open_clt.language.linear_path import read_linear_path
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from tests.attribution.cases import KINDS, PROMPT
from tests.attribution.held_model import HeldModel
from tests.model_families import load_family
from tests.random_transcoders import random_architecture
from tests.refusals import refuses

FAMILIES = ("GPT2", "Llama", "GPTNeoX", "Qwen3", "Gemma3Text")
MORE = (
    "CodeGen",
    "Falcon (ALiBi)",
    "Gemma2",
    "Glm",
    "GPTJ",
    "GPTNeo",
    "HunYuanDenseV1",
    "Mpt",
    "Olmo2",
    "OPT",
    "StableLm",
)
LOOK = Look(layer=2, head=3, query=-1, key=3)


@pytest.fixture(scope="module", params=[*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_family(request.param, tmp_path_factory.mktemp("family"))


def transcoder_of(n_layers: int) -> CrossLayerTranscoder:
    """A random transcoder that every family can be explained with."""
    transcoder = random_architecture(replace(KINDS["skip from the input of the MLP"], n_layers=n_layers))
    assert isinstance(transcoder, CrossLayerTranscoder)
    return transcoder


@pytest.fixture(scope="module")
def explainer(model: LanguageModel) -> AttentionExplainer:
    return AttentionExplainer(model, transcoder_of(model.n_layers), PROMPT)


def test_the_entries_of_every_table_add_up_to_the_score_of_the_model(explainer: AttentionExplainer) -> None:
    length = len(explainer.token_strings)
    looks = [
        Look(layer, head, query, key)
        for layer, scores in enumerate(explainer.scores)
        for head in range(scores.n_heads)
        for query, key in ((length - 1, 1), (3, 3), (4, 0))
        if scores.pattern[head, query, key] > 0
    ]
    explained = list(explainer.explain_all(looks))
    assert {explanation.look for explanation in explained} == set(looks)
    for explanation in explained:
        look = explanation.look
        scores = explainer.scores[look.layer]
        table = explanation.table().double()
        query, key = explanation.query_vectors.sum(0), explanation.key_vectors.sum(0)
        rounding = 1e-6 * float(query.norm() * key.norm())  # of two vectors that are almost at a right angle
        assert explanation.score == pytest.approx(float(scores.scores()[look.head, look.query, look.key]), abs=1e-4)
        absolute = float(table.abs().sum())
        assert abs(float(table.sum()) + explanation.distance - explanation.score) < 1e-5 * absolute + rounding
        assert explanation.check() * absolute == pytest.approx(abs(explanation.missing()))
        assert explanation.attention == pytest.approx(float(scores.pattern[look.head, look.query, look.key]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_table_adds_up_to_a_hundred_thousandth(family: str, seed: int, tmp_path: Path) -> None:
    """Of the sum of the absolute entries, but for first layers where each side has one source.

    Such a table is a single product. If its two vectors are almost at a right angle, the model's own rounding, which is
    about 1e-7 of their lengths, is large beside it.
    """
    model = load_family(family, tmp_path, seed)
    explainer = AttentionExplainer(model, transcoder_of(model.n_layers), PROMPT)
    looks = [
        Look(layer, head, query, key)
        for layer, scores in enumerate(explainer.scores)
        for head, query, key in (scores.pattern > 0).nonzero().tolist()
    ]
    assert len(looks) > 100
    for explanation in explainer.explain_all(looks):
        if explanation.look.layer == 0 and len(explanation.query_nodes) == len(explanation.key_nodes) == 1:
            lengths = float(explanation.query_vectors.norm() * explanation.key_vectors.norm())
            assert abs(explanation.missing()) < 1e-6 * lengths
        else:
            assert explanation.check() < 1e-5


def test_differences_of_explained_scores_decide_the_attention(explainer: AttentionExplainer) -> None:
    explanation = explainer.explain(*LOOK[:4], versus=2)
    single = [explainer.explain(2, 3, -1, key) for key in (3, 2)]
    assert explanation.score == pytest.approx(single[0].score - single[1].score, abs=1e-5)
    assert explanation.check() < 1e-5
    capped = [
        one.score if one.cap is None else one.cap * float(torch.tensor(one.score / one.cap).tanh()) for one in single
    ]
    assert explanation.versus_attention is not None
    ratio = explanation.attention / explanation.versus_attention
    assert ratio == pytest.approx(float(torch.tensor(capped[0] - capped[1]).exp()), rel=1e-3)


def test_removing_a_source_on_the_side_of_the_query_changes_the_score_by_its_part(
    model: LanguageModel,
) -> None:
    if model.bridge.cfg.architecture == "OPTForCausalLM":
        pytest.skip("the hooks of the held model do not freeze the attention of OPT")
    fitting = transcoder_of(model.n_layers)
    graph = attribute(model, fitting, PROMPT)
    held, explainer = HeldModel(model, fitting, graph), AttentionExplainer(model, fitting, graph)
    explanation = explainer.explain(*LOOK)
    look, scores = explanation.look, explainer.scores[LOOK.layer]
    key = scores.k[look.head, look.key]

    def score(ablated: int | None) -> float:
        queries = held.queries(look.layer, None if ablated is None else graph.node(ablated))
        query = scores.queries.finish(queries)[look.head, look.query]
        return scores.scale * float(query @ key)

    before, parts = score(None), explanation.by_query()
    rows = {node: row for row, node in enumerate(graph.nodes.ids())}
    features = (explanation.query_nodes.kind == NodeKind.FEATURE).nonzero().flatten().tolist()[::4]
    assert features
    size = float(explanation.table().abs().sum())
    for feature in features:
        node = explanation.query_nodes.ids()[feature]
        assert score(rows[node]) - before == pytest.approx(-float(parts[feature]), abs=1e-4 * size)


def test_the_largest_pairs_and_sources_are_those_of_the_table(tiny_gpt2: LanguageModel) -> None:
    explanation = explain_attention(
        tiny_gpt2, random_architecture(KINDS["clt"]), PROMPT, layer=2, head=1, query=-1, key=2
    )
    table, pairs = explanation.table(), explanation.pairs(7)
    weights = [abs(pair.weight) for pair in pairs]
    assert weights == sorted(weights, reverse=True)
    torch.testing.assert_close(torch.tensor(weights), table.abs().flatten().topk(7).values)
    query, key = explanation.query_nodes.ids().index(pairs[0].query), explanation.key_nodes.ids().index(pairs[0].key)
    assert float(table[query, key]) == pytest.approx(pairs[0].weight)
    torch.testing.assert_close(explanation.by_query(), table.sum(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(explanation.by_key(), table.sum(0), atol=1e-5, rtol=1e-4)
    plain = explanation.to_json(3)
    assert [entry["weight"] for entry in plain["pairs"]] == [pair.weight for pair in pairs[:3]]
    assert {node.position for node in explanation.key_nodes.ids()} <= {0, 1, 2}


def test_a_graph_gives_its_prompt(tiny_llama: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    graph = attribute(tiny_llama, transcoder, PROMPT, max_feature_nodes=9).prune()
    settings = {"layer": 1, "head": 0, "query": 4, "key": 2}
    of_graph, of_prompt = (explain_attention(tiny_llama, transcoder, given, **settings) for given in (graph, PROMPT))
    assert of_graph.pairs() == of_prompt.pairs()


def test_the_heads_of_an_edge_are_explained(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_architecture(KINDS["clt"])
    graph = attribute(tiny_gpt2, transcoder, PROMPT)
    target = graph.n_nodes - 1
    source = int(graph.of_kind(NodeKind.EMBEDDING).nonzero()[2])
    explained = explain_edge(tiny_gpt2, transcoder, graph, source, target, share=0.02)
    weights = [abs(part.carried.weight) for part in explained]
    assert weights == sorted(weights, reverse=True)
    assert min(weights) >= 0.02 * abs(float(graph.adjacency()[target, source]))
    for carried, explanation in explained:
        assert carried.source == source
        assert explanation.look == carried.look
        assert explanation.attention > 0
    largest = explained[0].carried.look
    assert explained[0].explanation.pairs(3) == explain_attention(
        tiny_gpt2, transcoder, PROMPT, layer=largest.layer, head=largest.head, query=largest.query, key=largest.key
    ).pairs(3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"layer": 3},
        {"layer": -1},
        {"head": 4},
        {"query": 40},
        {"key": -40},
        {"key": 5, "query": 4},
        {"versus": 5, "query": 4},
    ],
    ids=str,
)
def test_what_a_head_cannot_look_at_is_refused(tiny_gpt2: LanguageModel, wrong: dict[str, int]) -> None:
    settings = {"layer": 1, "head": 0, "query": 4, "key": 2, **wrong}
    with refuses(AttributionError):
        explain_attention(tiny_gpt2, random_architecture(KINDS["clt"]), PROMPT, **settings)


def test_scores_that_no_candidate_gives_are_refused(tiny_gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tiny_gpt2.tokenize(PROMPT)
    inputs = read_linear_path(tiny_gpt2, tokens, "hook_resid_mid").attention_inputs()
    with refuses(LanguageModelError, "projections deviate"):
        read_attention_scores(tiny_gpt2, tokens, [2 * stream for stream in inputs])
    for block in tiny_gpt2.bridge.blocks:
        monkeypatch.setattr(block.attn.original_component, "scaling", 0.25, raising=False)
    monkeypatch.setattr("open_clt.language.attention_scores.math.sqrt", lambda number: 0.1)
    with refuses(LanguageModelError, "pattern deviates"):
        read_attention_scores(tiny_gpt2, tokens, inputs)


def test_a_rotation_turns_pairs_by_its_angles() -> None:
    angle = torch.tensor(0.3)
    for adjacent, pairs in ((True, ([0, 1], [2, 3])), (False, ([0, 2], [1, 3]))):
        rotation = Rotation(angle.cos().expand(1, 4), angle.sin().expand(1, 4), adjacent=adjacent)
        vector = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
        turned = rotation.forward(vector[None, None])[0, 0]
        torch.testing.assert_close(rotation.at(vector[None], 0, 0)[0], turned)
        assert turned[4] == 5
        for first, second in pairs:
            x, y = vector[first], vector[second]
            expected = torch.stack([x * angle.cos() - y * angle.sin(), y * angle.cos() + x * angle.sin()])
            torch.testing.assert_close(turned[[first, second]], expected)


TRANSCODER = random_architecture(KINDS["clt"])


@pytest.fixture(scope="module")
def graph(tiny_gpt2: LanguageModel) -> AttributionGraph:
    return attribute(tiny_gpt2, TRANSCODER, PROMPT, max_logits=2, max_feature_nodes=12)


def explained(graph: AttributionGraph) -> GraphAttention:
    assert graph.attention is not None
    return graph.attention


@pytest.mark.slow
def test_every_head_that_carries_a_kept_edge_is_explained(tiny_gpt2: LanguageModel, graph: AttributionGraph) -> None:
    part = graph.prune(0.6, 0.8)
    attention = explained(with_attention(tiny_gpt2, TRANSCODER, graph, part=part, share=0.1, top=5))
    ids = graph.nodes.ids()
    kept = {
        (part.nodes.ids()[source], part.nodes.ids()[target])
        for target, source in zip(part.edges.target.tolist(), part.edges.source.tolist(), strict=True)
    }
    expected = {
        (ids[each.source], ids[target], each.look): each.weight
        for target in graph.edges.rows.tolist()
        for each in carried_edges(tiny_gpt2, TRANSCODER, graph, target, share=0.1)
        if (ids[each.source], ids[target]) in kept
    }
    assert {each[:3]: each.weight for each in attention.carried} == pytest.approx(expected, abs=1e-6)
    assert len(expected) > 10
    assert {each.look for each in attention.carried} == {each.look for each in attention.looks}
    explainer = AttentionExplainer(tiny_gpt2, TRANSCODER, graph)
    for look in attention.looks[::7]:
        alone = explainer.explain(*look.look)
        assert (look.score, look.attention) == pytest.approx((alone.score, alone.attention), abs=1e-6)
        pairs = {pair[:2]: pair.weight for pair in alone.pairs(5, constants=False)}
        assert {pair[:2]: pair.weight for pair in look.pairs} == pytest.approx(pairs, abs=1e-5)
        largest = alone.by_key()[
            (alone.key_nodes.kind != NodeKind.BIAS) & (alone.key_nodes.kind != NodeKind.POSITIONAL)
        ]
        weights = [part.weight for part in look.by_key]
        assert weights == pytest.approx(largest[largest.abs().argsort(descending=True)[:5]].tolist(), abs=1e-5)
        assert look.missing_share < 1e-5
    active = dict(zip(ids, graph.nodes.value.tolist(), strict=True))
    assert attention.activations
    for node, value in attention.activations.items():
        assert node.kind is NodeKind.FEATURE
        assert value == pytest.approx(active.get(node, value))


def test_mistakes_are_refused(tiny_gpt2: LanguageModel, graph: AttributionGraph) -> None:
    for share in (0.0, 1.5, -1.0):
        with refuses(AttributionError, str(share)):
            with_attention(tiny_gpt2, TRANSCODER, graph, share=share)
    other = attribute(tiny_gpt2, TRANSCODER, "The dog sat on the cat", max_feature_nodes=2)
    with refuses(AttributionError, "another prompt"):
        with_attention(tiny_gpt2, TRANSCODER, graph, part=other)
    with refuses(AttributionError, "before pruning"):
        with_attention(tiny_gpt2, TRANSCODER, graph.prune(0.6, 0.8))


def test_a_graph_whose_edges_no_head_carries_has_no_looks(tiny_gpt2: LanguageModel, graph: AttributionGraph) -> None:
    nothing = graph.part(
        torch.zeros(graph.n_nodes, dtype=torch.bool).index_fill(0, torch.tensor([graph.n_nodes - 1]), True)
    )
    attention = explained(with_attention(tiny_gpt2, TRANSCODER, graph, part=nothing))
    assert (attention.looks, attention.carried) == ((), ())
