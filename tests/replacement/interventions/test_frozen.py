"""Frozen attention and norms: effects equal the edges of a graph in families that compute attention differently."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from torch import Tensor

from open_clt.attribution.attribute import attribute
from open_clt.config import SamplingConfig
from open_clt.errors import LanguageModelError
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.interventions.intervene import generate_patched, intervene
from open_clt.replacement.interventions.intervention import Constrained, Intervention
from open_clt.replacement.model import ReplacementModel
from tests.measured_families import PROMPT, edges_less_effects, transcoder_of
from tests.model_families import load_family
from tests.refusals import refuses

CHANGE = Intervention(0, 2, 3, value=1.0)


@pytest.mark.parametrize("family", ["GPTNeo", "OPT", "Olmo"])
def test_effects_equal_edges_and_no_warning_is_shown(family: str, tmp_path: Path) -> None:
    model = load_family(family, tmp_path)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for hook in model.input_hooks:
            transcoder = transcoder_of(model, hook)
            assert edges_less_effects(model, transcoder, attribute(model, transcoder, PROMPT)) < 1e-5
    assert not [warning for warning in shown if "transformer_lens" in warning.filename]


def test_generation_with_frozen_attention_is_refused_where_a_cache_hides_the_values(tmp_path: Path) -> None:
    model = load_family("GPTNeo", tmp_path)
    replacement = ReplacementModel(model, transcoder_of(model, "hook_resid_mid"), error_correction=True)
    sampling = SamplingConfig(max_new_tokens=3, stop_at_eos=False)
    with refuses(LanguageModelError, "freeze_attention", "blocks.0.attn"):
        generate_patched(replacement, PROMPT, CHANGE, Constrained(), sampling)
    free = Constrained(freeze_attention=False)
    assert len(generate_patched(replacement, PROMPT, CHANGE, free, sampling).tokens) > 8


@pytest.mark.parametrize(
    ("hook", "field"), [("blocks.1.attn.hook_z", "freeze_attention"), ("blocks.1.ln1.hook_out", "freeze_norms")]
)
def test_a_model_that_does_not_use_the_frozen_values_is_refused(
    tiny_llama: LanguageModel, hook: str, field: str
) -> None:
    def changed(activation: Tensor) -> Tensor:
        return activation * 1.5

    replacement = ReplacementModel(tiny_llama, transcoder_of(tiny_llama, "hook_resid_mid"), error_correction=True)
    with tiny_llama.hooks([(hook, changed)]), refuses(LanguageModelError, field, hook.rsplit(".", 1)[0]):
        intervene(replacement, PROMPT, CHANGE)
