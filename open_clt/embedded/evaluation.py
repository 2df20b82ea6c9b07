"""The evaluation of the embedded model: tasks whose prompts are not in its training text.

A task is a list of prompts, each with one right next token. ``two_hop`` asks for the capital of the state that a city
is in, in words that training did not use for that city. Two more tasks, which have no bar, measure whether the model
composes this answer from two facts or remembers it. In ``two_hop_transfer``, training never connects the city with the
capital of its state, but may connect it with the state's bird. In ``two_hop_composed``, training says only which state
the city is in.

``evaluate`` is independent of any model: it takes a function that predicts the next token of each prompt.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from open_clt.embedded import tasks
from open_clt.embedded.tasks import Statement
from open_clt.errors import ConfigError

BARS: dict[str, float] = {
    "capitals": 0.95,
    "languages": 0.95,
    "currencies": 0.95,
    "two_hop": 0.90,
    "opposites": 0.95,
    "successor": 0.95,
    "agreement": 0.95,
    "pronoun": 0.95,
    "induction": 0.95,
    "indirect_object": 0.90,
    "two_hop_transfer": 0.0,
    "two_hop_composed": 0.0,
}
"""Least share of right answers that passes each task; zero for a task without a bar."""

EVALUATIONS: tuple[str, ...] = tuple(BARS)

RANDOM_TASK_PROMPTS = 500
"""Number of prompts of a task whose prompts are drawn at random."""

_RANDOM_TASKS: dict[str, Callable[[random.Random], Statement]] = {
    "agreement": tasks.agreement_statement,
    "induction": tasks.induction_statement,
    "indirect_object": tasks.indirect_object_statement,
}
_LISTED_TASKS: dict[str, Callable[[], tuple[Statement, ...]]] = {
    "opposites": tasks.opposite_statements,
    "successor": tasks.successor_statements,
    "pronoun": tasks.pronoun_statements,
    "two_hop": tasks.two_hop_statements,
    "two_hop_transfer": tasks.two_hop_statements,
    "two_hop_composed": tasks.two_hop_statements,
}


@dataclass(frozen=True)
class EvaluationPrompt:
    """A prompt and its right next token, with its leading space, and for two hops the state in between."""

    task: str
    prompt: str
    answer: str
    intermediate: str | None = None


class EvaluationRow(NamedTuple):
    """One line of the evaluation table."""

    task: str
    prompts: int
    top1: float
    bar: float
    passed: bool


def evaluation_prompts(task: str, limit: int | None = None, seed: int = 0) -> list[EvaluationPrompt]:
    """Return at most ``limit`` held-out prompts of a task, in an order drawn from ``seed``.

    Raises ConfigError if the task is not one of ``EVALUATIONS``, or ``limit`` is below 1.
    """
    if task not in BARS:
        raise ConfigError(f"{task!r} is not a task; choose one of {', '.join(EVALUATIONS)}.")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1, or None for all prompts.")
    rng = random.Random(seed)
    statements = _draw_held_out(task, rng) if task in _RANDOM_TASKS else _list_held_out(task)
    rng.shuffle(statements)
    return [
        EvaluationPrompt(
            task,
            statement.prompt,
            " " + statement.answer,
            " " + statement.intermediate if statement.intermediate else None,
        )
        for statement in statements[:limit]
    ]


def _list_held_out(task: str) -> list[Statement]:
    listed = _LISTED_TASKS[task]() if task in _LISTED_TASKS else tasks.country_statements(task)
    return [statement for statement in listed if statement.task == task and statement.held_out]


def _draw_held_out(task: str, rng: random.Random) -> list[Statement]:
    drawn: dict[str, Statement] = {}
    while len(drawn) < RANDOM_TASK_PROMPTS:
        statement = _RANDOM_TASKS[task](rng)
        if statement.held_out:
            drawn.setdefault(statement.prompt, statement)
    return list(drawn.values())


def evaluate(
    next_token_ids: Callable[[list[str]], Sequence[int]],
    encode: Callable[[str], Sequence[int]],
    limit: int | None = None,
    seed: int = 0,
) -> list[EvaluationRow]:
    """Return the share of right answers (top-1) of every task.

    ``next_token_ids`` returns the most probable next token of each prompt; it must add the beginning-of-sequence token
    itself. ``encode`` returns the tokens of a text without special tokens. Each task asks at most ``limit`` prompts, or
    all of them for None; ``seed`` draws the order, and the prompts of random tasks. Raises ConfigError if an answer is
    not a single token, because then the tokenizer is not that of the embedded model.
    """
    rows = []
    for task in EVALUATIONS:
        prompts = evaluation_prompts(task, limit, seed)
        answers = [_single_token(prompt.answer, encode) for prompt in prompts]
        predicted = next_token_ids([prompt.prompt for prompt in prompts])
        right = sum(int(guess) == answer for guess, answer in zip(predicted, answers, strict=True))
        top1 = right / len(prompts)
        rows.append(EvaluationRow(task, len(prompts), top1, BARS[task], top1 >= BARS[task]))
    return rows


def _single_token(answer: str, encode: Callable[[str], Sequence[int]]) -> int:
    ids = list(encode(answer))
    if len(ids) != 1:
        raise ConfigError(
            f"The answer {answer!r} is {len(ids)} tokens, not one; use the tokenizer of the embedded model."
        )
    return int(ids[0])


def format_table(rows: Sequence[EvaluationRow]) -> str:
    """Return the evaluation as a table in plain text."""
    lines = [f"{'task':<18}{'prompts':>8}{'top-1':>9}{'bar':>8}  passed"]
    for row in rows:
        bar = f"{row.bar:.0%}" if row.bar else "-"
        lines.append(f"{row.task:<18}{row.prompts:>8}{row.top1:>9.1%}{bar:>8}  {'yes' if row.passed else 'NO'}")
    return "\n".join(lines)
