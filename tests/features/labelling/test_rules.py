"""Rules hold exactly where a slow search through the tokens says so, and their text names what they look for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from open_clt.features.labelling.rules import KINDS, Condition, Rule, Where, Windows, is_readable
from tests.features.labelling.made_records import WORDS, drawn_windows

CONDITIONS = [
    Condition(where, words=words, kind=kind)
    for where in Where
    for words, kind in [((" the",), ""), ((" cat", " of", "absent"), ""), (("absent",), ""), ((), "numbers")]
]


def holds_slowly(condition: Condition, tokens: Sequence[str], position: int) -> bool:
    """Look at the tokens one by one."""
    first = {Where.HERE: 0, Where.BEFORE: 1, Where.NEAR: 4, Where.EARLIER: 16}[condition.where]
    beyond = position + 1 if condition.where is Where.HERE else position
    seen = tokens[max(0, position - first) : beyond]
    return any(KINDS[condition.kind](token) if condition.kind else token in condition.words for token in seen)


@pytest.mark.parametrize("condition", CONDITIONS, ids=str)
def test_conditions_hold_where_the_tokens_say_so(condition: Condition) -> None:
    long = tuple(drawn_windows(4, seed=3)[row][column] for row in range(4) for column in range(16))
    tokens = [*drawn_windows(20, seed=0), (" the",), (), long]
    positions = Windows(tokens).positions(condition)
    for window, bits in zip(tokens, positions.tolist(), strict=True):
        expected = [holds_slowly(condition, window, position) for position in range(len(window))]
        assert [bool(bits >> position & 1) for position in range(64)] == expected + [False] * (64 - len(window))


def test_rules_hold_where_all_their_conditions_hold() -> None:
    windows = Windows([(" capital", " of", " Texas"), (" of", " Texas"), (" capital", " Texas", " of")])
    rule = Rule((Condition(Where.HERE, (" Texas",)), Condition(Where.BEFORE, (" of",))))
    assert rule.holds(windows).tolist() == [True, True, False]
    assert windows.matches(rule.conditions).tolist() == [0b100, 0b10, 0]
    assert Rule((*rule.conditions, Condition(Where.EARLIER, (" capital",)))).holds(windows).tolist() == [
        True,
        False,
        False,
    ]


def test_the_text_of_a_rule_names_its_words_and_where_they_stand() -> None:
    texts = [Rule((Condition(where, (" a", "b\n")),)).text for where in Where]
    assert len(set(texts)) == len(Where)
    assert all("“ a” or “b⏎”" in text for text in texts)
    assert "numbers" in Rule((Condition(Where.HERE, kind="numbers"),)).text


@pytest.mark.parametrize(
    ("kind", "members"),
    [
        ("numbers", {" 12"}),
        ("punctuation", {","}),
        ("word parts", {"ing"}),
        ("capitalised words", {" Texas", " Dallas"}),
        ("white space", set[str]()),
        ("words in capitals", set[str]()),
    ],
)
def test_classes_have_their_tokens(kind: str, members: set[str]) -> None:
    assert {word for word in WORDS if KINDS[kind](word)} == members


def test_parts_of_characters_are_not_readable() -> None:
    assert not any(map(is_readable, ("", "\ufffd", "\x15", " a\ufffd")))
    assert all(map(is_readable, (" ", "\n", "猫", " a")))
