"""The transcoder that a source means: the model's neurons, or a stored one that fits."""

from __future__ import annotations

from pathlib import Path

import torch

from open_clt.config import SamplingConfig
from open_clt.errors import CheckpointError, ConfigError
from open_clt.language.language_model import LanguageModel
from open_clt.language.transcoders.named import transcoder_of
from open_clt.replacement.generation import generate
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.neurons.transcoder import NeuronTranscoder
from tests.random_transcoders import random_transcoder
from tests.refusals import refuses


def test_neurons_are_the_models_own_and_a_path_is_a_directory(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    assert isinstance(transcoder_of(tiny_gpt2, "neurons"), NeuronTranscoder)
    with refuses(CheckpointError, "neurons"):
        transcoder_of(tiny_gpt2, Path("neurons"))
    saved = save_transcoder(random_transcoder(tiny_gpt2), tmp_path / "neurons")
    assert not isinstance(transcoder_of(tiny_gpt2, saved), NeuronTranscoder)
    with refuses(ConfigError, "neurons", "stored"):
        load_transcoder("neurons")


def test_a_replacement_model_of_neurons_is_the_model_itself(
    tiny_gpt2: LanguageModel, tiny_llama: LanguageModel
) -> None:
    for model in (tiny_gpt2, tiny_llama):
        replacement, tokens = ReplacementModel(model, "neurons"), torch.arange(20, 40).view(2, 10)
        torch.testing.assert_close(replacement.logits(tokens), model.logits(tokens), atol=1e-5, rtol=1e-5)
        settings = SamplingConfig(max_new_tokens=4, temperature=0.0)
        own = generate(model, "The cat", settings)
        assert replacement.generate("The cat", settings).text == own.text
