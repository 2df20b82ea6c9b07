"""The worker: one thread that does all work on the model, one job after another, so that pages never wait for it.

A job has a kind, such as ``trace``. A new job replaces an older one of its kind: a running one is cancelled at its next
report of progress, and a waiting one is forgotten. At most one job of each kind waits.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, final

from open_clt.errors import OpenCLTError
from open_clt.progress import listening
from open_clt.short_repr import short_repr

logger = logging.getLogger(__name__)

State: TypeAlias = Literal["waiting", "working", "done", "failed", "cancelled"]
_MOST_JOBS = 64
"""Number of jobs whose results are kept until a page fetches them."""


class Cancelled(Exception):
    """The job was cancelled; raised where the job reports its progress."""


@final
@dataclass(eq=False)
class Job:
    """One piece of work, what it has reached, and its result."""

    number: int
    kind: str
    work: Callable[[], Any] = field(repr=False)
    state: State = "waiting"
    phase: str = ""
    done: int = 0
    total: int = 0
    started: float = 0.0
    seconds: float = 0.0
    result: Any = None
    error: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event, repr=False)
    finished: threading.Event = field(default_factory=threading.Event, repr=False)

    __repr__ = short_repr

    def status(self) -> dict[str, Any]:
        """What a page shows of the job, as plain values."""
        seconds = time.monotonic() - self.started if self.state == "working" else self.seconds
        names = ("number", "kind", "state", "phase", "done", "total", "error")
        return {name: getattr(self, name) for name in names} | {"seconds": round(seconds, 1)}


@final
class Worker:
    """A thread that runs jobs; ``close`` ends it."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[int, Job] = OrderedDict()
        self._waiting: list[Job] = []
        self._current: Job | None = None
        self._changed = threading.Condition()
        self._closing = False
        context = copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._run), name="explorer worker", daemon=True)
        self._thread.start()

    def submit(self, kind: str, work: Callable[[], Any]) -> Job:
        """Add a job and return it; an older job of the same kind is cancelled."""
        with self._changed:
            job = Job(1 + max(self._jobs, default=0), kind, work)
            self._jobs[job.number] = job
            for older in [*self._waiting, *([self._current] if self._current else [])]:
                if older.kind == kind:
                    self._cancel(older)
            self._waiting.append(job)
            self._forget()
            self._changed.notify_all()
        return job

    def job(self, number: int) -> Job | None:
        """The job with a number; None if there was none, or if it ended long ago."""
        return self._jobs.get(number)

    def running(self) -> list[Job]:
        """The jobs that have not ended, in the order in which they run."""
        with self._changed:
            return [*([self._current] if self._current else []), *self._waiting]

    def cancel(self, number: int) -> None:
        """Cancel a job: at once if it waits, at its next report of progress if it runs."""
        with self._changed:
            job = self._jobs.get(number)
            if job is not None:
                self._cancel(job)

    def close(self, wait: float | None = None) -> None:
        """Cancel all jobs and wait until the thread has ended, or this number of seconds."""
        with self._changed:
            self._closing = True
            for job in [*self._waiting, *([self._current] if self._current else [])]:
                self._cancel(job)
            self._changed.notify_all()
        self._thread.join(wait)

    def _cancel(self, job: Job) -> None:
        job.cancelled.set()
        if job in self._waiting:
            self._waiting.remove(job)
            self._end(job, "cancelled")

    def _end(self, job: Job, state: State) -> None:
        job.seconds = time.monotonic() - job.started if job.started else 0.0
        job.state = state
        job.work = _nothing  # what the work refers to can be freed
        job.finished.set()

    def _forget(self) -> None:
        """Forget the oldest jobs that have ended."""
        ended = [number for number, job in self._jobs.items() if job.finished.is_set()]
        for number in ended[: max(0, len(self._jobs) - _MOST_JOBS)]:
            del self._jobs[number]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._current = None
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                job = self._current = self._waiting.pop(0)
                job.state, job.started = "working", time.monotonic()
            self._do(job)

    def _do(self, job: Job) -> None:
        def heard(phase: str, done: int, total: int) -> None:
            if job.cancelled.is_set():
                raise Cancelled
            job.phase, job.done, job.total = phase, done, total

        state: State = "failed"
        try:
            with listening(heard):
                job.result = job.work()
            state = "cancelled" if job.cancelled.is_set() else "done"
        except Cancelled:
            state = "cancelled"
        except OpenCLTError as error:
            job.error = str(error)
        except Exception:  # noqa: BLE001  (the thread goes on; the log has the traceback)
            job.error = unexpected()
        finally:
            self._end(job, state)


def unexpected() -> str:
    """Log the exception that is being handled, and return the sentence that a page shows of it."""
    number = secrets.token_hex(3)
    logger.exception("error %s in the explorer", number)
    return f"An unexpected error occurred (number {number}); the program's log has its details."


def _nothing() -> None:
    """The work of a job that has ended."""
