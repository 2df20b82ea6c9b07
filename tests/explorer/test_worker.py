"""The worker: one job after another, replaced and cancelled jobs, progress, and errors as sentences."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from open_clt.errors import ConfigError
from open_clt.explorer.worker import Job, Worker
from open_clt.progress import report_progress

_LONG = 30.0
"""Seconds after which a test gives up."""


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


class _Loop:
    """Work that reports its progress until it is let go or cancelled."""

    def __init__(self) -> None:
        self.started, self.let_go = threading.Event(), threading.Event()

    def __call__(self) -> str:
        done = 0
        while not self.let_go.is_set():
            report_progress("counting", done, 100)
            self.started.set()
            done += 1
            self.let_go.wait(0.001)
        return "counted"


def _end(job: Job) -> Job:
    assert job.finished.wait(_LONG)
    return job


def test_a_job_has_a_result(worker: Worker) -> None:
    job = _end(worker.submit("add", lambda: 1 + 1))
    assert (job.state, job.result) == ("done", 2)
    assert worker.job(job.number) is job


def test_a_job_says_what_it_has_reached(worker: Worker) -> None:
    loop = _Loop()
    job = worker.submit("loop", loop)
    assert loop.started.wait(_LONG)
    status = job.status()
    assert (status["state"], status["phase"], status["total"]) == ("working", "counting", 100)
    assert worker.running() == [job]
    loop.let_go.set()
    assert _end(job).result == "counted"
    assert worker.running() == []


def test_a_new_job_replaces_the_running_one_and_the_waiting_one_of_its_kind(worker: Worker) -> None:
    first, second = _Loop(), _Loop()
    running = worker.submit("trace", first)
    assert first.started.wait(_LONG)
    waiting = worker.submit("trace", second)
    last = worker.submit("trace", lambda: "last")
    assert _end(running).state == "cancelled"
    assert _end(waiting).state == "cancelled"
    assert not second.started.is_set()
    assert _end(last).result == "last"


def test_a_job_of_another_kind_waits_for_its_turn(worker: Worker) -> None:
    loop = _Loop()
    first = worker.submit("trace", loop)
    assert loop.started.wait(_LONG)
    other = worker.submit("view", lambda: "seen")
    assert other.state == "waiting"
    loop.let_go.set()
    assert _end(first).state == "done"
    assert _end(other).result == "seen"


def test_a_cancelled_job_ends_at_its_next_report_and_the_worker_goes_on(worker: Worker) -> None:
    loop = _Loop()
    job = worker.submit("trace", loop)
    assert loop.started.wait(_LONG)
    worker.cancel(job.number)
    assert _end(job).state == "cancelled"
    assert _end(worker.submit("trace", lambda: "next")).result == "next"


def _mistake() -> None:
    raise ConfigError("The prompt is empty; type a text.")


def _bug() -> None:
    raise ZeroDivisionError("secret")


@pytest.mark.parametrize(("work", "said"), [(_mistake, "The prompt is empty"), (_bug, "unexpected error")])
def test_an_error_is_a_sentence_and_the_worker_goes_on(
    worker: Worker, caplog: pytest.LogCaptureFixture, work: Callable[[], None], said: str
) -> None:
    job = _end(worker.submit("trace", work))
    assert job.state == "failed"
    assert said in job.error
    assert "secret" not in job.error
    if work is _bug:
        number = job.error.split("number ")[1].split(")")[0]
        assert number in caplog.text
        assert "ZeroDivisionError" in caplog.text
    assert _end(worker.submit("trace", lambda: 1)).result == 1


def test_a_worker_that_is_closed_leaves_no_thread() -> None:
    before, worker, loop = threading.active_count(), Worker(), _Loop()
    job = worker.submit("trace", loop)
    assert loop.started.wait(_LONG)
    worker.close()
    assert job.state == "cancelled"
    assert threading.active_count() == before


def test_results_of_long_ago_are_forgotten(worker: Worker) -> None:
    jobs = [_end(worker.submit("add", lambda: 1)) for _ in range(80)]
    assert worker.job(jobs[0].number) is None
    assert worker.job(jobs[-1].number) is jobs[-1]
