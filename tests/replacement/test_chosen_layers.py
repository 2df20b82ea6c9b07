"""Replacement models of transcoders of some layers: the MLPs of the other layers are the language model's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from open_clt.config import SamplingConfig, TopKConfig
from open_clt.errors import ConfigError
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.interventions.intervene import generate_patched, intervene
from open_clt.replacement.interventions.intervention import Constrained, Intervention, Iterative, Patching
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.transcoder import Transcoder
from tests.chosen_layers import spread
from tests.random_transcoders import architecture, random_architecture
from tests.reference.naive_replacement import generate_without_cache, replaced_logits
from tests.refusals import refuses

LAYERS = (0, 2)
PROMPT = "The cat sat on the dog"


def chosen(**settings: Any) -> Transcoder:
    """A random transcoder of layers 0 and 2 of the tiny models, which have three."""
    name = settings.pop("name", "clt")
    return random_architecture(architecture(name, n_layers=2, d_model=32, layers=LAYERS, **settings))


def full(transcoder: Transcoder) -> CrossLayerTranscoder:
    assert isinstance(transcoder, CrossLayerTranscoder)
    return spread(transcoder, 3)


@pytest.mark.parametrize("settings", [{}, {"name": "skip"}], ids=str)
def test_logits_are_those_of_the_transcoder_of_all_layers(tiny_gpt2: LanguageModel, settings: dict[str, Any]) -> None:
    transcoder, tokens = chosen(**settings), tiny_gpt2.tokenize(PROMPT)[None]
    replacement = ReplacementModel(tiny_gpt2, transcoder)
    assert replacement.layers == frozenset(LAYERS)
    expected = replaced_logits(tiny_gpt2, full(transcoder), tokens, LAYERS)
    torch.testing.assert_close(replacement.logits(tokens), expected, atol=1e-5, rtol=1e-5)
    exact = ReplacementModel(tiny_gpt2, transcoder, error_correction=True)
    torch.testing.assert_close(exact.logits(tokens), tiny_gpt2.logits(tokens), atol=1e-5, rtol=1e-5)


def test_a_mixture_of_transforms_replaces_its_layers_only(tiny_gpt2: LanguageModel) -> None:
    transcoder, tokens = chosen(name="molt"), tiny_gpt2.tokenize(PROMPT)[None]
    with ReplacementModel(tiny_gpt2, transcoder).replacing() as current:
        captured = tiny_gpt2.capture(tokens, layers=LAYERS)
    inputs = captured.inputs[0, 1:]
    torch.testing.assert_close(captured.targets[0, 1:], transcoder.decode(transcoder.encode(inputs), inputs))
    assert sorted(current.features) == [*LAYERS]


@pytest.mark.parametrize("across_layers", [False, True])
def test_generation_with_a_cache_is_generation_without(tiny_gpt2: LanguageModel, across_layers: bool) -> None:
    transcoder = chosen(nonlinearity=TopKConfig(k=4, across_layers=across_layers))
    replacement = ReplacementModel(tiny_gpt2, transcoder)
    sampling = SamplingConfig(max_new_tokens=6, temperature=0.0)
    tokens = tiny_gpt2.tokenize(PROMPT)
    generated = replacement.generate(tokens, sampling)
    assert generated.tokens[len(tokens) :].tolist() == generate_without_cache(replacement.logits, tokens, sampling)


@pytest.mark.parametrize("patching", [Constrained(), Iterative(), Iterative(freeze_errors=True)], ids=repr)
@pytest.mark.parametrize("error_correction", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_interventions_are_those_on_the_transcoder_of_all_layers(
    tiny_gpt2: LanguageModel, patching: Patching, error_correction: bool
) -> None:
    transcoder = chosen(name="skip", reach=None)
    change = [Intervention(0, 2, 5, value=3.0), Intervention(2, None, 7, value=-2.0)]
    runs = [
        intervene(
            ReplacementModel(tiny_gpt2, each, layers=LAYERS, error_correction=error_correction),
            PROMPT,
            change,
            patching,
        )
        for each in (transcoder, full(transcoder))
    ]
    torch.testing.assert_close(*(run.after.logits for run in runs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(runs[0].changes, runs[1].changes, atol=1e-5, rtol=1e-5)
    assert {*runs[0].changes.layer.tolist()} <= {*LAYERS}
    texts = [
        generate_patched(ReplacementModel(tiny_gpt2, each, layers=LAYERS), PROMPT, change, patching, max_new_tokens=3)
        for each in (transcoder, full(transcoder))
    ]
    assert torch.equal(texts[0].tokens, texts[1].tokens)


def test_layers_without_features_are_refused(tiny_gpt2: LanguageModel) -> None:
    transcoder = chosen()
    with refuses(ConfigError, "[1]", "0 and 2"):
        ReplacementModel(tiny_gpt2, transcoder, layers=[1])
    with refuses(ConfigError, 1, "[0, 2]"):
        intervene(ReplacementModel(tiny_gpt2, transcoder), PROMPT, Intervention(1, 2, 5, value=0.0))
    too_many = random_architecture(architecture("clt", n_layers=2, d_model=32, layers=(1, 7)))
    with refuses(ConfigError, 7, 3):
        ReplacementModel(tiny_gpt2, too_many)
