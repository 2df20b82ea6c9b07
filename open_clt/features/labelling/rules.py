"""Rules: what a label says of the contexts in which a feature is active, in a form that can be tested on any context.

    Condition(Where.HERE, words=(" Texas", " Dallas"))      the token is " Texas" or " Dallas"
    Condition(Where.HERE, kind="numbers")                   the token is a number
    Condition(Where.BEFORE, words=(" of",))                 the token before it is " of"
    Condition(Where.NEAR, words=(" capital",))              " capital" is one of the 4 tokens before it
    Condition(Where.EARLIER, words=(" capital",))           " capital" is one of the 16 tokens before it

A rule is one to three conditions with different ``Where``, and holds at the positions at which all of them hold. Its
text says exactly that, so a reader and a program judge the same statement.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import lru_cache
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt

from open_clt.short_repr import short_repr

MOST_NAMED = 6
"""Largest number of words that a condition names; of a longer list, it names four and the number of the others."""
LONGEST_WINDOW = 64
"""Largest number of tokens of a window: a mask has one bit for each."""


class Where(Enum):
    """The tokens that a condition looks at, relative to a position."""

    HERE = "here"
    BEFORE = "before"
    NEAR = "near"
    EARLIER = "earlier"

    @property
    def reach(self) -> int:
        """Number of tokens before a position that the condition looks at, a power of two; 0 is the token itself."""
        return _REACH[self]


_REACH = {Where.HERE: 0, Where.BEFORE: 1, Where.NEAR: 4, Where.EARLIER: 16}


@lru_cache(2**16)
def is_readable(token: str) -> bool:
    """Whether a token can be shown: it is not empty, and holds neither control characters nor half a character."""
    return token != "" and all(char.isprintable() or char in "\n\t\r" for char in token) and "\ufffd" not in token


def quoted(token: str) -> str:
    """A token as labels show it: “ Texas”, with its leading space; white space alone is written with signs."""
    shown = token.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥")
    return f"“{shown if shown.strip() else shown.replace(' ', '␣')}”"


def any_of(tokens: Sequence[str]) -> str:
    """Tokens as alternatives: “ a”, “ b” or “ c”."""
    return " or ".join(filter(None, [", ".join(map(quoted, tokens[:-1])), *map(quoted, tokens[-1:])]))


def _is_punctuation(token: str) -> bool:
    stripped = token.strip()
    return stripped != "" and all(unicodedata.category(char)[0] in "PS" for char in stripped)


def _is_word_part(token: str) -> bool:
    return token.isalpha() and token[0].islower()


def _is_capitalised(token: str) -> bool:
    word = token.strip()
    return len(word) > 1 and word.isalpha() and word[0].isupper() and word[1:].islower()


def _is_upper(token: str) -> bool:
    word = token.strip()
    return len(word) > 1 and word.isalpha() and word.isupper()


def _is_number(token: str) -> bool:
    return token.strip().isnumeric()


KINDS: dict[str, Callable[[str], bool]] = {
    "numbers": _is_number,
    "punctuation": _is_punctuation,
    "white space": str.isspace,
    "word parts": _is_word_part,
    "capitalised words": _is_capitalised,
    "words in capitals": _is_upper,
}
"""The classes of tokens by their names; each says whether a token belongs to it. A word part is a lower-case token
without a space before it."""


@lru_cache(2**18)
def _belongs(token: str, kind: str) -> bool:
    return KINDS[kind](token)


class Condition(NamedTuple):
    """A condition on one token relative to a position: it is one of some words, or belongs to a class."""

    where: Where
    """Which token the condition is about."""
    words: tuple[str, ...] = ()
    """The tokens that meet the condition, most frequent first; empty if ``kind`` is given."""
    kind: str = ""
    """The class of tokens that meet the condition, one of ``KINDS``."""

    __repr__ = short_repr

    @property
    def text(self) -> str:
        """The tokens that meet the condition, in words."""
        if self.kind:
            return self.kind
        if len(self.words) <= MOST_NAMED:
            return any_of(self.words)
        first = self.words[: MOST_NAMED - 2]
        return f"{', '.join(map(quoted, first))} or {len(self.words) - len(first)} more"


@final
class Windows:
    """Windows of tokens, on which conditions are tested: one bit per position, so that a window is one integer."""

    def __init__(self, windows: Sequence[Sequence[str]]) -> None:
        longest = max(map(len, windows), default=0)
        if longest > LONGEST_WINDOW:
            raise ValueError(f"a window of {longest} tokens has more than {LONGEST_WINDOW}")
        self.tokens = [tuple(window) for window in windows]
        self._numbers: dict[str, int] = {}
        self._ids = np.full((len(windows), max(longest, 1)), -1, dtype=np.int32)
        for row, window in enumerate(self.tokens):
            self._ids[row, : len(window)] = [self._numbers.setdefault(token, len(self._numbers)) for token in window]
        self._bits = np.uint64(1) << np.arange(self._ids.shape[1], dtype=np.uint64)
        self._inside = self._mask(self._ids >= 0)
        self._nowhere = np.zeros_like(self._inside)
        self._found: dict[Condition, npt.NDArray[np.uint64]] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def positions(self, condition: Condition) -> npt.NDArray[np.uint64]:
        """The positions of each window at which a condition holds, as the bits of one integer."""
        if condition.kind:
            return self._found_once(condition)
        holds = self._nowhere
        for word in condition.words:
            if word in self._numbers:
                holds = holds | self._found_once(Condition(condition.where, (word,)))
        return holds

    def matches(self, conditions: Iterable[Condition]) -> npt.NDArray[np.uint64]:
        """The positions of each window at which all conditions hold, as the bits of one integer."""
        result = self._inside
        for condition in conditions:
            result = result & self.positions(condition)
        return result

    def _found_once(self, condition: Condition) -> npt.NDArray[np.uint64]:
        """The positions for a class or one word, which are kept: there are at most three for each word."""
        if condition not in self._found:
            self._found[condition] = self._test(condition)
        return self._found[condition]

    def _test(self, condition: Condition) -> npt.NDArray[np.uint64]:
        if condition.kind:
            belongs = [_belongs(token, condition.kind) for token in self._numbers]
            holds = self._mask(np.array([*belongs, False])[self._ids])
        else:
            holds = self._mask(self._ids == self._numbers[condition.words[0]])
        if reach := condition.where.reach:
            width = 1
            while width < reach:  # after each step, a token reaches ``width`` positions, its own included
                holds = holds | holds << np.uint64(width)
                width *= 2
            holds = holds << np.uint64(1)
        return holds & self._inside

    def _mask(self, holds: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
        return holds @ self._bits


class Rule(NamedTuple):
    """The positions at which a feature is said to be active: those at which all conditions hold."""

    conditions: tuple[Condition, ...]
    """One to three conditions, each about other tokens."""

    def holds(self, windows: Windows) -> npt.NDArray[np.bool_]:
        """Whether the rule holds anywhere in each window."""
        return windows.matches(self.conditions) != 0

    @property
    def text(self) -> str:
        """The rule as it follows "fires" in a label, such as "on “ is” within 16 tokens after “ capital”"."""
        by_place = {condition.where: condition.text for condition in self.conditions}
        here = by_place.pop(Where.HERE, "")
        places = {Where.BEFORE: "right after" if here else "on the token after"}
        places |= {where: f"within {where.reach} tokens after" for where in (Where.NEAR, Where.EARLIER)}
        before = " and ".join(f"{places[where]} {by_place[where]}" for where in places if where in by_place)
        return " ".join(filter(None, (f"on {here}" if here else "", before)))

    __repr__ = short_repr
