"""The search for the rule that tells the contexts in which a feature is active from others.

The search starts with rules of one condition and adds conditions to the best ones. The words of a condition are chosen
one by one: the word that raises the balanced accuracy most comes next. It sees the training half of the contexts only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt

from open_clt.features.labelling.rules import KINDS, MOST_NAMED, Condition, Rule, Where, Windows, is_readable
from open_clt.short_repr import short_repr

_CANDIDATES = 16
"""Number of words that are tried in a condition: the most frequent ones."""
_SMALLEST_GAIN = 0.02
"""Balanced accuracy that another word of a condition must add."""
_COSTS = {Where.HERE: 0.0, Where.BEFORE: 0.01, Where.NEAR: 0.02, Where.EARLIER: 0.03}
_COST_OF_MORE = 0.02
"""Balanced accuracy that a condition must add, by its place and for every condition after the first.

Of two rules that are almost equally right, the shorter is better, and one about the token itself is best."""
_BEAM = (5, 3)
"""Number of rules of one and of two conditions to which another condition is added."""


def _cost(condition: Condition) -> float:
    """What a condition must add, which is more for a list that is too long to be read."""
    return _COSTS[condition.where] + _COST_OF_MORE * (1 + (len(condition.words) > MOST_NAMED))


class Sides(NamedTuple):
    """The contexts that a rule must tell apart: those in which a feature is active, and those in which it is not."""

    active: Windows
    """Windows in which the feature is active."""
    peaks: npt.NDArray[np.uint64]
    """The position of the largest activation in each of these windows, as a bit."""
    background: Windows
    """Windows of any text."""
    inactive: npt.NDArray[np.bool_]
    """Whether the feature is inactive in each of these windows."""

    __repr__ = short_repr


class Found(NamedTuple):
    """A rule, and the balanced accuracy with which it tells the contexts that were searched apart."""

    rule: Rule
    balanced_accuracy: float
    value: float
    """The balanced accuracy less the costs of the rule's conditions."""

    __repr__ = short_repr


def best_rule(sides: Sides, single_tokens: tuple[str, ...] = ()) -> Found | None:
    """The best rule for these contexts; None if no readable token stands at a peak.

    ``single_tokens`` are tokens that make the feature active alone: all of them together are one more condition.
    """
    search = _Search(sides, tuple(filter(is_readable, single_tokens)))
    rules = sorted(search.longer(Rule(())), key=lambda found: -found.value)
    found = rules
    for width in _BEAM:
        longer = [rule for shorter in found[:width] for rule in search.longer(shorter.rule)]
        found = sorted(longer, key=lambda rule: -rule.value)
        rules += found
    return max(rules, key=lambda found: found.value, default=None)


@final
class _Search:
    """The contexts of one feature, and what they say about conditions."""

    def __init__(self, sides: Sides, single_tokens: tuple[str, ...]) -> None:
        self._single_tokens = single_tokens
        self._sides = sides
        self._peaks = [int(bit).bit_length() - 1 for bit in sides.peaks]
        self._n_inactive = max(1, int(sides.inactive.sum()))
        self._words = {where: [self._words_at(where, row) for row in range(len(sides.active))] for where in Where}

    def longer(self, rule: Rule) -> Iterator[Found]:
        """The rules with one more condition: for each ``Where`` that is free, the best words and each class."""
        active = self._sides.active.matches(rule.conditions) & self._sides.peaks
        background = np.where(self._sides.inactive, self._sides.background.matches(rule.conditions), np.uint64(0))
        used = {condition.where for condition in rule.conditions}
        for where in Where:
            if where not in used and active.any():
                for condition in self._conditions(where, active, background):
                    yield self._judged(Rule((*rule.conditions, condition)), active, background)

    def _judged(self, rule: Rule, active: npt.NDArray[np.uint64], background: npt.NDArray[np.uint64]) -> Found:
        """A rule with its accuracy, from the positions at which all conditions but the last hold."""
        last = rule.conditions[-1]
        hits = float(((self._sides.active.positions(last) & active) != 0).mean())
        false_alarms = int(((self._sides.background.positions(last) & background) != 0).sum()) / self._n_inactive
        accuracy = (hits + 1 - false_alarms) / 2
        costs = sum(map(_cost, rule.conditions))
        return Found(rule, accuracy, accuracy - costs)

    def _conditions(
        self, where: Where, active: npt.NDArray[np.uint64], background: npt.NDArray[np.uint64]
    ) -> Iterator[Condition]:
        counts = Counter(word for row in np.flatnonzero(active) for word in self._words[where][row])
        candidates = [Condition(where, (word,)) for word, _ in counts.most_common(_CANDIDATES)]
        if candidates:
            yield self._best_words(candidates, active, background)
        if where is Where.HERE and self._single_tokens:
            yield Condition(where, self._single_tokens)
        if where.reach <= 1:
            yield from (Condition(where, kind=kind) for kind in KINDS)

    def _words_at(self, where: Where, row: int) -> list[str]:
        """The readable words at a place relative to the peak of a window."""
        tokens, peak = self._sides.active.tokens[row], self._peaks[row]
        first = max(0, peak - where.reach)
        beyond = peak if where.reach else peak + 1
        return [word for word in dict.fromkeys(tokens[first:beyond]) if is_readable(word)]

    def _best_words(
        self, candidates: list[Condition], active: npt.NDArray[np.uint64], background: npt.NDArray[np.uint64]
    ) -> Condition:
        """Choose words one by one, as long as each adds enough to the balanced accuracy."""
        hits = np.stack([(self._sides.active.positions(word) & active) != 0 for word in candidates])
        alarms = np.stack([(self._sides.background.positions(word) & background) != 0 for word in candidates])
        chosen: list[str] = []
        while len(chosen) < MOST_NAMED:
            gains = hits.mean(1) / 2 - alarms.sum(1) / self._n_inactive / 2
            best = int(gains.argmax())
            if chosen and gains[best] < _SMALLEST_GAIN:
                break
            chosen += candidates[best].words
            # Contexts that a chosen word decides are decided for all words.
            hits, alarms = hits & ~hits[best], alarms & ~alarms[best]
        return Condition(candidates[0].where, tuple(chosen))
