"""While a process saves an artefact again and again, every read gives one of its versions, and never an error."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.artefacts import ARTEFACTS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")]
SAVES = 100


@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_read_beside_saves_gives_the_former_version_or_the_new_one(name: str, tmp_path: Path) -> None:
    artefact = ARTEFACTS[name]
    versions: list[object] = []
    for version in (1, 2):
        artefact.save(tmp_path / str(version), version)
        versions.append(artefact.load(tmp_path / str(version)))
    directory = tmp_path / "saved"
    artefact.save(directory, 1)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for number in range(SAVES):
                artefact.save(directory, number % 2 + 1)
            status = 0
        finally:
            os._exit(status)
    reads, ended = 0, 0
    try:
        while not ended:
            assert artefact.load(directory) in versions
            reads += 1
            ended, status = os.waitpid(child, os.WNOHANG)
    finally:
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert status == 0
    assert reads
