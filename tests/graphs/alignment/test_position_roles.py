"""Tests of the roles of positions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from open_clt.errors import AttributionError
from open_clt.graphs.alignment.position_roles import PositionRoles, position_roles
from open_clt.graphs.info import GraphInfo
from tests.graphs.hand_graph import hand_graph
from tests.refusals import refuses

CAPITAL = "The capital of {city} is"


def info_of(prompt: str, cut: Sequence[str] = ()) -> GraphInfo:
    """The description of a prompt's graph: a token for each word with its space; some words are cut in two."""
    words = re.findall(r"^\S+|\s\S+", prompt)
    texts = ["<bos>"] + [part for w in words for part in ((w[:3], w[3:]) if w.strip() in cut else (w,))]
    tokens = tuple(sum(map(ord, text)) * 31 + len(text) for text in texts)
    return replace(hand_graph().info, prompt=prompt, tokens=tokens, token_strings=tuple(texts))


def named(roles: PositionRoles) -> list[list[str]]:
    """The names of the roles of each prompt's positions."""
    return [[roles.names[role] for role in prompt] for prompt in roles.of]


def test_all_tokens_of_a_slot_have_one_role() -> None:
    infos = [info_of("The capital of Dallas is"), info_of("The capital of San Antonio is", cut=["Antonio"])]
    dallas, antonio = named(position_roles(infos, [CAPITAL]))
    assert dallas == ["<bos>", "The", " capital", " of", "{city}", " is"]
    assert antonio == ["<bos>", "The", " capital", " of", "{city}", "{city}", "{city}", " is"]


def test_roles_stand_from_left_to_right() -> None:
    infos = [info_of("The capital of Dallas is"), info_of("The capital of San Antonio is")]
    assert position_roles(infos, [CAPITAL]).names == ("<bos>", "The", " capital", " of", "{city}", " is")


def test_without_a_template_positions_count_from_both_ends() -> None:
    roles = position_roles([info_of("A red cat sat"), info_of("A very old dog sat")])
    assert named(roles) == [["<bos>", "A", "[-3]", "[-2]", " sat"], ["<bos>", "A", " very", "[-3]", "[-2]", " sat"]]


def test_prompts_without_a_common_beginning_are_aligned_at_their_ends() -> None:
    roles = position_roles([info_of("red cat sat"), info_of("old grey dog sat")])
    assert named(roles)[0] == ["<bos>", "[-3]", "[-2]", " sat"]
    assert roles.of[0][1:] == roles.of[1][2:]


def test_paraphrases_share_slots_and_the_places_beside_them() -> None:
    infos = [info_of("The capital of Dallas is"), info_of("Dallas has the capital called")]
    first, second = named(position_roles(infos, [CAPITAL, "{city} has the capital called"]))
    assert "{city}" in first
    assert second[1] == "{city}"
    assert first[0] == second[0] == "<bos>"
    assert first[-1] == second[-1] == "[-1]"


def test_a_slot_that_occurs_again_has_a_role_of_its_own() -> None:
    template = "When {a} met {b} then {a} smiled"
    (roles,) = named(position_roles([info_of("When Ann met Bob then Ann smiled")], [template]))
    assert [role for role in roles if role.startswith("{")] == ["{a}", "{b}", "{a} 2"]


def test_every_position_has_a_role_and_roles_have_different_names_unless_they_show_tokens() -> None:
    roles = position_roles([info_of("a b c d"), info_of("e f g d h")])
    assert [len(prompt) for prompt in roles.of] == [5, 6]
    places = [name for name in roles.names if name.startswith("[")]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("prompt", "templates", "words"),
    [
        ("The bird of Texas is", [CAPITAL], ("The bird of Texas is", "{city}")),
        ("The capital of Texas is", ["The capital of Texas is"], ("no slot",)),
        ("The capital of Texas is", [CAPITAL, "In {state}"], ("different slots",)),
        ("unreliable", ["un{word}"], ("unreliable", "token")),
    ],
)
def test_a_prompt_that_cannot_be_divided_is_refused(prompt: str, templates: list[str], words: tuple[str, ...]) -> None:
    with refuses(AttributionError, *words):
        position_roles([info_of(prompt)], templates)


def test_tokens_that_do_not_spell_the_prompt_are_refused() -> None:
    with refuses(AttributionError, "spell"):
        position_roles([replace(info_of("The capital of Texas is"), token_strings=("?",) * 6)], [CAPITAL])
