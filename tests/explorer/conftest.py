"""An explorer of the embedded model, which the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from open_clt.explorer.explorer import Explorer
from open_clt.explorer.models import Source
from open_clt.explorer.worker import Job

PROMPT = "The capital of the state containing Dallas is"


@pytest.fixture(scope="session")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    """An explorer of the embedded model that has loaded it."""
    made = Explorer(Source(), budget=60, cache=tmp_path_factory.mktemp("explorer"))
    done(made.worker.submit("wait", made.wait_for_models))
    yield made
    made.close()


@pytest.fixture(scope="session")
def cache_of(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty directory for traces."""
    return tmp_path_factory.mktemp("traces")


def done(job: Job) -> Job:
    """Wait until a job has ended, and check that it did its work."""
    assert job.finished.wait(120)
    assert job.state == "done", job.error
    return job
