"""Chat: the tokens of a prompt are those of the chat template, in every function and command that takes ``chat``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.attribution.attribute import attribute, attribute_all
from open_clt.errors import LanguageModelError, TextError
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.language.prompts import prompt_tokens
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.replacement.generation import generate
from open_clt.replacement.interventions.intervene import generate_patched, intervene
from open_clt.replacement.interventions.intervention import Intervention
from open_clt.replacement.interventions.observation import observe
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.formats.native import save_transcoder
from tests.random_transcoders import random_transcoder
from tests.refusals import refuses
from tests.tiny_models import CHAT_TEMPLATE, END_OF_TEXT, write_gpt2

TEXT = "The cat"
MESSAGES = [{"role": "user", "content": TEXT}]
WRITTEN = f"{END_OF_TEXT}<user> The cat\n<assistant>"
"""What the template makes of the messages."""


@pytest.fixture
def model(tiny_gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """A language model with a chat template."""
    monkeypatch.setattr(tiny_gpt2.tokenizer, "chat_template", CHAT_TEMPLATE)
    return tiny_gpt2


@pytest.mark.slow
def test_every_form_of_a_message_gives_the_tokens_of_the_template(model: LanguageModel) -> None:
    expected = model.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    for form in (TEXT, MESSAGES, tuple(MESSAGES), json.dumps(MESSAGES), json.dumps(MESSAGES, indent=2)):
        tokens = prompt_tokens(model, form, chat=True)
        assert tokens.tolist() == expected, form
        assert model.decode(tokens) == WRITTEN


def test_a_text_that_begins_with_a_bracket_is_a_message(model: LanguageModel) -> None:
    assert "<user> [1, 2\n" in model.decode(prompt_tokens(model, "[1, 2", chat=True))


def test_bos_is_there_only_if_the_template_writes_it(model: LanguageModel) -> None:
    assert prompt_tokens(model, TEXT, chat=True).tolist().count(model.bos_token_id) == 1
    model.tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ bos_token }}", "")
    assert model.decode(prompt_tokens(model, TEXT, chat=True)) == WRITTEN.removeprefix(END_OF_TEXT)


def test_the_last_message_of_the_assistant_is_continued(model: LanguageModel) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "sat on"}]
    assert model.decode(prompt_tokens(model, messages, chat=True)) == f"{WRITTEN} sat on"


TOKENS: dict[str, Callable[[ReplacementModel], torch.Tensor]] = {
    "generate": lambda replacement: generate(replacement.model, TEXT, chat=True).tokens,
    "replacement": lambda replacement: replacement.generate(MESSAGES, chat=True).tokens,
    "compare": lambda replacement: replacement.compare(TEXT, chat=True).continuations.original.tokens,  # pyright: ignore[reportOptionalMemberAccess]
    "observe": lambda replacement: observe(replacement, MESSAGES, chat=True).tokens,
    "intervene": lambda replacement: intervene(replacement, TEXT, ABLATION, chat=True).before.tokens,
    "generate_patched": lambda replacement: generate_patched(replacement, TEXT, ABLATION, chat=True).tokens,
}
ABLATION = Intervention(1, -1, 2, value=0.0)


@pytest.mark.parametrize("use", TOKENS)
def test_functions_read_the_tokens_of_the_template(use: str, model: LanguageModel) -> None:
    replacement = ReplacementModel(model, random_transcoder(model))
    expected = model.tokenize(WRITTEN).tolist()
    assert list(map(int, TOKENS[use](replacement)))[: len(expected)] == expected


def test_graphs_have_the_tokens_of_the_template(model: LanguageModel, tmp_path: Path) -> None:
    transcoder = random_transcoder(model)
    clt = OpenCrossLayerTranscoder(model)
    clt.load_model(save_transcoder(transcoder, tmp_path))
    graphs = [
        attribute(model, transcoder, TEXT, max_feature_nodes=2, chat=True),
        *attribute_all(model, transcoder, [MESSAGES], max_feature_nodes=2, chat=True),
        clt.attribute(MESSAGES, max_feature_nodes=2, chat=True),
        clt.create_attribution_graph(TEXT, chat=True),
    ]
    for graph in graphs:
        assert graph.info.tokens == tuple(model.tokenize(WRITTEN).tolist())
        assert graph.info.prompt == WRITTEN


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("", "content"),
        ([], "messages"),
        ([3, 4], "3"),
        (torch.tensor([3, 4]), "messages"),
        ('[{"role": "user", "content": "Hi"', "JSON"),
        ("[{]", "JSON"),
        ([{"role": "user"}], "content"),
        ([{"role": "user", "content": "Hi", "name": "Ann"}], "name"),
        ([*MESSAGES, {"role": "human", "content": "Hi"}], "'human'"),
        ([{"role": ["user"], "content": "Hi"}], "role"),
        ([{"role": "user", "content": ["Hi"]}], "content"),
        ([{"role": "user", "content": ""}], "content"),
        ([{"role": "user", "content": "half \ud83d an emoji"}], "half"),
        ([{"role": "tool", "content": "Hi"}], "no tools"),
        ("x" * 70, "64"),
    ],
    ids=str,
)
def test_what_is_not_a_chat_is_named(prompt: Any, named: str, model: LanguageModel) -> None:
    with refuses(TextError, named):
        prompt_tokens(model, prompt, chat=True)


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ messages.x.y }}", "{% for", "{{ ''.__class__.mro() }}"])
def test_a_template_that_fails_or_leaves_the_sandbox_is_refused(template: str, model: LanguageModel) -> None:
    model.tokenizer.chat_template = template
    with refuses(TextError, model.name):
        prompt_tokens(model, TEXT, chat=True)


def test_a_model_without_a_chat_template_is_named(tiny_gpt2: LanguageModel) -> None:
    with refuses(LanguageModelError, tiny_gpt2.name, "chat template"):
        prompt_tokens(tiny_gpt2, TEXT, chat=True)


def test_messages_need_chat(model: LanguageModel) -> None:
    with refuses(TextError, "chat=True"):
        prompt_tokens(model, MESSAGES)


def test_the_template_of_a_directory_is_read(tmp_path: Path) -> None:
    write_gpt2(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    model = load_language_model(tmp_path)
    assert model.decode(prompt_tokens(model, TEXT, chat=True)) == WRITTEN
