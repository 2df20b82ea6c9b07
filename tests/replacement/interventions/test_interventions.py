"""Interventions change features as described, have the effects that graphs predict, and leave no hooks behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.config import BatchTopKConfig, SamplingConfig
from open_clt.errors import ConfigError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.replacement.generation import generate
from open_clt.replacement.interventions.intervene import InterventionRecord, generate_patched, intervene
from open_clt.replacement.interventions.intervention import (
    Constrained,
    Intervention,
    Iterative,
    Patching,
    interventions_on,
)
from open_clt.replacement.interventions.observation import observe
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.circuit_tracer import load_circuit_tracer
from tests.random_transcoders import random_transcoder
from tests.reference.naive_replacement import generate_without_cache
from tests.refusals import refuses

TEXT = "The cat sat on the mat"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return request.getfixturevalue(request.param)


def corrected(model: LanguageModel, **settings: Any) -> ReplacementModel:
    """A replacement model with error correction and a random transcoder."""
    return ReplacementModel(model, random_transcoder(model, **settings), error_correction=True)


def active(replacement: ReplacementModel, layer: int, text: str = TEXT) -> tuple[int, int]:
    """Position and index of the most active feature of a layer."""
    features = observe(replacement, text).features[layer]
    strongest = int(features.values.argmax())
    return int(features.rows[strongest]), int(features.features[strongest])


# Predictions of the graph


def assert_as_predicted(
    graph: AttributionGraph,
    record: InterventionRecord,
    transcoder: CrossLayerTranscoder,
    scale: float,
    sources: Any,
) -> None:
    """The change of every node's total is (scale - 1) times its edges from the features that were scaled."""
    predicted = (scale - 1) * graph.adjacency()[:, sources].sum(1)
    measured = torch.full_like(predicted, torch.nan)
    for row in (~graph.nodes.total.isnan()).nonzero().flatten().tolist():
        node = graph.node(row)
        if node.kind is NodeKind.FEATURE:
            change = record.preactivation_change(transcoder, node.layer, torch.tensor([node.index]))
            measured[row] = change[node.position, 0]
        else:
            change = (record.logits_after - record.logits_before)[node.position]
            measured[row] = change[node.index] - change.mean()
    rows = ~measured.isnan()
    assert predicted[rows].abs().max() > 0.01
    torch.testing.assert_close(measured[rows], predicted[rows], atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [0.0, 3.0])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"input_hook": "ln2.hook_normalized", "skip": True},
        {"reach": 1, "nonlinearity": BatchTopKConfig(k=4)},
    ],
    ids=str,
)
def test_constrained_effects_are_what_the_graph_predicts(
    model: LanguageModel, settings: dict[str, Any], scale: float
) -> None:
    replacement = corrected(model, **settings)
    transcoder: Any = replacement.transcoder
    graph = attribute(model, transcoder, TEXT)
    features = graph.of_kind(NodeKind.FEATURE).nonzero().flatten().tolist()
    before = observe(replacement, TEXT)
    for sources in ([features[3]], features[::7]):
        interventions = interventions_on([graph.node(row).id for row in sources], scale=scale)
        record = intervene(replacement, before, interventions)
        assert_as_predicted(graph, record, transcoder, scale, sources)


def test_constrained_effects_on_the_embedded_model_are_what_the_graph_predicts() -> None:
    model = load_language_model("embedded")
    replacement = corrected(model, n_features=64)
    transcoder: Any = replacement.transcoder
    text = "The capital of the state containing Dallas is"
    graph = attribute(model, transcoder, text)
    sources = graph.of_kind(NodeKind.FEATURE).nonzero().flatten().tolist()[::5]
    record = intervene(replacement, text, interventions_on([graph.node(row).id for row in sources], value=0.0))
    assert_as_predicted(graph, record, transcoder, 0.0, sources)


@pytest.mark.reference
def test_constrained_effects_on_the_reference_model_are_what_the_graph_predicts(reference_folder: Path) -> None:
    folder = reference_folder / "circuit_tracer_tiny"
    model, transcoder = load_language_model(str(folder / "model")), load_circuit_tracer(folder / "clt")
    replacement = ReplacementModel(model, transcoder, error_correction=True)
    graph = attribute(model, transcoder, "The cat sat on the mat")
    sources = graph.of_kind(NodeKind.FEATURE).nonzero().flatten().tolist()[::11]
    interventions = interventions_on([graph.node(row).id for row in sources], value=0.0)
    record = intervene(replacement, torch.tensor(graph.info.tokens), interventions)
    assert_as_predicted(graph, record, transcoder, 0.0, sources)


# How far effects spread


def test_multiplying_a_feature_by_1_has_no_effect(model: LanguageModel) -> None:
    position, feature = active(corrected(model), 0)
    for patching in (
        Constrained(),
        Constrained(layers=range(0, 2)),
        Iterative(),
        Iterative(freeze_errors=True),
    ):
        record = intervene(corrected(model), TEXT, Intervention(0, position, feature, scale=1.0), patching)
        torch.testing.assert_close(record.logits_after, record.logits_before, atol=1e-5, rtol=1e-5)
        assert record.kl_divergence == pytest.approx(0, abs=1e-6)


def test_iterative_ablation_in_the_last_layer_subtracts_the_features_writes_from_the_mlp_output(
    model: LanguageModel,
) -> None:
    replacement = corrected(model)
    last = model.n_layers - 1
    position, feature = active(replacement, last)
    record = intervene(replacement, TEXT, Intervention(last, position, feature, value=0.0), Iterative())
    transcoder: Any = replacement.transcoder
    value = record.before.features[last].dense()[position, feature]

    def edit(output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[0, position] -= value * transcoder.folded().W_dec[last][feature, 0]
        return output

    with model.hooks([(model.hook_name(last, "hook_mlp_out"), edit)]):
        expected = model.logits(model.tokenize(TEXT)[None])[0]
    torch.testing.assert_close(record.logits_after, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(record.logits_after, record.logits_before, atol=1e-3)


def test_later_layers_change_only_if_their_mlp_outputs_are_not_held(tiny_gpt2: LanguageModel) -> None:
    replacement = corrected(tiny_gpt2, reach=1)
    position, feature = active(replacement, 0)
    intervention = Intervention(0, position, feature, scale=8.0)
    first_layer = Constrained(layers=range(0, 1), freeze_attention=False)
    records = {
        "all held": intervene(replacement, TEXT, intervention),
        "first held": intervene(replacement, TEXT, intervention, first_layer),
        "none held": intervene(replacement, TEXT, intervention, Iterative()),
    }
    change = {name: (record.after.outputs - record.before.outputs).norm(dim=(1, 2)) for name, record in records.items()}
    assert change["all held"][0] > 0.1
    assert change["all held"][1:].abs().max() == 0
    assert change["first held"][1:].min() > 0.01
    # With an intervention on layer 0, holding layer 0 has no effect: no earlier layer could change it.
    expected = records["none held"].logits_after
    torch.testing.assert_close(records["first held"].logits_after, expected, atol=1e-5, rtol=1e-5)


def test_writes_of_a_feature_to_layers_that_are_not_held_are_left_out(tiny_gpt2: LanguageModel) -> None:
    replacement = corrected(tiny_gpt2)
    position, feature = active(replacement, 1)
    record = intervene(
        replacement, TEXT, Intervention(1, position, feature, value=0.0), Constrained(layers=range(0, 1))
    )
    torch.testing.assert_close(record.logits_after, record.logits_before, atol=1e-5, rtol=1e-5)


def test_only_frozen_activations_keep_the_prompts_values(model: LanguageModel) -> None:
    replacement = corrected(model)
    _, feature = active(replacement, 0)
    intervention = Intervention(0, slice(1, None), feature, value=4.0)

    def largest_change(patching: Patching, ending: str) -> float:
        record = intervene(replacement, TEXT, intervention, patching)
        before, after = record.before.frozen, record.after.frozen
        return max(float((before[name] - after[name]).abs().max()) for name in before if name.endswith(ending))

    for patching in (Iterative(freeze_attention=True), Constrained(layers=range(0, 2))):
        assert largest_change(patching, "_pattern") == 0
        assert largest_change(patching, "_scale") > 1e-3
    for patching in (Iterative(freeze_norms=True), Constrained(freeze_attention=False)):
        assert largest_change(patching, "_pattern") > 1e-3
        assert largest_change(patching, "_scale") == 0


def test_with_frozen_errors_mlp_outputs_change_as_their_reconstruction_does(tiny_gpt2: LanguageModel) -> None:
    replacement = corrected(tiny_gpt2)
    position, feature = active(replacement, 0)
    intervention = Intervention(0, position, feature, value=5.0)
    record = intervene(replacement, TEXT, intervention, Iterative(freeze_errors=True))
    change = record.after.outputs - record.before.outputs

    def reconstruction(run: Any) -> torch.Tensor:
        return replacement.transcoder.decode(list(run.features), run.inputs.transpose(0, 1)).transpose(0, 1)

    expected = reconstruction(record.after) - reconstruction(record.before)
    torch.testing.assert_close(change[:, 1:], expected[:, 1:], atol=1e-4, rtol=1e-4)
    assert change[1:].norm() > 0.1


def test_without_error_correction_effects_are_those_in_the_replacement_model(tiny_gpt2: LanguageModel) -> None:
    replacement = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2))
    position, feature = active(replacement, 0)
    for patching in (Constrained(), Iterative()):
        record = intervene(replacement, TEXT, Intervention(0, position, feature, value=3.0), patching)
        torch.testing.assert_close(record.logits_before, replacement.logits(tiny_gpt2.tokenize(TEXT)[None])[0])
        assert record.kl_divergence > 1e-5


# The record


def test_the_record_lists_every_change_and_the_likeliest_tokens_of_both_runs(tiny_gpt2: LanguageModel) -> None:
    replacement = corrected(tiny_gpt2)
    position, feature = active(replacement, 0)
    record = intervene(replacement, TEXT, Intervention(0, position, feature, value=9.0), Iterative(), top=3)
    changes = record.changes
    assert [int(column[0]) for column in changes[:3]] == [0, position, feature]
    assert float(changes.after[0]) == 9.0
    assert bool((changes.position >= position).all())
    difference = [
        (after.dense() - before.dense()).abs().sum()
        for before, after in zip(record.before.features, record.after.features, strict=True)
    ]
    torch.testing.assert_close((changes.after - changes.before).abs().sum(), torch.stack(difference).sum())
    probabilities = record.logits_after[-1].softmax(-1).sort(descending=True)
    assert [top.token for top in record.top_after] == tiny_gpt2.token_strings(probabilities.indices[:3])
    assert [top.probability for top in record.top_after] == pytest.approx(probabilities.values[:3].tolist(), rel=1e-5)
    assert f"L0/{feature} at {position} = 9" in record.summary()
    assert f"L0/{feature} at {position}: " in record.summary()


# Positions and features


def test_positions_count_from_both_ends_and_slices_cover_their_positions(tiny_gpt2: LanguageModel) -> None:
    replacement = corrected(tiny_gpt2)
    length = len(tiny_gpt2.tokenize(TEXT))

    def covered(position: Any) -> list[int]:
        changes = intervene(replacement, TEXT, Intervention(0, position, 5, value=7.0)).changes
        of_intervention = (changes.layer == 0) & (changes.feature == 5) & (changes.after == 7.0)
        return sorted(changes.position[of_intervention].tolist())

    assert covered(3) == [3]
    assert covered(-1) == [length - 1]
    assert covered(None) == list(range(1, length))  # features are not used at the first position
    assert covered(slice(None, 3)) == [1, 2]
    assert covered(slice(-2, None)) == [length - 2, length - 1]
    assert covered(slice(2, -1)) == list(range(2, length - 1))
    assert covered(slice(None, None, 2)) == list(range(2, length, 2))


def test_interventions_are_made_from_an_id_a_list_or_a_group() -> None:
    group = SimpleNamespace(members=("0:2:4", "1:3:7"))
    expected = [Intervention(0, 2, 4, value=0.0), Intervention(1, 3, 7, value=0.0)]
    assert interventions_on(group, value=0.0) == expected
    assert interventions_on(["0_4_2", "1_7_3"], value=0.0) == expected
    assert interventions_on([group, "2_9"], scale=2.0)[-1] == Intervention(2, None, 9, scale=2.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2:5:417", (2, 5, 417)),
        ("2:-1:417", (2, -1, 417)),
        ("2:*:417", (2, None, 417)),
        ("2_417_5", (2, 5, 417)),  # circuit-tracer's notation
        ("L2/417", (2, None, 417)),
        ("2_417", (2, None, 417)),
    ],
)
def test_every_notation_of_a_feature_is_read(text: str, expected: tuple[int, int | None, int]) -> None:
    assert interventions_on(text, value=0.0) == [Intervention(*expected, value=0.0)]


@pytest.mark.parametrize(
    "text", ["", "2", "2:417", "2:5:417:1", "2:5:-1", "-1:5:4", "*:5:4", "2_417_-1", "²:1:1", "2:5:417\n"]
)
def test_other_texts_are_refused(text: str) -> None:
    with refuses(ConfigError, repr(text)):
        interventions_on(text, value=0.0)


def test_interventions_on_one_feature_are_applied_in_their_order(tiny_gpt2: LanguageModel) -> None:
    replacement = corrected(tiny_gpt2)
    interventions = [Intervention(0, 2, 5, value=3.0), Intervention(0, 2, 5, scale=2.0)]
    assert intervene(replacement, TEXT, interventions).after.features[0].dense()[2, 5] == 6.0


def test_impossible_interventions_are_refused(tiny_gpt2: LanguageModel) -> None:
    replacement = corrected(tiny_gpt2)
    with refuses(ConfigError, "value", "scale"):
        Intervention(0, 1, 2)
    with refuses(ConfigError, "value", "scale"):
        Intervention(0, 1, 2, value=1.0, scale=2.0)
    with refuses(ConfigError, "E_12_3"):
        interventions_on("E_12_3", value=0.0)
    for impossible, named in (
        (Intervention(3, 1, 2, value=0.0), ("layer", 3)),
        (Intervention(0, 1, 40, value=0.0), ("feature", 40, 39)),
        (Intervention(0, 99, 2, value=0.0), ("position", 99)),
        (Intervention(0, -99, 2, value=0.0), ("position", -99)),
        (Intervention(0, 0, 2, value=0.0), ("position", 0, 1)),
        (Intervention(0, slice(3, 1, -1), 2, value=0.0), ("step", -1)),
    ):
        with refuses(ConfigError, *named):
            intervene(replacement, TEXT, impossible)
    for layers in (range(2, 5), range(0, 0), range(0, 3, 2)):
        with refuses(ConfigError, "layers", layers):
            intervene(replacement, TEXT, Intervention(0, 1, 2, value=0.0), Constrained(layers=layers))


def test_after_interventions_the_model_is_exactly_as_before(model: LanguageModel) -> None:
    replacement = corrected(model)
    tokens = model.tokenize(TEXT)[None]
    before = model.logits(tokens)
    for patching in (Constrained(), Iterative(freeze_errors=True)):
        intervene(replacement, TEXT, Intervention(0, 2, 5, value=3.0), patching)
        generate_patched(replacement, TEXT, Intervention(0, 2, 5, value=3.0), patching, max_new_tokens=2)
    assert not any(point.fwd_hooks for point in model.bridge.hook_dict.values())
    assert torch.equal(model.logits(tokens), before)


# Generation with interventions


@pytest.mark.parametrize("patching", [Iterative(), Iterative(freeze_attention=True), Constrained()], ids=str)
@pytest.mark.parametrize("error_correction", [pytest.param(True, marks=pytest.mark.slow), False])
def test_generation_with_a_cache_equals_generation_without(
    model: LanguageModel, patching: Patching, error_correction: bool
) -> None:
    replacement = ReplacementModel(model, random_transcoder(model), error_correction=error_correction)
    interventions = [Intervention(0, slice(-2, None), 5, value=20.0), Intervention(1, 3, 7, scale=0.0)]
    sampling = SamplingConfig(max_new_tokens=6, stop_at_eos=False)
    prompt = model.tokenize(TEXT)
    # Without a cache, each new token makes the prompt longer, so positions must count from the start.
    absolute = [Intervention(0, slice(len(prompt) - 2, None), 5, value=20.0), interventions[1]]
    generation = generate_patched(replacement, TEXT, interventions, patching, sampling)
    naive = generate_without_cache(
        lambda tokens: intervene(replacement, tokens[0], absolute, patching).logits_after[None],
        prompt,
        sampling,
    )
    assert generation.tokens[generation.prompt_length :].tolist() == naive
    assert naive != generate(model, TEXT, sampling).tokens[generation.prompt_length :].tolist()


def test_an_intervention_after_the_prompt_takes_effect_when_its_position_is_generated(
    tiny_gpt2: LanguageModel,
) -> None:
    replacement = corrected(tiny_gpt2)
    length = len(tiny_gpt2.tokenize(TEXT))
    sampling = SamplingConfig(max_new_tokens=6, stop_at_eos=False)
    plain = generate(tiny_gpt2, TEXT, sampling).tokens
    interventions = [Intervention(layer, length + 2, 5, value=60.0) for layer in range(3)]
    changed = generate_patched(replacement, TEXT, interventions, sampling=sampling).tokens
    assert changed[: length + 3].equal(plain[: length + 3])
    assert not changed.equal(plain)
