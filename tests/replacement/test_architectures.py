"""Replacement models work with every kind of transcoder, and at hooks that do not carry an MLP output."""

from __future__ import annotations

import pytest
import torch

from open_clt.config import SamplingConfig
from open_clt.errors import ConfigError, LanguageModelError
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Constrained, Intervention, Iterative
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.transcoder import Transcoder
from tests.random_transcoders import ARCHITECTURES, architecture, random_architecture
from tests.reference.naive_replacement import generate_without_cache, replaced_logits
from tests.refusals import refuses

TEXT = "The cat sat on the mat"


def fitting(model: LanguageModel, name: str, **settings: object) -> Transcoder:
    """A random transcoder of one kind that fits a language model."""
    return random_architecture(architecture(name, n_layers=model.n_layers, d_model=model.d_model, **settings))


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_equal_those_of_the_reference_that_replaces_layers_one_by_one(model: LanguageModel, name: str) -> None:
    transcoder = fitting(model, name)
    tokens = model.tokenize(TEXT)[None]
    replacement = ReplacementModel(model, transcoder)
    expected = replaced_logits(model, transcoder, tokens, range(model.n_layers))
    torch.testing.assert_close(replacement.logits(tokens), expected, atol=1e-4, rtol=1e-4)
    corrected = ReplacementModel(model, transcoder, error_correction=True)
    torch.testing.assert_close(corrected.logits(tokens), model.logits(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["sae", "molt with skip"])
def test_generation_with_a_cache_equals_generation_without(model: LanguageModel, name: str) -> None:
    replacement = ReplacementModel(model, fitting(model, name))
    sampling = SamplingConfig(max_new_tokens=10, stop_at_eos=False)
    generation = replacement.generate(TEXT, sampling)
    naive = generate_without_cache(replacement.logits, model.tokenize(TEXT), sampling)
    assert generation.tokens[generation.prompt_length :].tolist() == naive
    assert replacement.compare(TEXT, SamplingConfig(max_new_tokens=2)).logits.kl_divergence > 0


@pytest.mark.parametrize("hook", ["hook_resid_pre", "hook_resid_post", "attn.hook_out", "mlp.hook_out"])
def test_an_autoencoder_replaces_the_activation_at_any_hook_of_width_d_model(
    tiny_gpt2: LanguageModel, hook: str
) -> None:
    transcoder = fitting(tiny_gpt2, "sae", input_hook=hook, target_hook=hook, use_first_position=True)
    tokens = tiny_gpt2.tokenize(TEXT)[None]
    captured = tiny_gpt2.capture(tokens, hook, hook)
    assert torch.equal(captured.inputs, captured.targets)
    with ReplacementModel(tiny_gpt2, transcoder, layers=[0]).replacing():
        replaced = tiny_gpt2.capture(tokens, "hook_in", hook).targets[0, :, 0]
    expected = transcoder(captured.inputs[0]).reconstruction[:, 0]
    torch.testing.assert_close(replaced, expected, atol=1e-5, rtol=1e-5)


def test_errors_name_hooks_that_cannot_be_used(tiny_gpt2: LanguageModel) -> None:
    tokens = tiny_gpt2.tokenize(TEXT)[None]
    with refuses(LanguageModelError, "attn.hook_pattern", 32):
        tiny_gpt2.capture(tokens, "attn.hook_pattern", "hook_mlp_out")
    with refuses(LanguageModelError, "hook_of_no_model"):
        tiny_gpt2.capture(tokens, "hook_of_no_model", "hook_mlp_out")
    backwards = fitting(tiny_gpt2, "per layer", input_hook="hook_mlp_out", target_hook="hook_resid_mid")
    with refuses(ConfigError, "hook_resid_mid", "hook_mlp_out"):
        ReplacementModel(tiny_gpt2, backwards).logits(tokens)


@pytest.mark.parametrize("patching", [Constrained(), Iterative()])
def test_ablating_a_gate_subtracts_its_transform_of_the_input(
    tiny_gpt2: LanguageModel, patching: Constrained | Iterative
) -> None:
    transcoder = fitting(tiny_gpt2, "molt")
    tokens = tiny_gpt2.tokenize(TEXT)
    inputs = tiny_gpt2.capture(tokens[None]).inputs[0, :, 0]
    gates = transcoder.encode_layer(inputs, 0).dense()
    gate = int(gates[2].argmax())
    record = intervene(
        ReplacementModel(tiny_gpt2, transcoder, error_correction=True),
        tokens,
        Intervention(0, 2, gate, value=0.0),
        patching,
    )
    ablated_gate = torch.zeros_like(gates)
    ablated_gate[2, gate] = gates[2, gate]
    expected = transcoder.write(ablated_gate, 0, inputs)[:, 0]
    change = record.before.outputs[0] - record.after.outputs[0]
    torch.testing.assert_close(change, expected, atol=1e-4, rtol=1e-4)


def test_interventions_on_an_autoencoder_are_refused(tiny_gpt2: LanguageModel) -> None:
    transcoder = fitting(tiny_gpt2, "sae")
    replacement = ReplacementModel(tiny_gpt2, transcoder)
    with refuses(ConfigError, "input_hook", "target_hook", transcoder.config.input_hook):
        intervene(replacement, TEXT, Intervention(0, 2, 3, value=0.0))
