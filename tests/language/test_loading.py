"""Every form in which people store weights gives the model's own numbers, and none of them runs code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from open_clt.errors import LanguageModelError
from open_clt.language.language_model import LanguageModel, load_language_model
from tests.hub.stand_in import serving
from tests.model_families import own_logits
from tests.refusals import refuses
from tests.tiny_models import TEXTS, write_gpt2, write_llama


def change(file: Path, **settings: object) -> None:
    """Change settings in a JSON file of a model; None removes a setting."""
    content = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


@pytest.fixture
def copy(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of the directory of a model, whose files a test changes."""
    return shutil.copytree(tiny_llama_folder, tmp_path / "model")


class RunsCode:
    """An object whose pickle writes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_in_one_file_or_several_give_the_same_model(
    form: str, parts: int, copy: Path, tiny_llama: LanguageModel
) -> None:
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    stem = {"safetensors": "model", "bin": "pytorch_model"}[form]
    files = (
        [f"{stem}-0000{part + 1}-of-0000{parts}.{form}" for part in range(parts)] if parts > 1 else [f"{stem}.{form}"]
    )
    for part, file in enumerate(files):
        names = sorted(weights)[part::parts]
        if form == "bin":
            torch.save({name: weights[name] for name in names}, copy / file)
        else:
            save_file({name: weights[name] for name in names}, copy / file, {"format": "pt"})
    if parts > 1:
        places = {name: files[i % parts] for i, name in enumerate(sorted(weights))}
        (copy / f"{stem}.{form}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    tokens = tiny_llama.tokenize(TEXTS[0])[None]
    assert torch.equal(load_language_model(copy).logits(tokens), tiny_llama.logits(tokens))


def test_a_pickle_of_weights_that_holds_more_than_tensors_is_refused_and_does_not_run(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"x": RunsCode(copy / "ran")}, copy / "pytorch_model.bin")
    with refuses(LanguageModelError, copy, "safetensors"):
        load_language_model(copy)
    assert not (copy / "ran").exists()


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_weights_in_bfloat16_are_computed_with_in_the_type_that_the_caller_asks_for(key: str, copy: Path) -> None:
    weights = {name: weight.bfloat16() for name, weight in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    change(copy / "config.json", dtype=None)
    change(copy / "config.json", **{key: "bfloat16"})
    model, low = load_language_model(copy), load_language_model(copy, dtype="bfloat16")
    tokens = model.tokenize(TEXTS[0])[None]
    assert (model.dtype, low.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(low.logits(tokens), own_logits(copy, tokens))  # transformers computes in the config's type
    save_file({name: weight.float() for name, weight in weights.items()}, copy / "model.safetensors", {"format": "pt"})
    change(copy / "config.json", **{key: "float32"})
    assert torch.equal(model.logits(tokens), load_language_model(copy).logits(tokens))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("write", [write_gpt2, write_llama])
def test_embeddings_and_unembeddings_may_be_tied_or_not(write: Callable[..., Path], tied: bool, tmp_path: Path) -> None:
    folder = write(tmp_path, tie_word_embeddings=tied)
    model = load_language_model(folder)
    assert torch.equal(model.bridge.W_E, model.bridge.W_U.T) is tied
    tokens = model.tokenize(TEXTS[0])[None]
    torch.testing.assert_close(model.logits(tokens), own_logits(folder, tokens), atol=1e-5, rtol=1e-5)


def test_a_tokenizer_without_bos_begins_texts_with_its_eos(copy: Path) -> None:
    change(copy / "tokenizer_config.json", bos_token=None, eos_token="!")
    change(copy / "config.json", bos_token_id=None)
    model = load_language_model(copy)
    assert model.bos_token_id == model.eos_token_id != 0
    tokens = model.tokenize("The cat").tolist()
    assert model.token_strings(tokens)[:2] == ["!", "The"]
    assert model.tokenize("!The cat").tolist() == tokens
    change(copy / "tokenizer_config.json", eos_token=None)
    with refuses(LanguageModelError, copy, "BOS", "EOS"):
        load_language_model(copy)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [(7, {0, 7}), ([7, 9], {0, 7, 9}), ([], {0}), (0, {0}), (None, {0})],
    ids=str,
)
def test_texts_end_at_eos_and_at_the_tokens_of_the_generation_config(
    copy: Path, stated: object, expected: set[int]
) -> None:
    change(copy / "generation_config.json", eos_token_id=stated)
    assert load_language_model(copy).end_token_ids == expected


@pytest.mark.parametrize("has_file", [True, False])
def test_the_generation_config_of_a_model_on_the_hub_is_fetched(
    copy: Path, tmp_path: Path, has_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(copy / "generation_config.json", eos_token_id=[0, 7])
    if not has_file:
        (copy / "generation_config.json").unlink()
    with serving({"org/name": copy}, monkeypatch, tmp_path / "cache"):
        model = load_language_model("org/name")
    assert model.end_token_ids == ({0, 7} if has_file else {0})


def test_a_model_without_a_generation_config_ends_texts_at_eos(copy: Path) -> None:
    (copy / "generation_config.json").unlink()
    change(copy / "config.json", eos_token_id=7)  # the default of a class may be the token of another tokenizer
    assert load_language_model(copy).end_token_ids == {0}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "generation_config.json"),
        ("[]", "generation_config.json"),
        ('{"eos_token_id": "stop"}', "stop"),
        ('{"eos_token_id": [7, -1]}', -1),
        ('{"eos_token_id": [[7]]}', "[[7]]"),
    ],
)
def test_a_damaged_generation_config_is_refused(copy: Path, text: str, named: object) -> None:
    (copy / "generation_config.json").write_text(text)
    with refuses(LanguageModelError, copy, named):
        load_language_model(copy)
