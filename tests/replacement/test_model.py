"""A replacement model computes what its definition says, with and without a cache, and leaves no hooks behind."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.config import BatchTopKConfig, InputHook, NonlinearityConfig, SamplingConfig, TopKConfig
from open_clt.errors import ConfigError, OpenCLTError
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.formats.native import save_transcoder
from tests.random_transcoders import exact_transcoder, random_transcoder
from tests.reference.naive_replacement import compared_slowly, generate_without_cache, replaced_logits
from tests.refusals import refuses
from tests.tiny_models import write_gpt2

TEXT = "The cat sat on the mat"


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def relu_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("relu"), activation_function="relu", seed=5)


@pytest.fixture(scope="module")
def exact(relu_folder: Path) -> ReplacementModel:
    return ReplacementModel(str(relu_folder), exact_transcoder(relu_folder, use_first_position=True))


@pytest.mark.parametrize("input_hook", ["hook_resid_mid", "ln2.hook_normalized"])
def test_with_error_correction_the_logits_are_the_original_ones(model: LanguageModel, input_hook: InputHook) -> None:
    transcoder = random_transcoder(model, input_hook=input_hook, skip=True, use_first_position=True)
    corrected = ReplacementModel(model, transcoder, error_correction=True)
    tokens = model.tokenize(TEXT)[None]
    torch.testing.assert_close(corrected.logits(tokens), model.logits(tokens), atol=1e-5, rtol=0)
    uncorrected = ReplacementModel(model, transcoder).logits(tokens)
    assert (uncorrected - model.logits(tokens)).abs().max() > 0.1


def test_reconstruction_and_error_add_up_to_the_original_mlp_output(model: LanguageModel) -> None:
    transcoder = random_transcoder(model)
    tokens = model.tokenize(TEXT)[None]
    original = model.capture(tokens)
    with ReplacementModel(model, transcoder, error_correction=True).replacing() as current:
        model.logits(tokens)
    reconstruction = transcoder(original.inputs.flatten(0, 1)).reconstruction.view_as(original.targets)
    errors = torch.stack([current.errors[layer] for layer in range(model.n_layers)], dim=2)
    torch.testing.assert_close(reconstruction + errors, original.targets, atol=1e-5, rtol=1e-5)
    assert [current.features[layer].batch for layer in range(model.n_layers)] == [tokens.numel()] * model.n_layers


@pytest.mark.parametrize("layers", [None, [0], [1, 2], [2]])
@pytest.mark.parametrize("reach", [None, 1, 2])
@pytest.mark.parametrize("use_first_position", [False, True])
def test_logits_equal_those_of_the_reference_that_replaces_layers_one_by_one(
    model: LanguageModel, layers: list[int] | None, reach: int | None, use_first_position: bool
) -> None:
    transcoder = random_transcoder(model, reach=reach, skip=True, use_first_position=use_first_position)
    tokens = torch.stack([model.tokenize(TEXT), model.tokenize(TEXT[::-1])[: len(model.tokenize(TEXT))]])
    replacement = ReplacementModel(model, transcoder, layers=layers)
    expected = replaced_logits(model, transcoder, tokens, layers or range(model.n_layers))
    torch.testing.assert_close(replacement.logits(tokens), expected, atol=1e-5, rtol=1e-5)


def test_an_exact_transcoder_gives_the_original_model(exact: ReplacementModel) -> None:
    tokens = exact.model.tokenize(TEXT)[None]
    torch.testing.assert_close(exact.logits(tokens), exact.model.logits(tokens), atol=1e-5, rtol=1e-5)
    sampling = SamplingConfig(max_new_tokens=20, stop_at_eos=False)
    original = generate_without_cache(exact.model.logits, tokens[0], sampling)
    assert exact.generate(TEXT, sampling).tokens.tolist() == [*tokens[0].tolist(), *original]


@pytest.mark.parametrize("temperature", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("use_first_position", [False, True])
@pytest.mark.parametrize("settings", [{}, {"error_correction": True}, {"layers": [1]}])
def test_generation_with_a_cache_equals_generation_without(
    model: LanguageModel, settings: dict[str, Any], use_first_position: bool, temperature: float
) -> None:
    replacement = ReplacementModel(model, random_transcoder(model, use_first_position=use_first_position), **settings)
    sampling = SamplingConfig(max_new_tokens=15, temperature=temperature, stop_at_eos=False, seed=3)
    generation = replacement.generate(TEXT, sampling)
    naive = generate_without_cache(replacement.logits, model.tokenize(TEXT), sampling)
    assert generation.tokens[generation.prompt_length :].tolist() == naive


def _n_hooks(model: LanguageModel) -> int:
    """Number of hooks that are open on a model."""
    points = set(model.bridge.hook_dict.values())  # some hook points have several names
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in points)


def test_after_use_the_language_model_is_exactly_as_before(model: LanguageModel) -> None:
    tokens = model.tokenize(TEXT)[None]
    before = model.logits(tokens)
    replacement = ReplacementModel(model, random_transcoder(model))
    replacement.generate(TEXT, max_new_tokens=3)
    replacement.compare(TEXT, SamplingConfig(max_new_tokens=3))
    assert _n_hooks(model) == 0
    with contextlib.suppress(ZeroDivisionError), replacement.replacing():
        assert _n_hooks(model) == 2 * model.n_layers
        assert not torch.equal(model.logits(tokens), before)
        _ = 1 / 0
    assert _n_hooks(model) == 0
    assert torch.equal(model.logits(tokens), before)


def test_a_transcoder_in_training_mode_is_used_in_inference_mode_and_returns_to_training(
    tiny_gpt2: LanguageModel,
) -> None:
    """In training mode, the features of BatchTopK depend on the batch, so one text would change another's logits."""
    transcoder = random_transcoder(tiny_gpt2, nonlinearity=BatchTopKConfig(k=4)).train()
    transcoder(torch.randn(50, tiny_gpt2.n_layers, tiny_gpt2.d_model))
    replacement = ReplacementModel(tiny_gpt2, transcoder)
    tokens = torch.stack([tiny_gpt2.tokenize("The cat"), tiny_gpt2.tokenize("dog sat")[:3]])
    torch.testing.assert_close(replacement.logits(tokens)[:1], replacement.logits(tokens[:1]))
    assert transcoder.training


def test_gradients_flow_through_a_replaced_pass(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_transcoder(tiny_gpt2)
    with ReplacementModel(tiny_gpt2, transcoder).replacing():
        tiny_gpt2.logits(tiny_gpt2.tokenize(TEXT)[None]).square().sum().backward()
    assert transcoder.W_dec[0].grad is not None
    assert transcoder.W_dec[0].grad.abs().sum() > 0


def test_a_model_is_made_from_a_name_and_a_directory(
    tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    transcoder = random_transcoder(tiny_gpt2)
    checkpoint = save_transcoder(transcoder, tmp_path / "transcoder")
    loaded = ReplacementModel(base_model_name=str(tiny_gpt2_folder), transcoder=checkpoint)
    tokens = tiny_gpt2.tokenize(TEXT)[None]
    assert torch.equal(loaded.logits(tokens), ReplacementModel(tiny_gpt2, transcoder).logits(tokens))


def test_an_object_that_holds_a_transcoder_is_accepted(tiny_gpt2: LanguageModel) -> None:
    class Facade:
        def __init__(self) -> None:
            self.transcoder = random_transcoder(tiny_gpt2)

    facade = Facade()
    assert ReplacementModel(tiny_gpt2, facade).transcoder is facade.transcoder


def test_a_model_in_bfloat16_works_with_a_transcoder_in_float32(tiny_gpt2_folder: Path) -> None:
    model = load_language_model(str(tiny_gpt2_folder), dtype="bfloat16")
    replacement = ReplacementModel(model, random_transcoder(model), error_correction=True)
    tokens = model.tokenize(TEXT)[None]
    assert replacement.logits(tokens).dtype == torch.bfloat16
    torch.testing.assert_close(replacement.logits(tokens), model.logits(tokens), atol=0.05, rtol=0.05)


def test_a_transcoder_of_another_model_and_impossible_layers_are_refused(
    exact: ReplacementModel, tiny_gpt2: LanguageModel
) -> None:
    wide = random_transcoder(tiny_gpt2)
    wide.config = exact.transcoder.config.__class__(
        n_layers=12, n_features=20, d_model=768, language_model="gpt2"
    )  # only the config is checked
    with refuses(ConfigError, "gpt2", 12, 768):
        ReplacementModel(tiny_gpt2, wide)
    for layers in ([3], [-1], []):
        with refuses(ConfigError, "layers", layers):
            ReplacementModel(tiny_gpt2, exact.transcoder, layers=layers)
    with pytest.raises(OpenCLTError):
        ReplacementModel(tiny_gpt2, "/no/such/checkpoint")


def test_compare_with_an_exact_transcoder_finds_no_difference(exact: ReplacementModel) -> None:
    comparison = exact.compare(TEXT, SamplingConfig(max_new_tokens=5))
    logits = comparison.logits
    assert logits.cross_entropy_replacement == pytest.approx(logits.cross_entropy_original, abs=1e-5)
    assert logits.kl_divergence == pytest.approx(0, abs=1e-5)
    assert logits.top1_agreement == 1
    assert comparison.cosine == pytest.approx(1, abs=1e-5)
    assert comparison.mean_squared_error == pytest.approx(0, abs=1e-8)
    assert comparison.continuations is not None
    assert comparison.continuations.original.tokens.equal(comparison.continuations.replacement.tokens)
    assert comparison.summary().count(repr(comparison.continuations.original.text)) == 2


def test_an_exact_transcoder_recovers_what_ablation_loses(exact: ReplacementModel) -> None:
    """On a text that the model itself wrote, ablating its MLPs makes the predictions worse."""
    text = exact.generate(TEXT, max_new_tokens=20, stop_at_eos=False).tokens
    comparison = exact.compare(text, SamplingConfig(max_new_tokens=1))
    assert comparison.cross_entropy_ablated > comparison.logits.cross_entropy_original + 0.1
    assert comparison.share_recovered == pytest.approx(1, abs=1e-4)

    means = exact.model.capture(text[None]).targets[0].mean(0)
    with exact.ablating(means):
        logits = exact.model.logits(text[None])
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], text[1:])
    assert comparison.cross_entropy_ablated == pytest.approx(float(expected), abs=1e-5)


def test_compare_leaves_out_the_position_that_is_not_replaced(tiny_gpt2: LanguageModel) -> None:
    """At the first position both models are the same, so every number would look better with it."""
    tokens = tiny_gpt2.tokenize(TEXT)
    replacement = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2))
    expected = torch.nn.functional.cross_entropy(tiny_gpt2.logits(tokens[None])[0, 1:-1], tokens[2:])
    assert replacement.compare(TEXT).logits.cross_entropy_original == pytest.approx(float(expected), abs=1e-5)


def test_a_text_that_fills_the_context_is_compared_without_continuations(tiny_gpt2: LanguageModel) -> None:
    tokens = torch.arange(tiny_gpt2.context_length)
    assert ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2)).compare(tokens).continuations is None


@pytest.mark.real_model
def test_a_pretrained_model_with_error_correction_writes_the_text_of_the_original(real_model_folder: Path) -> None:
    model = load_language_model(str(real_model_folder))
    replacement = ReplacementModel(model, random_transcoder(model, n_features=64), error_correction=True)
    sampling = SamplingConfig(max_new_tokens=8)
    tokens = model.tokenize("The Eiffel Tower is in the city of")
    generation = replacement.generate(tokens, sampling)
    assert generation.continuation.startswith(" Paris")
    assert generation.tokens[len(tokens) :].tolist() == generate_without_cache(model.logits, tokens, sampling)
    assert generation.tokens[len(tokens) :].tolist() == generate_without_cache(replacement.logits, tokens, sampling)
    torch.testing.assert_close(replacement.logits(tokens[None]), model.logits(tokens[None]), atol=1e-3, rtol=1e-4)


NONLINEARITIES = [TopKConfig(k=5), TopKConfig(k=9, across_layers=True), BatchTopKConfig(k=5)]


@contextlib.contextmanager
def counted_passes(model: LanguageModel) -> Generator[list[int]]:
    """While this is open, the number of positions of each forward pass is added to a list."""
    passes: list[int] = []
    first_layer = model.hook_name(0, "hook_resid_mid")
    with model.hooks([(first_layer, lambda activation: passes.append(activation.shape[1]))]):
        yield passes


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=str)
def test_comparing_predictions_takes_three_forward_passes(
    model: LanguageModel, nonlinearity: NonlinearityConfig
) -> None:
    replacement = ReplacementModel(model, random_transcoder(model, nonlinearity=nonlinearity))
    length = len(model.tokenize(TEXT))
    with counted_passes(model) as passes:
        alone = replacement.compare(TEXT, continuations=False)
    assert passes == [length] * 3
    assert alone.continuations is None
    with counted_passes(model) as passes:
        both = replacement.compare(TEXT, SamplingConfig(max_new_tokens=4, stop_at_eos=False))
    assert passes[:3] == [length] * 3
    assert both.continuations is not None
    assert both._replace(continuations=None) == alone
    assert both.prompt == alone.prompt == TEXT


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=str)
@pytest.mark.parametrize("layers", [None, [1]])
def test_a_comparison_equals_one_that_runs_every_model_separately(
    model: LanguageModel, nonlinearity: NonlinearityConfig, layers: list[int] | None
) -> None:
    transcoder = random_transcoder(model, nonlinearity=nonlinearity)
    replacement = ReplacementModel(model, transcoder, layers=layers)
    expected, fast = compared_slowly(replacement, TEXT), replacement.compare(TEXT, continuations=False)
    assert fast.logits == pytest.approx(expected.logits, rel=1e-6, abs=1e-6)
    assert fast[1:4] == pytest.approx(expected[1:4], rel=1e-6, abs=1e-6)
