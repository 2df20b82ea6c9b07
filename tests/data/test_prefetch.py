"""Working ahead changes when things are made, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count
from threading import Event

from open_clt.data.prefetch import Ahead
from tests.refusals import refuses


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_items_come_in_order_and_end_where_they_end() -> None:
    ahead = Ahead(lambda stopped: iter(range(20)))
    assert list(ahead) == list(range(20))
    assert list(ahead) == []
    ahead.close()
    assert not workers()


def test_one_item_is_made_ahead_and_no_more() -> None:
    made: list[int] = []

    def items(stopped: Event) -> Iterator[int]:
        for number in count():
            made.append(number)
            yield number

    ahead = Ahead(items)
    for number in ahead:
        time.sleep(0.01)
        assert made[-1] <= number + 1
        if number == 5:
            break
    ahead.close()


def test_what_is_raised_in_the_thread_is_raised_where_the_item_is_asked_for() -> None:
    def items(stopped: Event) -> Iterator[int]:
        yield 1
        raise KeyError("two")

    ahead = Ahead(items)
    assert next(ahead) == 1
    with refuses(KeyError, "two"):
        next(ahead)
    ahead.close()


def test_closing_ends_an_item_that_is_being_made() -> None:
    def items(stopped: Event) -> Iterator[int]:
        yield 1
        while not stopped.is_set():
            time.sleep(0.001)

    ahead = Ahead(items)
    assert next(ahead) == 1
    ahead.close()
    assert not workers()
    assert list(ahead) == []


def test_waiting_and_working_are_measured() -> None:
    def items(stopped: Event) -> Iterator[int]:
        for number in range(3):
            time.sleep(0.05)
            yield number

    ahead = Ahead(items)
    for _ in ahead:
        time.sleep(0.1)
    ahead.close()
    assert ahead.worked >= 0.15
    assert ahead.waited > 0
