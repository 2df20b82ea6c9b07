"""Questions of the embedded model's tasks whose rule says why a head looks where it does, and the prompts that test it.

A question has a look: the positions that the rule is about. It also has prompts in which the property that the rule is
about is changed and nothing else ("changed"), and prompts in which something else is changed ("other"):

    induction         the head that brings the answer to the last token, from any position. The rule is that the last
                      word stood there before. Changed: on the query's side the last word, on the key's side the same
                      word in the list. Other: another word of the list.
    indirect object   the head that takes the answer from its own position, compared with the position of the giver's
                      first mention. The rule is that the giver's name is the same as the one at the other position.
                      Changed: on the query's side the second mention, on the key's side the first one. Other: the
                      place.
    pronoun           the head that takes the answer from the name. The rule is the gender. Changed: a name of the
                      other gender. Other: another name of the same gender. Nothing is asked of the query's side.
    agreement         the head that takes the answer from the subject. The rule is the number. Changed: the number of
                      the subject. Other: another noun of the same number. Nothing is asked of the query's side.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from open_clt.embedded import facts, tasks
from open_clt.embedded.tasks import Statement
from open_clt.language.language_model import LanguageModel

Tokens: TypeAlias = list[int]
TASKS = ("induction", "indirect_object", "pronoun", "agreement")
_CONTRASTS = 4
"""Largest number of prompts in which one thing is changed."""
_OPPOSITE_VERBS = {"is": "are", "was": "were", "has": "have"}
_OPPOSITE_PRONOUNS = {"he": "she", "him": "her", "his": "her", "she": "he"}
_SINGULAR = {plural: singular for singular, plural in facts.NOUNS}
_PLURAL = dict(facts.NOUNS)


@dataclass(frozen=True)
class Sides:
    """Prompts in which one thing is changed; on one side there are none if nothing is asked of that side."""

    key: list[Tokens]
    query: list[Tokens] = field(default_factory=list[Tokens])


@dataclass(frozen=True)
class Question:
    """A prompt, its answer, and the look that a rule is about."""

    task: str
    tokens: Tokens
    answer: int
    wrong: int
    """The token that the answer is compared with."""
    query: int | None
    """Position that the head looks from; None means any."""
    key: int | None
    """Position that the head looks at; None means any."""
    versus: int | None
    """Position that the key is compared with; None means the one with the most attention of all others."""
    changed: Sides
    """Prompts in which only the property of the rule is changed."""
    other: Sides
    """Prompts in which something else is changed."""


class Reader:
    """Reads statements as questions."""

    def __init__(self, model: LanguageModel, seed: int) -> None:
        self.model, self.random = model, random.Random(seed)

    def questions(self, task: str, *, held_out: bool) -> Iterator[Question]:
        """Yield questions of a task in a random order: the held-out ones or the others, without an end if drawn."""
        for statement in self._statements(task):
            if statement.held_out is held_out and (question := self._question(statement)) is not None:
                yield question

    def _statements(self, task: str) -> Iterator[Statement]:
        if task == "pronoun":
            listed = list(tasks.pronoun_statements())
            self.random.shuffle(listed)
            yield from listed
            return
        draws: dict[str, Callable[[random.Random], Statement]] = {
            "induction": tasks.induction_statement,
            "indirect_object": tasks.indirect_object_statement,
            "agreement": tasks.agreement_statement,
        }
        while True:
            yield draws[task](self.random)

    def _question(self, statement: Statement) -> Question | None:
        tokens = [int(token) for token in self.model.tokenize(statement.prompt)]
        words = [text.strip() for text in self.model.token_strings(self.model.tokenize(statement.prompt))]
        read = {
            "induction": self._induction,
            "indirect_object": self._indirect_object,
            "pronoun": self._pronoun,
            "agreement": self._agreement,
        }
        return read[statement.task](statement, tokens, words)

    def _induction(self, statement: Statement, tokens: Tokens, words: list[str]) -> Question | None:
        listed, last = statement.key.split(), words[-1]
        others = [word for word in listed if word not in (last, statement.answer)]
        if words.count(last) != 2 or not others:
            return None
        other = self.random.choice(others)
        new = self._choose(tasks.list_words(), listed)
        places = [index for index, word in enumerate(words) if word == other]
        return Question(
            statement.task, tokens, self._token(statement.answer), self._token(other),
            query=len(tokens) - 1, key=None, versus=None,
            changed=Sides(self._with(tokens, words.index(last), new), self._with(tokens, len(tokens) - 1, new)),
            other=Sides(self._with(tokens, places[0], new), self._with(tokens, places[-1], new)),
        )  # fmt: skip

    def _indirect_object(self, statement: Statement, tokens: Tokens, words: list[str]) -> Question | None:
        a, b = statement.key.split()
        giver = a if statement.answer == b else b
        first, second = (index for index, word in enumerate(words) if word == giver)
        place = next(index for index, word in enumerate(words) if word in facts.PLACES)
        names = self._choose(_alike(giver), (a, b))
        places = self._with(tokens, place, self._choose(facts.PLACES, words))
        return Question(
            statement.task, tokens, self._token(statement.answer), self._token(giver),
            query=None, key=words.index(statement.answer), versus=first,
            changed=Sides(self._with(tokens, first, names), self._with(tokens, second, names)),
            other=Sides(places, places),
        )  # fmt: skip

    def _pronoun(self, statement: Statement, tokens: Tokens, words: list[str]) -> Question | None:
        key = next(index for index, word in enumerate(words) if word in facts.WOMEN + facts.MEN)
        alike, unlike = _alike(words[key]), _alike(words[key], swapped=True)
        wrong = _OPPOSITE_PRONOUNS.get(statement.answer) or ("his" if words[-1] in ("off", "with") else "him")
        return Question(
            statement.task, tokens, self._token(statement.answer), self._token(wrong),
            query=None, key=key, versus=None,
            changed=Sides(self._with(tokens, key, self._choose(unlike, words))),
            other=Sides(self._with(tokens, key, self._choose(alike, words))),
        )  # fmt: skip

    def _agreement(self, statement: Statement, tokens: Tokens, words: list[str]) -> Question | None:
        noun = statement.key.split()[0]
        key, is_plural = words.index(noun), noun in _SINGULAR
        verbs = {plural: singular for singular, plural in _OPPOSITE_VERBS.items()} | _OPPOSITE_VERBS
        swapped = _SINGULAR[noun] if is_plural else _PLURAL[noun]
        used = [pair[is_plural] for pair in facts.NOUNS if set(pair) & set(words)]
        nouns = self._choose([pair[is_plural] for pair in facts.NOUNS], used)
        return Question(
            statement.task, tokens, self._token(statement.answer), self._token(verbs[statement.answer]),
            query=None, key=key, versus=None,
            changed=Sides(self._with(tokens, key, [swapped])),
            other=Sides(self._with(tokens, key, nouns)),
        )  # fmt: skip

    def _choose(self, words: Sequence[str], used: Sequence[str]) -> list[str]:
        return self.random.sample([word for word in words if word not in used], _CONTRASTS)

    def _with(self, tokens: Tokens, position: int, words: Sequence[str]) -> list[Tokens]:
        """The prompt with each of some words at one position."""
        new = [self._token(word, begins=position == 1) for word in words]
        return [[*tokens[:position], token, *tokens[position + 1 :]] for token in new]

    def _token(self, word: str, *, begins: bool = False) -> int:
        """The token of a word, with a space before it unless it begins the text."""
        ids = self.model.token_ids([word if begins else f" {word}"])[0]
        assert len(ids) == 1, word
        return int(ids[0])


def _alike(name: str, *, swapped: bool = False) -> tuple[str, ...]:
    """The names of the same gender, or of the other one."""
    return facts.WOMEN if (name in facts.WOMEN) is not swapped else facts.MEN
