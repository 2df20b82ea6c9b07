"""A transcoder that does not fit a language model is refused with an error that names both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from open_clt.errors import ConfigError
from open_clt.features.firing import feature_activations
from open_clt.language.fits import check_fits
from open_clt.language.language_model import LanguageModel
from tests.random_transcoders import random_transcoder
from tests.refusals import refuses


def test_a_transcoder_that_fits_passes_as_its_config_does(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_transcoder(tiny_gpt2)
    check_fits(transcoder, tiny_gpt2, same_device=True)
    check_fits(transcoder.config, tiny_gpt2)


@pytest.mark.parametrize(("name", "value"), [("n_layers", 2), ("d_model", 24)])
def test_a_transcoder_of_another_shape_is_refused(tiny_gpt2: LanguageModel, name: str, value: int) -> None:
    config = replace(random_transcoder(tiny_gpt2).config, **{name: value}, language_model="another")
    with refuses(ConfigError, name, value, tiny_gpt2.name, "another"):
        check_fits(config, tiny_gpt2)


def test_a_transcoder_on_another_device_is_refused_if_the_device_matters(tiny_gpt2: LanguageModel) -> None:
    elsewhere = random_transcoder(tiny_gpt2).to("meta")
    check_fits(elsewhere, tiny_gpt2)
    with refuses(ConfigError, "meta"):
        check_fits(elsewhere, tiny_gpt2, same_device=True)


def test_features_are_refused_for_a_transcoder_of_another_shape(
    tiny_gpt2: LanguageModel, tiny_llama: LanguageModel
) -> None:
    narrow = random_transcoder(tiny_gpt2)
    assert torch.isfinite(feature_activations(tiny_llama, narrow, "The cat").dense()).all()  # the shapes agree
    narrow.config = replace(narrow.config, n_layers=2)
    with refuses(ConfigError, "n_layers", 2):
        feature_activations(tiny_gpt2, narrow, "The cat")
