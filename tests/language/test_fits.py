"""A transcoder that does not belong to a language model is refused in one place, by the names of both sides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from open_clt.errors import ConfigError
from open_clt.features.firing import feature_activations
from open_clt.language.fits import check_fits
from open_clt.language.language_model import LanguageModel
from tests.random_transcoders import random_transcoder


def test_what_fits_passes_as_a_transcoder_and_as_a_config(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_transcoder(tiny_gpt2)
    check_fits(transcoder, tiny_gpt2, same_device=True)
    check_fits(transcoder.config, tiny_gpt2)


@pytest.mark.parametrize(("name", "value"), [("n_layers", 2), ("d_model", 24)])
def test_another_shape_is_refused_by_name(tiny_gpt2: LanguageModel, name: str, value: int) -> None:
    config = replace(random_transcoder(tiny_gpt2).config, **{name: value}, language_model="another")
    with pytest.raises(ConfigError) as refused:
        check_fits(config, tiny_gpt2)
    for part in (f"{name} = {value}", tiny_gpt2.name, "'another'"):
        assert part in str(refused.value)


def test_another_device_is_refused_where_it_matters(tiny_gpt2: LanguageModel) -> None:
    elsewhere = random_transcoder(tiny_gpt2).to("meta")
    check_fits(elsewhere, tiny_gpt2)
    with pytest.raises(ConfigError, match="meta"):
        check_fits(elsewhere, tiny_gpt2, same_device=True)


def test_features_of_another_models_transcoder_are_refused(tiny_gpt2: LanguageModel, tiny_llama: LanguageModel) -> None:
    narrow = random_transcoder(tiny_gpt2)
    assert torch.isfinite(feature_activations(tiny_llama, narrow, "The cat").dense()).all()  # of the same shape
    narrow.config = replace(narrow.config, n_layers=2)
    with pytest.raises(ConfigError):
        feature_activations(tiny_gpt2, narrow, "The cat")
