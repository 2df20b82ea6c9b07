"""Prefetching: the next item of an iterator, made in a thread while the current item is used.

Training uses it to run the language model on the next texts while the transcoder trains. The items and their order are
those of the iterator. At most one item is made before it is asked for. An exception in the thread is raised where its
item is asked for.
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
    """An iterator over the items of ``make(stopped)`` that makes one item ahead in a thread.

    ``close`` sets the event ``stopped`` and waits for the thread, so the iterator must end soon after ``stopped`` is
    set, even in the middle of an item.
    """

    def __init__(self, make: Callable[[Event], Iterator[Item]]) -> None:
        self.worked = 0.0
        """Seconds that the thread spent making items."""
        self.waited = 0.0
        """Seconds that the caller spent waiting for items."""
        self._stopped = Event()
        self._items = make(self._stopped)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
        self._next: Future[tuple[Item] | None] = self._worker.submit(self._make_item)

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._stopped.is_set():
            raise StopIteration
        started = time.perf_counter()
        try:
            boxed = self._next.result()
        finally:
            self.waited += time.perf_counter() - started
        if boxed is None:
            raise StopIteration
        self._next = self._worker.submit(self._make_item)
        return boxed[0]

    def close(self) -> None:
        """Stop the thread, and wait until it has ended."""
        self._stopped.set()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _make_item(self) -> tuple[Item] | None:
        """Return the next item in a tuple of length one, or None after the last item."""
        started = time.perf_counter()
        try:
            return (next(self._items),)
        except StopIteration:
            return None
        finally:
            self.worked += time.perf_counter() - started
