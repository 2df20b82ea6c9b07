"""Prompts of the embedded model's tasks, each with the token that its answer follows from (its cue).

The tasks were made from rules, so the cue and the wrong answer that competes with the right one are known:

    task              cue                                   competitor
    two_hop           the city                              none
    indirect_object   the name that occurs once             the name that occurs twice
    induction         the answer, where it occurred first   none
    agreement         the first noun                        the verb of the other number
    pronoun           the name                              the pronoun of the other gender, in the same case
    successor         the last word of the series           none
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from open_clt.embedded import facts, templates
from open_clt.embedded.evaluation import EvaluationPrompt, evaluation_prompts
from open_clt.embedded.tasks import (
    Statement,
    agreement_statement,
    draw_taught,
    indirect_object_statement,
    induction_statement,
    pronoun_statements,
    successor_statements,
    two_hop_statements,
)
from open_clt.language.language_model import LanguageModel

TASKS = ("two_hop", "indirect_object", "induction", "agreement", "pronoun", "successor")
_PRONOUNS = {" she": " he", " her": " him", " he": " she", " him": " her", " his": " her"}
_SERIES = (*facts.DAYS, *facts.MONTHS, *facts.NUMBERS)
_DRAWN: dict[str, Callable[[random.Random], Statement]] = {
    "indirect_object": indirect_object_statement,
    "induction": induction_statement,
    "agreement": agreement_statement,
}


class KnownPrompt(NamedTuple):
    """A prompt whose right answer follows from one of its tokens by a rule."""

    task: str
    prompt: str
    answer: str
    """The right next token, with its leading space."""
    competitor: str | None
    """The token that a model without the rule would say, or None if there are many."""
    cue: int
    """Position of the token that decides the answer; BOS is at position 0."""


def known_prompts(model: LanguageModel, task: str, limit: int, *, development: bool = False) -> list[KnownPrompt]:
    """At most ``limit`` prompts of a task: held-out ones, or for ``development`` those that training may see.

    Prompts whose cue is not a token of its own are left out.
    """
    prompts = _development(task, limit) if development else evaluation_prompts(task, limit)
    known = (_known(model, prompt) for prompt in prompts)
    return [prompt for prompt in known if prompt is not None]


def _development(task: str, limit: int) -> list[EvaluationPrompt]:
    rng = random.Random(0)
    if task in _DRAWN:
        statements = [draw_taught(_DRAWN[task], rng) for _ in range(limit)]
    else:
        listed = {
            "two_hop": two_hop_statements,
            "pronoun": pronoun_statements,
            "successor": successor_statements,
        }[task]()
        statements = [statement for statement in listed if statement.task == task and not statement.held_out]
        rng.shuffle(statements)
    return [
        EvaluationPrompt(task, statement.prompt, f" {statement.answer}", statement.intermediate)
        for statement in statements[:limit]
    ]


def _known(model: LanguageModel, prompt: EvaluationPrompt) -> KnownPrompt | None:
    tokens = [token.strip() for token in model.token_strings(model.tokenize(prompt.prompt))]
    cue, competitor = _RULES[prompt.task](prompt, tokens)
    if cue is None:
        return None
    return KnownPrompt(prompt.task, prompt.prompt, prompt.answer, competitor, cue)


_Rule = tuple[int | None, str | None]
"""Position of the cue, or None if it is not a token of its own, and the competitor."""


def _first(tokens: list[str], words: set[str] | frozenset[str]) -> int | None:
    return next((position for position, token in enumerate(tokens) if position and token in words), None)


def _two_hop(prompt: EvaluationPrompt, tokens: list[str]) -> _Rule:
    return _first(tokens, {city for state in facts.STATES for city in state.cities}), None


def _indirect_object(prompt: EvaluationPrompt, tokens: list[str]) -> _Rule:
    names = [token for token in tokens if token in {*facts.WOMEN, *facts.MEN}]
    twice = next((name for name in names if names.count(name) == 2), None)
    return _first(tokens, {prompt.answer.strip()}), None if twice is None else f" {twice}"


def _induction(prompt: EvaluationPrompt, tokens: list[str]) -> _Rule:
    return _first(tokens, {prompt.answer.strip()}), None


def _agreement(prompt: EvaluationPrompt, tokens: list[str]) -> _Rule:
    verbs = {
        verb: other for _, one, many in templates.AGREEMENT_TEMPLATES for verb, other in ((one, many), (many, one))
    }
    return _first(tokens, {form for noun in facts.NOUNS for form in noun}), f" {verbs[prompt.answer.strip()]}"


def _pronoun(prompt: EvaluationPrompt, tokens: list[str]) -> _Rule:
    cue = _first(tokens, {*facts.WOMEN, *facts.MEN})
    possessive = prompt.prompt.endswith((" off", " with"))
    return cue, " his" if possessive and prompt.answer == " her" else _PRONOUNS[prompt.answer]


def _successor(prompt: EvaluationPrompt, tokens: list[str]) -> _Rule:
    places = [position for position, token in enumerate(tokens) if token in _SERIES]
    return (places[-1] if places else None), None


_RULES: dict[str, Callable[[EvaluationPrompt, list[str]], _Rule]] = {
    "two_hop": _two_hop,
    "indirect_object": _indirect_object,
    "induction": _induction,
    "agreement": _agreement,
    "pronoun": _pronoun,
    "successor": _successor,
}
