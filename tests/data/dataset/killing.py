"""Jobs that write a dataset and are killed at random points (SIGKILL), each in a child process.

A point is a call of a Python function, anywhere in the job, or the moment before or after a renaming of a file: a
renaming ends every write. Points are counted and not timed, so a seed names the same point again.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

from open_clt.data.dataset.reader import ActivationDataset
from open_clt.errors import CheckpointError
from tests.data.dataset.small_dataset import contents

Job = Callable[[Path], object]
"""Function that writes a dataset to a directory, or goes on with one that was stopped."""


class Point(NamedTuple):
    """A point of a job."""

    kind: Literal["call", "before a renaming", "after a renaming"]
    number: int


class Counts(NamedTuple):
    """Numbers of calls and of renamings of a job."""

    calls: int
    renamings: int


def check_killed_jobs(job: Job, folder: Path, seeds: range) -> None:
    """Kill a job up to three times for each seed, and compare its end with that of a job that is not killed."""
    counts = _in_child(job, folder / "whole", None)
    assert counts is not None
    whole = contents(folder / "whole")
    for seed in seeds:
        random, directory = Random(seed), folder / f"run {seed}"
        for parts in (1, 2, 2):
            point = _random_point(random, counts, parts)
            ended = _in_child(job, directory, point)
            assert ended is None or parts > 1, f"seed {seed} did not reach {point}"
            check_refused_or_whole(directory, whole)
            if ended is not None:
                break
        else:
            job(directory)
        assert contents(directory) == whole, seed
        ActivationDataset(directory).verify()


def check_refused_or_whole(directory: Path, whole: dict[str, bytes]) -> None:
    """A directory in which a job was killed is either refused, or has all files of the whole dataset."""
    try:
        ActivationDataset(directory).verify()
    except CheckpointError:
        return
    assert {name: contents(directory)[name] for name in whole} == whole


def _random_point(random: Random, counts: Counts, parts: int) -> Point:
    """A point in the first of so many parts of a job."""
    if random.random() < 0.5:
        calls = counts.calls * 95 // 100  # caches of Python and libraries change their number by a few
        return Point("call", random.randint(1, calls // parts))
    kind: Literal["before a renaming", "after a renaming"] = random.choice(("before a renaming", "after a renaming"))
    return Point(kind, random.randint(1, counts.renamings // parts))


def _in_child(job: Job, directory: Path, point: Point | None) -> Counts | None:
    """Run a job in a child process, and return its counts, or None if it was killed at the point."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, ",".join(map(str, counted(job, directory, point))).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        counts = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert counts, "the job raised an exception"
    return Counts(*map(int, counts.split(",")))


def counted(job: Job, directory: Path, point: Point | None) -> Counts:
    """Run a job in this process, which ends at the point."""
    counts = {"call": 0, "before a renaming": 0, "after a renaming": 0}
    replace = os.replace

    def reach(kind: Literal["call", "before a renaming", "after a renaming"]) -> None:
        counts[kind] += 1
        if point == (kind, counts[kind]):
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly_replace(*arguments: Any) -> None:
        reach("before a renaming")
        replace(*arguments)
        reach("after a renaming")

    os.replace = deadly_replace  # pyright: ignore[reportAttributeAccessIssue]
    sys.setprofile(lambda _, event, __: reach("call") if event == "call" else None)
    try:
        job(directory)
    finally:
        sys.setprofile(None)
    return Counts(counts["call"], counts["after a renaming"])
