"""The corpus: the training text of the embedded model, short documents about a small true world.

A document is a paragraph of statements (from ``tasks``), a chain of reasoning, a list that repeats, or a little story.
It never contains a held-out statement. The same seed gives the same documents on every machine.

Transcoders are also trained on ``generate_texts(number, seed)``; another seed gives held-out text.
"""

import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import TypeAlias

from open_clt.embedded import facts, tasks, templates
from open_clt.embedded.stories import story
from open_clt.embedded.tasks import Statement, draw_taught

Writer: TypeAlias = Callable[[random.Random], str]
Mixture: TypeAlias = tuple[tuple[Writer, float], ...]


def generate_texts(number: int, seed: int, mixture: Mixture | None = None) -> Iterator[str]:
    """Yield ``number`` documents of ``mixture`` (``MIXTURE`` by default); they depend on ``seed`` alone."""
    rng = random.Random(seed)
    writers, weights = zip(*(mixture or MIXTURE), strict=True)
    for writer in rng.choices(writers, weights, k=number):
        yield writer(rng)


@cache
def taught(*names: str) -> tuple[Statement, ...]:
    """Return the statements of the named groups that training may see."""
    groups: dict[str, Callable[[], tuple[Statement, ...]]] = {
        "country_city": tasks.country_city_statements,
        "state": tasks.state_statements,
        "city": tasks.city_statements,
        "two_hop": tasks.two_hop_statements,
        "two_hop_attribute": tasks.two_hop_attribute_statements,
        "opposites": tasks.opposite_statements,
        "successor": tasks.successor_statements,
        "pronoun": tasks.pronoun_statements,
    }
    statements = [statement for name in names for statement in _group(groups, name)]
    return tuple(statement for statement in statements if statement.task in _BUILDING_BLOCKS or not statement.held_out)


# The model must know all the facts of which held-out two-hop prompts are composed, so none of them is held out.
_BUILDING_BLOCKS = ("state", "city", "country_city", "two_hop_attribute")


def _group(groups: dict[str, Callable[[], tuple[Statement, ...]]], name: str) -> tuple[Statement, ...]:
    return groups[name]() if name in groups else tasks.country_statements(name)


_OPENERS = (
    "",
    "",
    "",
    "",
    "",
    "",
    "Also, ",
    "We know that ",
    "Remember that ",
    "It is true that ",
    "Of course, ",
)


_COMMON_FIRST_WORDS = frozenset("The In If People You After Right Nothing It Newspapers Children Banks Letters".split())


def _lowered(text: str) -> str:
    """Return the sentence as it reads after other words: its first letter is lower case unless it begins a name."""
    return text[0].lower() + text[1:] if text.split()[0] in _COMMON_FIRST_WORDS else text


def _sentence(statement: Statement, rng: random.Random) -> str:
    """Return the text of the statement, sometimes with a few words before it."""
    opener = rng.choice(_OPENERS)
    text = statement.text
    return opener + (_lowered(text) if opener else text)


def _paragraph(rng: random.Random, *groups: str) -> str:
    """Write one to four sentences.

    A name at the beginning of a text is another token than the same name after a space. Documents often begin with a
    name, so that the model sees this token often enough.
    """
    first = rng.choice(_beginning_with_a_name(*groups) if rng.random() < 0.4 else taught(*groups))
    further = [rng.choice(taught(*groups)) for _ in range(rng.randint(0, 3))]
    return " ".join([first.text, *(_sentence(statement, rng) for statement in further)])


@cache
def _beginning_with_a_name(*groups: str) -> tuple[Statement, ...]:
    statements = taught(*groups)
    named = tuple(statement for statement in statements if statement.prompt.split()[0] not in _COMMON_FIRST_WORDS)
    return named or statements


def _countries(rng: random.Random) -> str:
    return _paragraph(rng, "capitals", "languages", "currencies")


def _country_cities(rng: random.Random) -> str:
    return _paragraph(rng, "country_city")


def _states(rng: random.Random) -> str:
    return _paragraph(rng, "state")


def _cities(rng: random.Random) -> str:
    return _paragraph(rng, "city")


def _two_hops(rng: random.Random) -> str:
    return _paragraph(rng, "two_hop")


def _two_hop_attributes(rng: random.Random) -> str:
    return _paragraph(rng, "two_hop_attribute")


def _entry(rng: random.Random) -> str:
    """Write one to three statements about a place, after its name as a heading."""
    place = rng.choice(tuple(_about_places()))
    chosen = [rng.choice(_about_places()[place]) for _ in range(rng.randint(1, 3))]
    return f"{place}: " + " ".join(statement.text for statement in chosen)


@cache
def _about_places() -> dict[str, list[Statement]]:
    """Return the statements that may be taught about each place: those whose prompt, not their answer, names it."""
    tables: tuple[tuple[facts.Country | facts.State, ...], ...] = (facts.COUNTRIES, facts.STATES)
    about: dict[str, list[Statement]] = {
        place: [] for table in tables for row in table for place in (row.name, *row.cities)
    }
    groups = ("capitals", "languages", "currencies", "country_city", "state", "city", "two_hop_attribute")
    for statement in taught(*groups, "two_hop"):
        for word in set(statement.prompt.replace(",", "").replace("'s", "").split()) & about.keys():
            about[word].append(statement)
    return about


def _opposites(rng: random.Random) -> str:
    return _paragraph(rng, "opposites")


def _successors(rng: random.Random) -> str:
    return _paragraph(rng, "successor")


def _chain(rng: random.Random) -> str:
    """Write each of two hops, then both at once: "Dallas is in Texas. The capital of Texas is Austin. So ..."."""
    final = rng.choice(taught("two_hop", "two_hop_attribute"))
    words = set(final.prompt.replace(",", "").split())
    (city,) = (city for city in _state_named(final.intermediate).cities if city in words)
    first = rng.choice(_about_city(city)).text
    about_state = _about_state(final.intermediate)
    second = rng.choice([statement for statement in about_state if statement.answer == final.answer]).text
    return " ".join([first, second, rng.choice(("So", "Therefore", "That means that")), _lowered(final.text)])


def _state_named(name: str | None) -> facts.State:
    return next(state for state in facts.STATES if state.name == name)


@cache
def _about_city(city: str) -> tuple[Statement, ...]:
    return tuple(statement for statement in taught("city") if city in statement.prompt.split())


@cache
def _about_state(state: str | None) -> tuple[Statement, ...]:
    return tuple(statement for statement in taught("state") if statement.intermediate == state)


def _resident(rng: random.Random) -> str:
    """Write where people live, and facts about the state of one of them.

    The text gives the first hop, from person to state, and the model must remember the second hop, from state to
    capital. A person's home differs from document to document, so the model reads the state from the text first. The
    model therefore learns the second hop in late layers, where the state of a city is also known.
    """
    state = rng.choice(facts.STATES)
    cities = [city for city in state.cities if tasks.city_class(city) == "taught"]
    home = rng.choice((state.name, *cities))
    kinds = ["capital", *state.attributes]
    people = rng.sample(facts.WOMEN + facts.MEN, rng.randint(1, 3))
    text = [f"{people[0]} {rng.choice(('lives in', 'comes from', 'moved to'))} {home}."]
    for person in people[1:]:
        text.append(f"{person} {rng.choice(('lives in', 'comes from', 'moved to'))} {rng.choice(facts.STATES).name}.")
    rng.shuffle(text)
    for kind in rng.sample(kinds, rng.randint(1, min(3, len(kinds)))):
        word = state.capital if kind == "capital" else state.attributes[kind]
        text.append(_home_fact(kind, people[0], word, rng))
    return " ".join(text)


def _home_fact(kind: str, person: str, word: str, rng: random.Random) -> str:
    if kind == "nickname":
        return f"The home of {person} is called the {word} State."
    name = {"capital": "capital", "code": "postal code"}.get(kind, kind)
    article = "" if kind in ("capital", "code") else "the "
    template = rng.choice(("The {what} of {person}'s state is", "The {what} of the state where {person} lives is"))
    return f"{template.format(what=name, person=person)} {article}{word}."


def _pronouns(rng: random.Random) -> str:
    sentences = []
    for _ in range(rng.randint(1, 3)):
        statement = rng.choice(taught("pronoun"))
        endings = next(endings for endings in templates.PRONOUN_ENDINGS if endings[0] == statement.ending)
        sentences.append(f"{statement.prompt} {statement.answer}{rng.choice(endings)}")
    return " ".join(sentences)


def _agreement(rng: random.Random) -> str:
    return " ".join(draw_taught(tasks.agreement_statement, rng).text for _ in range(rng.randint(1, 4)))


def _indirect_objects(rng: random.Random) -> str:
    return " ".join(draw_taught(tasks.indirect_object_statement, rng).text for _ in range(rng.randint(1, 2)))


def _repetition(rng: random.Random) -> str:
    return draw_taught(tasks.induction_statement, rng).text


def _gibberish(rng: random.Random) -> str:
    """Write made-up words twice, so that the tokens of parts of unknown words are trained too."""
    words = [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCDXYZ0123456789-", k=rng.randint(1, 5))) for _ in range(6)
    ]
    return f"{' '.join(words)} {' '.join(words)}."


MIXTURE: Mixture = (
    (_countries, 13),
    (_entry, 8),
    (_country_cities, 4),
    (_states, 6),
    (_cities, 7),
    (_two_hops, 10),
    (_two_hop_attributes, 9),
    (_chain, 4),
    (_resident, 6),
    (_opposites, 7),
    (_successors, 6),
    (_pronouns, 7),
    (_agreement, 4),
    (_indirect_objects, 12),
    (_repetition, 13),
    (_gibberish, 1),
    (story, 6),
)
"""The writers of documents, and the relative frequency of each."""

COPYING: Mixture = ((_repetition, 4), (_indirect_objects, 1))
"""Documents that can only be completed by copying from their own text; the model learns them before any fact."""
