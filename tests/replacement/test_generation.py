"""Sampling draws from the right distribution, ends at the first limit, and repeats itself with the same seed."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from open_clt.config import SamplingConfig, SamplingSettings
from open_clt.errors import ConfigError, TextError
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.replacement.generation import draw, generate
from tests.reference.naive_replacement import generate_without_cache
from tests.refusals import refuses

PROBABILITIES = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])


def frequencies(sampling: SamplingConfig, draws: int = 2000) -> torch.Tensor:
    """Shares of the five tokens among many draws from PROBABILITIES."""
    generator = torch.Generator().manual_seed(0)
    drawn = [draw(PROBABILITIES.log(), sampling, generator) for _ in range(draws)]
    return torch.bincount(torch.tensor(drawn), minlength=5) / draws


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1.0}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"temperature": 0.5}, [0.01, 0.16, 0.0025, 0.09, 0.0225]),
        ({"temperature": 1.0, "top_k": 2}, [0, 0.4, 0, 0.3, 0]),
        ({"temperature": 1.0, "top_k": 99}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"temperature": 1.0, "top_p": 0.69}, [0, 0.4, 0, 0.3, 0]),
        ({"temperature": 1.0, "top_p": 0.71}, [0, 0.4, 0, 0.3, 0.15]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.4}, [0, 1, 0, 0, 0]),
        ({"temperature": 0.0}, [0, 1, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_with_the_probabilities_that_the_settings_leave(
    settings: SamplingSettings, expected: list[float]
) -> None:
    probabilities = torch.tensor(expected) / sum(expected)
    measured = frequencies(SamplingConfig(**settings))
    torch.testing.assert_close(measured, probabilities, atol=0.04, rtol=0)
    assert measured[probabilities == 0].sum() == 0


def test_the_same_seed_gives_the_same_text(tiny_gpt2: LanguageModel) -> None:
    texts = [generate(tiny_gpt2, "The cat", SamplingConfig(temperature=1.0, seed=seed)).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_the_original_model_writes_the_same_text_with_and_without_a_cache(
    name: str, request: pytest.FixtureRequest
) -> None:
    model: LanguageModel = request.getfixturevalue(name)
    tokens = model.tokenize("The cat sat")
    sampling = SamplingConfig(max_new_tokens=30, temperature=1.0, stop_at_eos=False)
    cached = generate(model, tokens, sampling).tokens[len(tokens) :]
    assert cached.tolist() == generate_without_cache(model.logits, tokens, sampling)


def test_a_generation_has_the_prompt_the_continuation_and_the_text_of_both(tiny_gpt2: LanguageModel) -> None:
    generation = generate(tiny_gpt2, "The cat", SamplingConfig(max_new_tokens=5, stop_at_eos=False))
    assert generation.prompt == "The cat"
    assert generation.prompt_length == len(tiny_gpt2.tokenize("The cat"))
    assert generation.text == tiny_gpt2.decode(generation.tokens[1:])
    assert generation.text == generation.prompt + generation.continuation
    tokens = tiny_gpt2.tokenize("The cat")
    from_tokens = generate(tiny_gpt2, tokens[None], SamplingConfig(max_new_tokens=5, stop_at_eos=False))
    assert from_tokens.tokens.equal(generation.tokens)


@pytest.mark.parametrize("as_list", [True, False])
def test_generation_stops_at_the_ends_that_the_model_states_and_omits_them_from_the_text(
    tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, tmp_path: Path, as_list: bool
) -> None:
    full = generate(tiny_gpt2, "The cat", SamplingConfig(max_new_tokens=8))
    written = full.tokens[full.prompt_length :].tolist()
    end = next(token for i, token in enumerate(written) if i and token not in written[:i])
    folder = shutil.copytree(tiny_gpt2_folder, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [299, end] if as_list else end}))
    model = load_language_model(folder)
    stopped = generate(model, "The cat", SamplingConfig(max_new_tokens=8))
    before_end = written[: written.index(end)]
    assert stopped.tokens[stopped.prompt_length :].tolist() == [*before_end, end]
    assert stopped.continuation == tiny_gpt2.decode(before_end)
    assert generate(model, "The cat", SamplingConfig(max_new_tokens=8, stop_at_eos=False)).tokens.equal(full.tokens)


@pytest.mark.parametrize(
    ("settings", "length"),
    [({"max_new_tokens": 4}, 8), ({"max_length": 6}, 6), ({"max_length": 20, "max_new_tokens": 2}, 6), ({}, 54)],
)
def test_generation_ends_at_the_first_limit_on_its_length(
    tiny_gpt2: LanguageModel, settings: SamplingSettings, length: int
) -> None:
    prompt = torch.tensor([0, 5, 6, 7])
    assert len(generate(tiny_gpt2, prompt, SamplingConfig(stop_at_eos=False, **settings)).tokens) == length


def test_generation_fills_the_context_and_does_not_exceed_it(tiny_gpt2: LanguageModel) -> None:
    prompt = torch.arange(tiny_gpt2.context_length - 2)
    generation = generate(tiny_gpt2, prompt, SamplingConfig(stop_at_eos=False))
    assert len(generation.tokens) == tiny_gpt2.context_length
    with refuses(TextError, tiny_gpt2.context_length, "max_length"):
        generate(tiny_gpt2, generation.tokens)
    with refuses(TextError, len(prompt), "max_length"):
        generate(tiny_gpt2, prompt, SamplingConfig(max_length=5))


def test_empty_prompts_and_batches_of_prompts_are_refused(tiny_gpt2: LanguageModel) -> None:
    with refuses(TextError):
        generate(tiny_gpt2, "")
    for shape in [(2, 3), (0,), (1, 0), (1, 1, 1)]:
        with refuses(TextError):
            generate(tiny_gpt2, torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(
    "settings",
    [{"max_new_tokens": 0}, {"max_length": 0}, {"top_k": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}],
)
def test_impossible_settings_are_refused(settings: SamplingSettings) -> None:
    with refuses(ConfigError, *next(iter(settings.items()))):
        SamplingConfig(**settings)


def test_keyword_settings_are_the_fields_of_the_config() -> None:
    assert list(SamplingSettings.__annotations__) == [field.name for field in fields(SamplingConfig)]
