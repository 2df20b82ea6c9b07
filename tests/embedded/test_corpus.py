"""The corpus is the same for the same seed, and holds no held-out prompt."""

import subprocess
import sys

import pytest

from open_clt.embedded import evaluation, facts, tasks, templates
from open_clt.embedded.corpus import MIXTURE, generate_texts


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return list(generate_texts(12_000, seed=7))


def test_the_same_seed_gives_the_same_text_and_another_seed_gives_another_text():
    assert list(generate_texts(200, seed=3)) == list(generate_texts(200, seed=3))
    assert list(generate_texts(200, seed=3)) != list(generate_texts(200, seed=4))


def test_the_text_does_not_depend_on_the_hash_seed_of_the_process():
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


@pytest.mark.slow
@pytest.mark.parametrize("task", evaluation.EVALUATIONS)
def test_no_held_out_prompt_is_in_the_text(task: str, sample: list[str]):
    text = " ".join(sample)
    prompts = [asked.prompt for asked in evaluation.evaluation_prompts(task)]
    prompts += [prompt[0].lower() + prompt[1:] for prompt in prompts]  # as in the middle of a sentence
    # Spaces around a prompt tell "the garden" from the beginning of "the gardens".
    assert [prompt for prompt in prompts if f" {prompt} " in text] == []


@pytest.mark.parametrize("task", ["two_hop_composed", "two_hop_transfer"])
def test_no_sentence_names_a_held_out_city_and_its_capital(task: str, sample: list[str]):
    """Otherwise the model could remember the answer. Lists of random words do not count."""
    pairs = {
        (city, " " + state.capital)
        for state in facts.STATES
        for city in state.cities
        if "two_hop_" + tasks.city_class(city) == task
    }
    lists = ("Again:", "Copy this:", "The list:", "Repeat:", "Words:")
    sentences = [sentence for text in sample if not text.startswith(lists) for sentence in text.split(".")]
    named = {pair for sentence in sentences for pair in pairs if pair[0] in sentence and pair[1] in sentence}
    assert named == set()


def test_no_two_hop_statement_about_an_attribute_names_a_composed_city():
    composed = {city for state in facts.STATES for city in state.cities if tasks.city_class(city) == "composed"}
    assert composed
    asked = " ".join(statement.prompt for statement in tasks.two_hop_attribute_statements())
    assert not [city for city in composed if f" {city} " in f" {asked} "]


def test_documents_are_long_enough_and_seldom_repeat(sample: list[str]):
    """The mixture can draw every writer, and each document has at least four words."""
    assert all(weight > 0 for _, weight in MIXTURE)
    assert all(len(text.split()) >= 4 for text in sample)
    assert len(set(sample)) > 0.6 * len(sample)


def test_a_place_name_stands_for_one_place():
    states = [city for state in facts.STATES for city in (state.name, state.capital, *state.cities)]
    countries = [city for country in facts.COUNTRIES for city in (country.name, country.capital, *country.cities)]
    names = states + countries + list(facts.WOMEN) + list(facts.MEN)
    assert len(names) == len(set(names))


def test_the_opposite_of_an_opposite_is_the_word():
    assert all(facts.OPPOSITES[facts.OPPOSITES[word]] == word for word in facts.OPPOSITES)


def test_every_kind_of_fact_has_at_least_five_templates():
    assert len(templates.TWO_HOP_TEMPLATES["capital"]) >= 5
    assert len(templates.OPPOSITE_TEMPLATES) >= 5
    assert len(templates.SUCCESSOR_TEMPLATES) >= 5
    assert all(len(templates) >= 5 for templates in templates.COUNTRY_TEMPLATES.values())
