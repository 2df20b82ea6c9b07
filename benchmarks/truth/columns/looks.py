"""The columns of attention: is the pair of sources that explains a head about the rule? See ``attention.py``."""

from __future__ import annotations

from attention import Bench, Outcome
from attention_rules import TASKS, Reader
from columns.shares import Numbers
from dictionaries import Dictionary


def looks(dictionary: Dictionary, count: int, *, development: bool, seed: int) -> dict[str, list[Numbers]]:
    """The numbers of ``count`` prompts of each task of ``attention.py``."""
    bench = Bench(dictionary.model, dictionary.transcoder, seed)
    reader = Reader(dictionary.model, seed)
    return {
        task: [_numbers(outcome) for outcome in bench.outcomes(reader, task, count, development=development)]
        for task in TASKS
    }


def _numbers(outcome: Outcome) -> Numbers:
    return {
        "pair": float(outcome.right),
        "of_5": float(outcome.right_of_top),
        "random_head": float(outcome.random_head),
        "random_key": float(outcome.wrong_key),
    }
