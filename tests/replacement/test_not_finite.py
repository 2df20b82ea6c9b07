"""NaN in a language model, a transcoder or an intervention stops the work where it enters, and is named."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.config import SamplingConfig
from open_clt.errors import ConfigError, NotFiniteError
from open_clt.evaluation.evaluate import measure
from open_clt.features.firing import feature_activations
from open_clt.graphs.targets import Direction
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.comparison import cross_entropies, kl_divergences
from open_clt.replacement.generation import draw
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Intervention, Iterative
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from tests.random_transcoders import random_transcoder
from tests.refusals import refuses

TEXT = "The cat sat on the mat"
Use = Callable[[LanguageModel, CrossLayerTranscoder], object]
USES: dict[str, Use] = {
    "attribute": lambda model, transcoder: attribute(model, transcoder, TEXT, max_feature_nodes=2),
    "generate": lambda model, transcoder: ReplacementModel(model, transcoder).generate(TEXT, max_new_tokens=1),
    "compare": lambda model, transcoder: ReplacementModel(model, transcoder).compare(TEXT),
    "measure": lambda model, transcoder: measure(ReplacementModel(model, transcoder), model.tokenize(TEXT)[None]),
}


@pytest.mark.parametrize("use", USES)
def test_a_transcoder_with_nan_is_not_used(use: str, tiny_gpt2: LanguageModel) -> None:
    """NaN in an encoder makes its feature inactive, and NaN in a decoder makes the outputs NaN."""
    transcoder = random_transcoder(tiny_gpt2)
    transcoder.W_enc.data[1, 5] = torch.nan
    with refuses(NotFiniteError, "layer 1", "feature 5", "nan"):
        USES[use](tiny_gpt2, transcoder)
    transcoder = random_transcoder(tiny_gpt2)
    transcoder.W_dec[1].data[:] = torch.nan
    with refuses(NotFiniteError, "nan"):
        USES[use](tiny_gpt2, transcoder)


def test_features_of_a_transcoder_with_nan_are_not_shown(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_transcoder(tiny_gpt2)
    transcoder.b_enc.data[2, 3] = torch.inf
    with refuses(NotFiniteError, "layer 2", "feature 3", "inf"):
        feature_activations(tiny_gpt2, transcoder, TEXT)


@pytest.mark.parametrize("setting", ["value", "scale"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_an_intervention_has_a_finite_number(setting: str, number: float) -> None:
    with refuses(ConfigError, setting, number):
        Intervention(0, 1, 2, **{setting: number})


def test_an_intervention_that_is_too_large_for_float32_is_refused(tiny_gpt2: LanguageModel) -> None:
    replacement = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2))
    with refuses(NotFiniteError, "L1/4", "inf"):
        intervene(replacement, TEXT, Intervention(1, -1, 4, value=1e300), Iterative())


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_direction_has_finite_numbers(number: float) -> None:
    with refuses(ConfigError, "'probe'", number, "[2]"):
        Direction(vector=torch.tensor([0.0, 1.0, number]), name="probe")


def test_predictions_that_are_not_finite_are_not_compared_and_no_token_is_drawn() -> None:
    logits, broken = torch.zeros(3, 4), torch.zeros(3, 4)
    broken[1, 2] = torch.nan
    with refuses(NotFiniteError, "nan"):
        cross_entropies(broken, torch.tensor([0, 1, 2]))
    with refuses(NotFiniteError, "nan"):
        kl_divergences(logits, broken)
    for temperature in (0.0, 1.0):
        with refuses(NotFiniteError, "nan"):
            draw(broken[1], SamplingConfig(temperature=temperature), torch.Generator())
