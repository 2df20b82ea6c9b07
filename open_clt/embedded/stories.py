"""Little stories: a few random sentences about people, animals, weather and food."""

import random

from open_clt.embedded import facts

_OPENINGS = (
    "Once upon a time there was a very {feeling} {animal} who lived near a {place}.",
    "One {weather} morning {name} walked to the {place}.",
    "It was a {weather} day, and {name} was {feeling}.",
    "{name} lived in a small house in {city}, {state}.",
    "In {month} the weather in {city} was {weather}.",
    "On {day} {name} took the train to {capital}, the capital of {country}.",
    "{name} had a {animal} and {number} books.",
    "Far away in {country}, where people speak {language}, it was {weather}.",
)
_MIDDLES = (
    "There {he} saw a {animal} under a tree.",
    "{He} wanted to eat some {food}, but the kitchen was empty.",
    "{friend} gave {him} a {object} and some {food}.",
    "Suddenly a {animal} ran out of the {place}.",
    '"Where is my {object}?" {he} asked.',
    '"I am {feeling} today," said {friend}.',
    "{He} looked at the sky and thought about {his} friend {friend}.",
    "The {animal} was {feeling} because it was so {weather}.",
    "At {number} o'clock {friend} came with a {object}.",
    "Then {he} found {number} coins in {his} bag.",
    "They talked about the long road to {city}.",
    "{friend} had never seen such a big {animal} before.",
    "The people at the {place} were kind to {him}.",
    "First {he} was {feeling}, then {he} began to laugh.",
    "{He} opened the door of the {place} and went in.",
    "A letter from {capital} lay on the table.",
)
_ENDINGS = (
    "In the end everybody was happy.",
    "{He} went home and slept well.",
    "After that day {he} never forgot {his} {object} again.",
    "And the {animal} became {his} best friend.",
    "They ate {food} together until it was dark.",
    '"Thank you," {he} said, and smiled.',
    "The next day it was {weather} again.",
    "That was the end of the story.",
)


def story(rng: random.Random) -> str:
    """Write a story of three to seven sentences about one person, with the right pronouns."""
    female = rng.random() < 0.5
    name = rng.choice(facts.WOMEN if female else facts.MEN)
    friend = rng.choice([person for person in facts.WOMEN + facts.MEN if person != name])
    middle = rng.sample(_MIDDLES, rng.randint(1, 5))
    sentences = [rng.choice(_OPENINGS), *middle, rng.choice(_ENDINGS)]
    pronouns = ("she", "her", "her") if female else ("he", "him", "his")
    return " ".join(sentence.format(**_slots(rng, name, friend, pronouns)) for sentence in sentences)


def _slots(rng: random.Random, name: str, friend: str, pronouns: tuple[str, str, str]) -> dict[str, str]:
    """Draw the words of one sentence; the facts in the sentence are true."""
    country, state = rng.choice(facts.COUNTRIES), rng.choice(facts.STATES)
    words = {
        "animal": facts.ANIMALS,
        "day": facts.DAYS,
        "feeling": facts.FEELINGS,
        "food": facts.FOODS,
        "month": facts.MONTHS,
        "number": facts.NUMBERS[1:],
        "object": facts.OBJECTS,
        "place": facts.PLACES,
        "weather": facts.WEATHER,
    }
    drawn = {slot: rng.choice(choices) for slot, choices in words.items()}
    he, him, his = pronouns
    people = {"name": name, "friend": friend, "he": he, "He": he.capitalize(), "him": him, "his": his}
    places = {"country": country.name, "capital": country.capital, "language": country.language}
    return drawn | people | places | {"city": rng.choice(state.cities), "state": state.name}
