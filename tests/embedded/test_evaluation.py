"""The evaluation passes a perfect predictor and no other, and its prompts are well formed."""

import json

import pytest

from open_clt.embedded import MODEL_DIRECTORY, evaluation
from open_clt.embedded.evaluation import (
    BARS,
    EVALUATIONS,
    EvaluationPrompt,
    evaluate,
    evaluation_prompts,
    format_table,
)
from open_clt.errors import ConfigError
from tests.refusals import refuses


class _Vocabulary:
    """A tokenizer whose tokens are words, numbered in the order of their first use."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [self.ids.setdefault(word, len(self.ids)) for word in text.split()]


def _answers() -> dict[str, str]:
    return {asked.prompt: asked.answer for task in EVALUATIONS for asked in evaluation_prompts(task)}


def test_a_model_that_knows_everything_passes_every_bar():
    vocabulary, answers = _Vocabulary(), _answers()
    rows = evaluate(lambda prompts: [vocabulary.encode(answers[prompt])[0] for prompt in prompts], vocabulary.encode)
    assert [row.task for row in rows] == list(EVALUATIONS)
    assert all(row.top1 == 1.0 and row.passed for row in rows)


def test_a_model_that_always_predicts_the_same_token_fails_every_bar():
    vocabulary = _Vocabulary()
    rows = evaluate(lambda prompts: [0] * len(prompts), vocabulary.encode, limit=50)
    assert not any(row.passed for row in rows if row.bar)
    assert all(row.prompts <= 50 for row in rows)


def test_an_answer_of_two_tokens_is_refused():
    with refuses(ConfigError, 2):
        evaluate(lambda prompts: [0] * len(prompts), lambda text: [1, 2], limit=1)


def test_an_unknown_task_is_refused_with_the_names_of_the_known_tasks():
    with refuses(ConfigError, "three_hop", "two_hop"):
        evaluation_prompts("three_hop")


@pytest.mark.parametrize("task", EVALUATIONS)
def test_prompts_of_a_task_are_distinct_and_the_same_every_time(task: str):
    prompts = evaluation_prompts(task)
    assert len(prompts) >= 40
    assert len({asked.prompt for asked in prompts}) == len(prompts)
    assert prompts == evaluation_prompts(task)
    assert evaluation_prompts(task, limit=5) == prompts[:5]
    assert all(asked.answer.startswith(" ") and " " not in asked.answer[1:] for asked in prompts)


def test_two_hop_prompts_name_the_state_in_between():
    for task in ("two_hop", "two_hop_transfer", "two_hop_composed"):
        assert all(asked.intermediate and asked.intermediate[0] == " " for asked in evaluation_prompts(task))
    assert evaluation_prompts("capitals")[0].intermediate is None


def test_all_tasks_but_two_have_a_bar():
    assert set(BARS) == set(EVALUATIONS)
    assert {task for task, bar in BARS.items() if not bar} == {"two_hop_transfer", "two_hop_composed"}


def test_the_table_shows_every_row():
    vocabulary = _Vocabulary()
    rows = evaluate(lambda prompts: [0] * len(prompts), vocabulary.encode, limit=2)
    table = format_table(rows)
    assert all(row.task in table for row in rows)
    assert table.count("\n") == len(rows)


def test_prompts_with_the_same_fields_are_equal():
    prompt = EvaluationPrompt("capitals", "The capital of France is", " Paris")
    assert prompt == EvaluationPrompt("capitals", "The capital of France is", " Paris")
    assert evaluation.RANDOM_TASK_PROMPTS >= 100


def test_the_shipped_model_is_small_and_its_record_meets_every_bar():
    record = json.loads((MODEL_DIRECTORY / "training.json").read_text())
    assert {row["task"]: row["bar"] for row in record["evaluation"]} == BARS
    assert all(row["top1"] >= BARS[row["task"]] for row in record["evaluation"])
    assert sum(file.stat().st_size for file in MODEL_DIRECTORY.iterdir()) <= 8 * 1024**2


def test_every_answer_is_one_word_of_the_shipped_vocabulary():
    vocabulary = json.loads((MODEL_DIRECTORY / "tokenizer.json").read_text())["model"]["vocab"]
    answers = {asked.answer for task in EVALUATIONS for asked in evaluation_prompts(task)}
    assert [answer for answer in answers if answer.replace(" ", "Ġ") not in vocabulary] == []
