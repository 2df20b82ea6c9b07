"""Prefetching changes when items are made, but not which items are made, nor their order."""

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


def test_items_come_in_order_and_end_where_the_iterator_ends() -> None:
    ahead = Ahead(lambda stopped: iter(range(20)))
    assert list(ahead) == list(range(20))
    assert list(ahead) == []
    ahead.close()
    assert not workers()


def test_at_most_one_item_is_made_ahead() -> None:
    made: list[int] = []

    def items(stopped: Event) -> Iterator[int]:
        for item in count():
            made.append(item)
            yield item

    ahead = Ahead(items)
    for item in ahead:
        time.sleep(0.01)
        assert made[-1] <= item + 1
        if item == 5:
            break
    ahead.close()


def test_an_exception_in_the_thread_is_raised_where_the_item_is_asked_for() -> None:
    def items(stopped: Event) -> Iterator[int]:
        yield 1
        raise KeyError("two")

    ahead = Ahead(items)
    assert next(ahead) == 1
    with refuses(KeyError, "two"):
        next(ahead)
    ahead.close()


def test_closing_stops_an_item_that_is_being_made() -> None:
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
        for item in range(3):
            time.sleep(0.05)
            yield item

    ahead = Ahead(items)
    for _ in ahead:
        time.sleep(0.1)
    ahead.close()
    assert ahead.worked >= 0.15
    assert ahead.waited > 0
