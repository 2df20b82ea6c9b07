"""Work ahead: while one item of an iterator is used, the next one is made, in a thread of its own.

It is how the language model runs while a transcoder trains. Order and items are those of the iterator; at most one item
is made before it is asked for; what goes wrong in the thread is raised where the item is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Generic, TypeVar, final

Item = TypeVar("Item")


@final
class Ahead(Generic[Item]):
    """Iterates over ``make(stopped)``, one item ahead.

    ``close`` ends it, also between two items: the iterator is expected to end soon after ``stopped`` is set.
    """

    def __init__(self, make: Callable[[Event], Iterator[Item]]) -> None:
        self.worked = 0.0
        """Seconds that the thread has worked."""
        self.waited = 0.0
        """Seconds that were spent waiting for it."""
        self._stopped = Event()
        self._items = make(self._stopped)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
        self._next: Future[tuple[Item] | None] = self._worker.submit(self._work)

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._stopped.is_set():
            raise StopIteration
        started = time.perf_counter()
        try:
            made = self._next.result()
        finally:
            self.waited += time.perf_counter() - started
        if made is None:
            raise StopIteration
        self._next = self._worker.submit(self._work)
        return made[0]

    def close(self) -> None:
        """Stop the thread, and wait until it has."""
        self._stopped.set()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _work(self) -> tuple[Item] | None:
        """The next item in a tuple of one, or None after the last."""
        started = time.perf_counter()
        try:
            return (next(self._items),)
        except StopIteration:
            return None
        finally:
            self.worked += time.perf_counter() - started
