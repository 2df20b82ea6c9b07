"""Statements: a prompt, the word that completes it, and whether training may see it.

The corpus writes the statements, and the evaluation asks for their answers. A stable hash of the prompt (not Python's
``hash``, which differs between runs) holds out a fifth of each task that the evaluation asks, and the corpus never
writes these statements.

The model should compose two-hop statements ("The capital of the state containing Dallas is") and not memorise them, so
there are three classes of cities. For most cities ("taught"), training has four fifths of the two-hop prompts. For a
tenth of the cities ("transfer"), training has no two-hop prompt about the capital, but prompts about the bird or the
flower. For another tenth ("composed"), training has no two-hop prompt: it says only which state the city is in.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

from open_clt.embedded import facts, templates

CityClass: TypeAlias = Literal["composed", "transfer", "taught"]


@dataclass(frozen=True)
class Statement:
    """A true sentence, cut before its last word.

    Whether a statement is held out depends on the hash of its ``key``. The key is usually the prompt. For prompts with
    random words it is the part that makes the question new, such as the pair of names.
    """

    task: str
    prompt: str
    answer: str
    key: str
    ending: str = "."
    intermediate: str | None = None

    @property
    def text(self) -> str:
        """The complete sentence."""
        return f"{self.prompt} {self.answer}{self.ending}"

    @property
    def held_out(self) -> bool:
        """Whether training must never see the statement."""
        if self.task in ("two_hop_composed", "two_hop_transfer"):
            return True
        return fraction(self.task + ":" + self.key) < 0.2


def fraction(text: str) -> float:
    """Return a number in [0, 1) that depends on ``text`` alone and is the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


@cache
def city_class(city: str) -> CityClass:
    """Return the class of a city, which decides what training says about it (see the module's docstring)."""
    draw = fraction("city:" + city)
    return "composed" if draw < 0.1 else "transfer" if draw < 0.2 else "taught"


def _fill(
    task: str, template: str, answer: str, ending: str = ".", state: str | None = None, **slots: str
) -> Statement:
    prompt = template.format(**slots)
    return Statement(task, prompt, answer, prompt, ending, state)


@cache
def country_statements(task: str) -> tuple[Statement, ...]:
    """Return every statement of the task "capitals", "languages" or "currencies"."""
    column = {"capitals": 1, "languages": 2, "currencies": 3}[task]
    return tuple(
        _fill(task, template, str(country[column]), x=country.name)
        for country in facts.COUNTRIES
        for template in templates.COUNTRY_TEMPLATES[task]
    )


@cache
def country_city_statements() -> tuple[Statement, ...]:
    """Return statements about the country that a city is in, and about the capital, language and currency there."""
    return tuple(
        _fill("country_city", template, dict(country=country.name, **_columns(country))[kind], x=city)
        for country in facts.COUNTRIES
        for city in country.cities
        for kind, choices in templates.COUNTRY_CITY_TEMPLATES.items()
        for template in choices
    )


def _columns(country: facts.Country) -> dict[str, str]:
    return {"capital": country.capital, "language": country.language, "currency": country.currency}


def _attribute(
    task: str, choices: dict[str, tuple[str, ...]], kind: str, state: facts.State, x: str
) -> list[Statement]:
    """Return the statements about one attribute of a state, which name the state or one of its cities as ``x``."""
    word = state.capital if kind == "capital" else state.attributes[kind]
    ending = " State." if kind == "nickname" else "."
    chosen = choices.get(kind) or choices["symbol"]
    return [_fill(task, template, word, ending, state.name, x=x, kind=kind) for template in chosen]


@cache
def state_statements() -> tuple[Statement, ...]:
    """Return one-hop statements: the capital, bird, ... of each state; training sees all of them."""
    return tuple(
        statement
        for state in facts.STATES
        for kind in ("capital", *state.attributes)
        for statement in _attribute("state", templates.STATE_TEMPLATES, kind, state, state.name)
    )


@cache
def city_statements() -> tuple[Statement, ...]:
    """Return the other hop: the state that each city is in."""
    return tuple(
        _fill("city", template, state.name, x=city)
        for state in facts.STATES
        for city in (*state.cities, state.capital)
        for template in templates.CITY_TEMPLATES
    )


@cache
def two_hop_statements() -> tuple[Statement, ...]:
    """Return two-hop statements from city to state to capital; the task depends on the class of the city."""
    names = {"taught": "two_hop", "transfer": "two_hop_transfer", "composed": "two_hop_composed"}
    return tuple(
        statement
        for state in facts.STATES
        for city in state.cities
        for statement in _attribute(names[city_class(city)], templates.TWO_HOP_TEMPLATES, "capital", state, city)
    )


@cache
def two_hop_attribute_statements() -> tuple[Statement, ...]:
    """Return two-hop statements from city to state to another attribute, for all cities except "composed" ones."""
    return tuple(
        statement
        for state in facts.STATES
        for city in state.cities
        if city_class(city) != "composed"
        for kind in state.attributes
        for statement in _attribute("two_hop_attribute", templates.TWO_HOP_TEMPLATES, kind, state, city)
    )


@cache
def opposite_statements() -> tuple[Statement, ...]:
    """Return statements of the opposite of every word, in every template."""
    return tuple(
        _fill("opposites", template, opposite, x=word)
        for word, opposite in facts.OPPOSITES.items()
        for template in templates.OPPOSITE_TEMPLATES
    )


@cache
def successor_statements() -> tuple[Statement, ...]:
    """Return statements of which day or month (both in a cycle) or which number follows another."""
    statements = []
    for kind, words in (("day", facts.DAYS), ("month", facts.MONTHS), ("number", facts.NUMBERS)):
        for index, word in enumerate(words):
            if kind == "number" and not 0 < index < len(words) - 1:
                continue
            slots = {"before": words[index - 1], "x": word, "kind": kind}
            following = words[(index + 1) % len(words)]
            statements += [
                _fill("successor", template, following, **slots) for template in templates.SUCCESSOR_TEMPLATES
            ]
    return tuple(statements)


@cache
def pronoun_statements() -> tuple[Statement, ...]:
    """Return names with the pronouns that refer back to them."""
    people = [(name, ("she", "her", "her")) for name in facts.WOMEN]
    people += [(name, ("he", "him", "his")) for name in facts.MEN]
    return tuple(
        _fill("pronoun", template, pronouns[case], templates.PRONOUN_ENDINGS[case][0], x=name)
        for name, pronouns in people
        for template, case in templates.PRONOUN_TEMPLATES
    )


def agreement_statement(rng: random.Random) -> Statement:
    """Draw a verb that agrees with the first noun and not the nearest: "The keys to the cabinet" -> "are"."""
    noun, nearest_noun = rng.sample(facts.NOUNS, 2)
    plural = rng.random() < 0.5
    nearest = nearest_noun[rng.random() < 0.5]
    where = f"{rng.choice(facts.PREPOSITIONS)} the {nearest}"
    template, singular_verb, plural_verb = rng.choice(templates.AGREEMENT_TEMPLATES)
    prompt = template.format(noun=noun[plural], where=where)
    ending = (" been" if singular_verb == "has" else "") + f" {rng.choice(facts.CONDITIONS)}."
    return Statement("agreement", prompt, plural_verb if plural else singular_verb, f"{noun[plural]} {where}", ending)


def indirect_object_statement(rng: random.Random) -> Statement:
    """Draw two names and a thing: "When Mary and John went to the store, John gave a drink to" -> "Mary"."""
    a, b = rng.sample(facts.WOMEN + facts.MEN, 2)
    giver, receiver = (a, b) if rng.random() < 0.5 else (b, a)
    slots = {"place": rng.choice(facts.PLACES), "thing": rng.choice(facts.OBJECTS)}
    prompt = rng.choice(templates.INDIRECT_OBJECT_TEMPLATES).format(a=a, b=b, s=giver, **slots)
    return Statement("indirect_object", prompt, receiver, " ".join(sorted((a, b))))


@cache
def list_words() -> tuple[str, ...]:
    """Return the words of random lists: names, places, things and adjectives, sorted."""
    plurals = [plural for _, plural in facts.NOUNS]
    places = [country.capital for country in facts.COUNTRIES] + [
        city for state in facts.STATES for city in state.cities
    ]
    words = [*facts.WOMEN, *facts.MEN, *plurals, *places, *facts.OPPOSITES, *facts.FOODS, *facts.NUMBERS]
    return tuple(sorted({*words, *facts.ANIMALS, *facts.OBJECTS, *facts.PLACES}))


def induction_statement(rng: random.Random) -> Statement:
    """Draw a list of random words that repeats: the word that followed a word follows it again."""
    words = rng.sample(list_words(), rng.randint(2, 14))
    stop = rng.randint(1, len(words) - 1)
    lead = rng.choice(("Again:", "Copy this:", "The list:", "Repeat:", "Words:"))
    between = rng.choice(("", ",", ".", " and"))
    prompt = f"{lead} {' '.join(words)}{between} {' '.join(words[:stop])}"
    tail = "".join(f" {word}" for word in words[stop + 1 :])
    tail += f"{between} {' '.join(words)}" * rng.randint(0, 12 // len(words))
    return Statement("induction", prompt, words[stop], " ".join(words), tail + ".")


def draw_taught(make: Callable[[random.Random], Statement], rng: random.Random) -> Statement:
    """Draw statements until training may see one, and return that one."""
    while (statement := make(rng)).held_out:
        pass
    return statement
