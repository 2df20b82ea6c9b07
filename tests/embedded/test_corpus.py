"""The corpus: the same for the same seed, true, and silent about everything held out."""

import subprocess
import sys

import pytest

from open_clt.embedded import evaluation, facts, tasks, templates
from open_clt.embedded.corpus import MIXTURE, generate_texts


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return list(generate_texts(12_000, seed=7))


def test_same_seed_same_text_and_another_seed_other_text():
    assert list(generate_texts(200, seed=3)) == list(generate_texts(200, seed=3))
    assert list(generate_texts(200, seed=3)) != list(generate_texts(200, seed=4))


def test_text_does_not_depend_on_the_hash_seed_of_the_process():
    program = "from open_clt.embedded.corpus import generate_texts; print(list(generate_texts(50, seed=1)))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("task", evaluation.EVALUATIONS)
def test_no_held_out_prompt_stands_in_the_text(task: str, sample: list[str]):
    text = " ".join(sample)
    prompts = [found.prompt for found in evaluation.evaluation_prompts(task)]
    prompts += [prompt[0].lower() + prompt[1:] for prompt in prompts]  # as it stands in mid-sentence
    # With spaces around it, because "the garden" does not stand in "the gardens".
    assert [prompt for prompt in prompts if f" {prompt} " in text] == []


@pytest.mark.parametrize("task", ["two_hop_composed", "two_hop_transfer"])
def test_cities_kept_for_composing_never_meet_their_capital(task: str, sample: list[str]):
    """Not in any sentence: otherwise the answer could be remembered. (Random word lists do not count.)"""
    pairs = {
        (city, " " + state.capital)
        for state in facts.STATES
        for city in state.cities
        if "two_hop_" + tasks.city_class(city) == task
    }
    lists = ("Again:", "Copy this:", "The list:", "Repeat:", "Words:")
    sentences = [s for text in sample if not text.startswith(lists) for s in text.split(".")]
    met = {(city, capital) for s in sentences for city, capital in pairs if city in s and capital in s}
    assert met == set()


def test_composed_cities_are_asked_for_nothing_but_their_state():
    composed = {city for state in facts.STATES for city in state.cities if tasks.city_class(city) == "composed"}
    assert composed
    asked = " ".join(statement.prompt for statement in tasks.two_hop_attribute_statements())
    assert not [city for city in composed if f" {city} " in f" {asked} "]


def test_every_writer_writes(sample: list[str]):
    """Each kind of document is one that the mixture can produce, and none is empty."""
    assert all(weight > 0 for _, weight in MIXTURE)
    assert all(len(text.split()) >= 4 for text in sample)
    assert len(set(sample)) > 0.6 * len(sample)


def test_a_place_name_stands_for_one_place():
    states = [city for state in facts.STATES for city in (state.name, state.capital, *state.cities)]
    countries = [city for country in facts.COUNTRIES for city in (country.name, country.capital, *country.cities)]
    names = states + countries + list(facts.WOMEN) + list(facts.MEN)
    assert len(names) == len(set(names))


def test_opposites_go_both_ways():
    assert all(facts.OPPOSITES[facts.OPPOSITES[word]] == word for word in facts.OPPOSITES)


def test_there_are_enough_ways_to_say_a_fact():
    assert len(templates.TWO_HOP_TEMPLATES["capital"]) >= 5
    assert len(templates.OPPOSITE_TEMPLATES) >= 5
    assert len(templates.SUCCESSOR_TEMPLATES) >= 5
    assert all(len(templates) >= 5 for templates in templates.COUNTRY_TEMPLATES.values())
