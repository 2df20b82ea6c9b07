"""Prompts: every form of a prompt gives the same tokens, with one BOS, and everything else is one clear error."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from open_clt.errors import TextError
from open_clt.language.language_model import LanguageModel
from open_clt.language.prompts import prompt_tokens
from tests.refusals import refuses
from tests.tiny_models import END_OF_TEXT

TEXT = "The cat sat"


def test_every_form_of_a_prompt_gives_the_same_tokens(tiny_gpt2: LanguageModel) -> None:
    tokens = tiny_gpt2.tokenize(TEXT)
    ids = tokens.tolist()
    forms: list[Any] = [TEXT, END_OF_TEXT + TEXT, ids, tuple(ids), np.array(ids), np.array(ids, dtype=np.uint16)]
    forms += [[np.int64(number) for number in ids], tokens, tokens[None], tokens.int(), np.array([ids]), [ids]]
    for form in forms:
        assert torch.equal(prompt_tokens(tiny_gpt2, form), tokens), form


def test_a_text_has_one_bos(tiny_gpt2: LanguageModel) -> None:
    bos, word = tiny_gpt2.bos_token_id, tiny_gpt2.token_ids(["cat"])[0]
    assert tiny_gpt2.token_ids([END_OF_TEXT + "cat"]) == [word]
    assert tiny_gpt2.tokenize(END_OF_TEXT + "cat").tolist() == [bos, *word]
    assert tiny_gpt2.tokenize(END_OF_TEXT).tolist() == [bos]
    assert tiny_gpt2.tokenize("cat", prepend_bos=False).tolist() == word
    assert tiny_gpt2.tokenize(END_OF_TEXT + "cat", prepend_bos=False).tolist() == [bos, *word]


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        (3, "3"),
        (None, "None"),
        ("", ""),
        ([], ""),
        (torch.zeros(0), ""),
        ([1.5, 2.0], "[1.5, 2.0]"),
        ([True, False], "[True, False]"),
        (["The", "cat"], "['The', 'cat']"),
        ([[1, 2], [3]], "[[1, 2], [3]]"),
        (torch.zeros(2, 3, dtype=torch.long), "(2, 3)"),
        (torch.ones(3), "torch.float32"),
        ([1, 300], "300"),
        ([-1, 3], "-1"),
        ([1] * 65, "65"),
        ({"a": 1}, "'a'"),
        ("half \ud83d an emoji", "half"),
    ],
    ids=str,
)
def test_what_is_not_a_prompt_is_named(prompt: Any, named: str, tiny_gpt2: LanguageModel) -> None:
    with pytest.raises(TextError) as raised:
        prompt_tokens(tiny_gpt2, prompt)
    assert named in str(raised.value)


def test_texts_that_are_not_texts_are_named(tiny_gpt2: LanguageModel) -> None:
    for text in (3, None, b"bytes"):
        with refuses(TextError, repr(text)):
            inspect.unwrap(LanguageModel.token_ids)(tiny_gpt2, ["fine", text])  # pyright: ignore[reportArgumentType]
