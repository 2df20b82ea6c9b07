"""The neurons of a model: its own weights, which give the outputs of its MLPs; other MLPs are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_clt.errors import LanguageModelError
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.language.transcoders.neurons import neurons_of
from tests.model_families import load_family
from tests.refusals import refuses
from tests.tiny_models import write_gpt2

WORKING = (
    "Apertus", "CodeGen", "Ernie4_5", "Exaone4", "Falcon", "Falcon (ALiBi)", "GPT2", "GPTBigCode", "GPTJ", "GPTNeo",
    "GPTNeoX", "Gemma", "Gemma2", "Gemma3Text", "Glm", "Glm4", "Granite", "HunYuanDenseV1", "Llama", "Mistral", "Mpt",
    "Nemotron", "OPT", "Olmo", "Olmo2", "Phi", "Phi3", "Qwen2", "Qwen3", "SmolLM3", "StableLm", "Starcoder2",
)  # fmt: skip
"""Families whose neurons give the outputs of their MLPs."""


def check_outputs(model: LanguageModel) -> None:
    """Compare the neurons' outputs with those of the MLPs."""
    neurons, tokens = neurons_of(model), torch.arange(20, 50)[None]
    captured = model.capture(tokens, neurons.config.input_hook, neurons.config.target_hook)
    inputs, outputs = captured.inputs[0], captured.targets[0]
    reconstruction = neurons.decode(neurons.encode(inputs), inputs)
    torch.testing.assert_close(reconstruction, outputs, atol=1e-5 * float(outputs.abs().max()), rtol=1e-5)


def test_neurons_give_the_outputs_of_the_mlps(tiny_gpt2: LanguageModel, tiny_llama: LanguageModel) -> None:
    for model in (tiny_gpt2, tiny_llama):
        check_outputs(model)


@pytest.mark.slow
@pytest.mark.parametrize("family", WORKING)
def test_neurons_give_the_outputs_of_the_mlps_in_every_family(tmp_path: Path, family: str) -> None:
    check_outputs(load_family(family, tmp_path))


def test_neurons_share_the_weights_of_the_model(tiny_gpt2: LanguageModel) -> None:
    layer = neurons_of(tiny_gpt2).layers[1]
    mlp = tiny_gpt2.bridge.blocks[1].mlp
    assert layer.W_out.data_ptr() == mlp.out.original_component.weight.data_ptr()
    assert layer.W_in.data_ptr() == getattr(mlp, "in").original_component.weight.data_ptr()


@pytest.mark.parametrize("family", [pytest.param(name, marks=pytest.mark.slow) for name in ("Mixtral", "Qwen2Moe")])
def test_a_mixture_of_experts_is_refused(tmp_path: Path, family: str) -> None:
    with refuses(LanguageModelError, "layer 0", "neurons"):
        neurons_of(load_family(family, tmp_path))


def test_an_mlp_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    model = load_language_model(str(write_gpt2(tmp_path, n_layer=2)))
    handle = model.bridge.blocks[1].mlp.original_component.register_forward_hook(lambda _m, _i, output: 1.1 * output)
    with refuses(LanguageModelError, "layer 1", "deviate"):
        neurons_of(model)
    handle.remove()
    neurons_of(model)
