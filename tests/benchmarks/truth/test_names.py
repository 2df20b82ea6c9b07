"""The benchmark of names: the shares that it counts, and their interval."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks" / "truth"


@pytest.fixture(scope="module")
def names() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("names")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_shares_count_right_names_and_refused_ones(names: Any) -> None:
    question = names.questions(1, development=True)[0]
    right = names.Outcome(question, question.state, question.city, 3, "Ohio", True, True, False)
    wrong = right._replace(name="Ohio", refused=False)
    none = right._replace(name=None, kept=False)
    shares = names.shares([right, wrong, none, right])
    assert shares == {
        "found_share": 0.75, "named_share": 0.5, "kept_share": 0.75, "refused_share": 0.75, "random_refused_share": 0.0,
    }  # fmt: skip
    assert question.state != right.wrong
    assert "all" in names.table([right, wrong])


def test_prompts_for_development_are_about_other_cities(names: Any) -> None:
    held_out, development = names.questions(None, development=False), names.development_questions(None)
    assert len(development) == 304
    assert not {question.city for question in held_out} & {question.city for question in development}


def test_an_interval_contains_the_share(names: Any) -> None:
    low, high = names.interval([True] * 90 + [False] * 10)
    assert 0.8 < low < 0.9 < high < 1
    assert names.interval([True] * 9) == (1.0, 1.0)
