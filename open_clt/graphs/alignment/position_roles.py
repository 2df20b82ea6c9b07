"""Roles of positions: which tokens of several prompts correspond to one another.

A template such as ``The capital of {state} is`` names parts of its prompts. All tokens of such a slot have one role,
``{state}``, however many there are; a slot that occurs again is ``{state} 2``. The tokens between two slots, before the
first slot and after the last one correspond by their place: tokens that all prompts share at the beginning of the part
count from its start, and the others count from its end. A prompt without a template is one such part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple, TypeAlias, final

import numpy as np

from open_clt.data.prompts import SLOT
from open_clt.errors import AttributionError
from open_clt.graphs.info import GraphInfo
from open_clt.short_repr import short_repr

Key: TypeAlias = tuple[str, str, int]
"""A role: the slots on both sides of a part, and a place in it; or the name of a slot, twice."""


@final
@dataclass(frozen=True)
class PositionRoles:
    """The roles of the positions of several prompts."""

    names: tuple[str, ...]
    """Name of each role: a slot in braces, the text of a token that all prompts share, or a place."""
    of: tuple[tuple[int, ...], ...]
    """For each prompt, the role of each position, as an index of ``names``."""

    __repr__ = short_repr


class _Part(NamedTuple):
    """Consecutive tokens of a prompt: those of a slot, or those between two slots."""

    left: str
    right: str
    positions: range
    is_slot: bool = False


def position_roles(infos: Sequence[GraphInfo], templates: Sequence[str] = ()) -> PositionRoles:
    """Find the roles of the positions of several prompts.

    Each prompt must have the form of one of the templates; without templates, positions count from both ends of the
    prompts. Raises AttributionError if a prompt has no template's form, if templates have different slots, or if a
    slot shares a token with the text beside it.
    """
    slots = {template: sorted(set(SLOT.findall(template))) for template in templates}
    for template, names in slots.items():
        if not names:
            raise AttributionError(f"The template {template!r} has no slot; write one in braces, such as {{city}}.")
        if names != slots[templates[0]]:
            raise AttributionError(
                f"The templates {templates[0]!r} and {template!r} have different slots; name the same slots in all."
            )
    parts = [_parts(info, templates) for info in infos]
    keys = _keys(infos, parts)
    order = _order(keys)
    index = {key: number for number, key in enumerate(order)}
    names = tuple(_distinct([_name(key, infos, keys) for key in order]))
    return PositionRoles(names, tuple(tuple(index[key] for key in prompt) for prompt in keys))


def template_pattern(template: str) -> re.Pattern[str]:
    """Return the pattern of a template's prompts; a slot that occurs again must hold the same text."""
    seen, pattern, end = set[str](), "", 0
    for slot in SLOT.finditer(template):
        pattern += re.escape(template[end : slot.start()])
        pattern += f"(?P={slot[1]})" if slot[1] in seen else f"(?P<{slot[1]}>.+?)"
        seen.add(slot[1])
        end = slot.end()
    return re.compile(pattern + re.escape(template[end:]), re.DOTALL)


def _parts(info: GraphInfo, templates: Sequence[str]) -> list[_Part]:
    """Divide a prompt into its slots and the parts between them."""
    n_tokens = len(info.tokens)
    if not templates:
        return [_Part("", "", range(n_tokens))]
    match = next(((t, found) for t in templates if (found := template_pattern(t).fullmatch(info.prompt))), None)
    if match is None:
        raise AttributionError(
            f"The prompt {info.prompt!r} does not have the form of {' or '.join(map(repr, templates))}."
        )
    parts, left, end = list[_Part](), "", 0
    for name, start, stop in _slots(*match):
        positions = _positions(info, start, stop)
        parts += [_Part(left, name, range(end, positions.start)), _Part(name, name, positions, is_slot=True)]
        left, end = name, positions.stop
    return [*parts, _Part(left, "", range(end, n_tokens))]


def _slots(template: str, match: re.Match[str]) -> list[tuple[str, int, int]]:
    """The slots of a prompt in their order: name, first character and end."""
    slots, uses, shift = list[tuple[str, int, int]](), dict[str, int](), 0
    for slot in SLOT.finditer(template):
        name, text = slot[1], match[slot[1]]
        uses[name] = uses.get(name, 0) + 1
        start = slot.start() + shift
        shift += len(text) - len(slot[0])
        slots.append((f"{{{name}}}" if uses[name] == 1 else f"{{{name}}} {uses[name]}", start, start + len(text)))
    return slots


def _positions(info: GraphInfo, start: int, stop: int) -> range:
    """The tokens that hold some characters of a prompt; the space before a word belongs to the word's token."""
    ends = np.cumsum([len(text) for text in info.token_strings])
    text = "".join(info.token_strings)
    offset = len(text) - len(info.prompt)
    if not text.endswith(info.prompt):
        raise AttributionError(
            f"The tokens of the prompt {info.prompt!r} do not spell it, so its slots cannot be found; use no template."
        )
    first, last = (int(np.searchsorted(ends, offset + place, side="right")) for place in (start, stop - 1))
    inside = text[int(ends[first - 1]) if first else 0 : offset + start].strip(), text[offset + stop : int(ends[last])]
    if inside[0] or inside[1].strip():
        shared = info.token_strings[first if inside[0] else last]
        raise AttributionError(
            f"In {info.prompt!r}, the token {shared!r} holds text of a slot and text beside it; move the slot's border."
        )
    return range(first, last + 1)


def _keys(infos: Sequence[GraphInfo], parts: Sequence[Sequence[_Part]]) -> list[list[Key]]:
    """The role of each position of each prompt."""
    texts: dict[tuple[str, str], list[tuple[int, ...]]] = {}
    for info, prompt in zip(infos, parts, strict=True):
        for part in prompt:
            texts.setdefault((part.left, part.right), []).append(tuple(info.tokens[p] for p in part.positions))
    shared = {ends: _shared(tokens) for ends, tokens in texts.items()}
    keys: list[list[Key]] = []
    for prompt in parts:
        keys.append([])
        for part in prompt:
            if part.is_slot:
                keys[-1] += [(part.left, part.left, 0)] * len(part.positions)
                continue
            length, prefix = len(part.positions), shared[part.left, part.right]
            keys[-1] += [(part.left, part.right, i if i < prefix else i - length) for i in range(length)]
    return keys


def _shared(texts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all texts have at their beginning."""
    columns = zip(*texts, strict=False)
    return len(list(takewhile(lambda column: len(set(column)) == 1, columns)))


def _order(keys: Sequence[Sequence[Key]]) -> list[Key]:
    """All roles, from left to right: by their mean place in the prompts, each as long as 1."""
    places: dict[Key, list[float]] = {}
    for prompt in keys:
        for position, key in enumerate(prompt):
            places.setdefault(key, []).append(position / len(prompt))
    return sorted(places, key=lambda key: float(np.mean(places[key])))


def _name(key: Key, infos: Sequence[GraphInfo], keys: Sequence[Sequence[Key]]) -> str:
    """The slot, the token that all prompts have in this role, or the place in the part."""
    left, right, place = key
    if left == right != "":
        return left
    texts = {
        info.token_strings[position]
        for info, prompt in zip(infos, keys, strict=True)
        for position, each in enumerate(prompt)
        if each == key
    }
    if len(texts) == 1:
        return texts.pop()
    return f"[{place}]" if place < 0 else f"[+{place}]"


def _distinct(names: Sequence[str]) -> list[str]:
    """The same names; places of different parts may have the same name, and are told apart by a number."""
    uses: dict[str, int] = {}
    distinct: list[str] = []
    for name in names:
        uses[name] = uses.get(name, 0) + 1
        is_place = name.startswith("[")
        distinct.append(f"{name} {uses[name]}" if is_place and uses[name] > 1 else name)
    return distinct
