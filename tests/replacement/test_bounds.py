"""TopK across layers in a replacement model: features reach the bounds that the original model sets for each token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_clt.config import SamplingConfig, TopKConfig
from open_clt.errors import ConfigError
from open_clt.evaluation.evaluate import measure
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.interventions.intervene import generate_patched, intervene
from open_clt.replacement.interventions.intervention import Constrained, Intervention, Iterative, Patching
from open_clt.replacement.interventions.observation import observe
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.transcoder import Transcoder
from tests.random_transcoders import random_transcoder
from tests.reference.naive_replacement import encode_above_bounds, generate_without_cache, replaced_logits
from tests.refusals import refuses

TEXT = "The cat sat on the dog"
K = 3


@pytest.fixture(scope="module")
def transcoder(tiny_gpt2: LanguageModel) -> Transcoder:
    return random_transcoder(tiny_gpt2, nonlinearity=TopKConfig(k=K, across_layers=True))


@pytest.mark.parametrize("layers", [None, [1, 2]])
def test_logits_equal_those_of_the_reference_that_replaces_layers_one_by_one(
    tiny_gpt2: LanguageModel, transcoder: Transcoder, layers: list[int] | None
) -> None:
    tokens = torch.stack([tiny_gpt2.tokenize(TEXT), tiny_gpt2.tokenize(TEXT[::-1])[: len(tiny_gpt2.tokenize(TEXT))]])
    encode = encode_above_bounds(tiny_gpt2, transcoder, tokens, K * tiny_gpt2.n_layers)
    expected = replaced_logits(tiny_gpt2, transcoder, tokens, layers or range(tiny_gpt2.n_layers), encode)
    computed = ReplacementModel(tiny_gpt2, transcoder, layers=layers).logits(tokens)
    torch.testing.assert_close(computed, expected, atol=1e-4, rtol=1e-4)
    assert (computed - tiny_gpt2.logits(tokens)).abs().max() > 0.1


def test_with_error_correction_the_features_are_those_that_the_ranking_selects(
    tiny_gpt2: LanguageModel, transcoder: Transcoder
) -> None:
    replacement = ReplacementModel(tiny_gpt2, transcoder, error_correction=True)
    tokens = tiny_gpt2.tokenize(TEXT)[None]
    expected = transcoder.encode(tiny_gpt2.capture(tokens).inputs.flatten(0, 1))
    assert sum(len(layer.values) for layer in expected) == K * tiny_gpt2.n_layers * tokens.numel()
    with torch.no_grad(), replacement.replacing(bounds=replacement.token_bounds(tokens)) as current:
        logits = tiny_gpt2.logits(tokens)
    torch.testing.assert_close(logits, tiny_gpt2.logits(tokens))
    for layer, features in enumerate(expected):
        torch.testing.assert_close(current.features[layer].dense(), features.dense())
        observed = observe(replacement, TEXT).features[layer].dense()
        torch.testing.assert_close(observed[1:], features.dense()[1:])


def test_without_error_correction_a_run_shows_the_features_that_it_used(
    tiny_gpt2: LanguageModel, transcoder: Transcoder
) -> None:
    run = observe(ReplacementModel(tiny_gpt2, transcoder), TEXT)
    reconstruction = transcoder.decode([*run.features], run.inputs.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(run.outputs[:, 1:], reconstruction[:, 1:], atol=1e-5, rtol=1e-5)
    ranked = transcoder.encode(run.inputs.transpose(0, 1))
    assert any((a.dense()[1:] != b.dense()[1:]).any() for a, b in zip(run.features, ranked, strict=True))


@pytest.mark.parametrize("error_correction", [False, True])
def test_generation_with_a_cache_equals_generation_without(
    tiny_gpt2: LanguageModel, transcoder: Transcoder, error_correction: bool
) -> None:
    replacement = ReplacementModel(tiny_gpt2, transcoder, error_correction=error_correction)
    sampling = SamplingConfig(max_new_tokens=8, temperature=1.0, stop_at_eos=False, seed=3)
    generation = replacement.generate(TEXT, sampling)
    naive = generate_without_cache(replacement.logits, tiny_gpt2.tokenize(TEXT), sampling)
    assert generation.tokens[generation.prompt_length :].tolist() == naive


@pytest.mark.parametrize("patching", [Iterative(), Constrained()], ids=str)
def test_generation_with_interventions_and_a_cache_equals_generation_without(
    tiny_gpt2: LanguageModel, transcoder: Transcoder, patching: Patching
) -> None:
    replacement = ReplacementModel(tiny_gpt2, transcoder)
    change = Intervention(0, slice(3, None), 5, value=20.0)
    sampling = SamplingConfig(max_new_tokens=4, stop_at_eos=False)
    generation = generate_patched(replacement, TEXT, change, patching, sampling)
    naive = generate_without_cache(
        lambda tokens: intervene(replacement, tokens[0], change, patching).logits_after[None],
        tiny_gpt2.tokenize(TEXT),
        sampling,
    )
    assert generation.tokens[generation.prompt_length :].tolist() == naive


def test_evaluation_is_the_same_with_weights_in_their_files(
    tiny_gpt2: LanguageModel, transcoder: Transcoder, tmp_path: Path
) -> None:
    contexts = tiny_gpt2.tokenize(TEXT)[None].expand(2, -1)
    stored = load_transcoder(save_transcoder(transcoder, tmp_path), memory_limit=1)
    evaluations = [measure(ReplacementModel(tiny_gpt2, each), contexts) for each in (transcoder, stored)]
    assert evaluations[0].reconstruction.l0 == K
    for name in ("fvu", "l0", "ce_replacement", "kl"):
        ours, theirs = (evaluation.totals()[name] for evaluation in evaluations)
        assert ours == pytest.approx(theirs, rel=1e-4), name


def test_a_pass_without_the_bounds_of_its_tokens_is_refused(tiny_gpt2: LanguageModel, transcoder: Transcoder) -> None:
    replacement = ReplacementModel(tiny_gpt2, transcoder)
    tokens = tiny_gpt2.tokenize(TEXT)[None]
    with refuses(ConfigError, "ReplacementModel.token_bounds"), replacement.replacing():
        tiny_gpt2.logits(tokens)
    bounds = replacement.token_bounds(tokens)
    with refuses(ConfigError, tokens.numel(), tokens.numel() - 1), replacement.replacing(bounds=bounds):
        tiny_gpt2.logits(tokens[:, 1:])
    assert ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2)).token_bounds(tokens) is None
