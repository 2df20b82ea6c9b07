"""Interrupted saves: every call that changes files is where a save fails, or where its process is killed, once.

``kill_saves`` and ``save_over_foreign_files`` count their tries, for the tests and for the table of
``python -m tests.faults``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from open_clt import files
from open_clt.errors import OpenCLTError
from tests.faults.artefacts import Artefact


@dataclass
class Tries:
    """The number of tries, and a description of each fault."""

    number: int = 0
    faults: list[str] = field(default_factory=list[str])


class Killed(BaseException):
    """Simulates a killed process: every later call that would change files raises this too."""


class Faults:
    """Counts calls of functions of ``os``, and makes one of them fail, or that one and all later ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
        self.calls, self.failing_call, self.error, self.only_once = 0, 0, OSError("no space left"), True
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # flushing takes time and changes nothing here
        for name in names:
            monkeypatch.setattr(os, name, self._guarded(getattr(os, name)))

    def arm(self, failing_call: int, error: BaseException, *, only_once: bool) -> None:
        self.calls, self.failing_call, self.error, self.only_once = 0, failing_call, error, only_once

    def disarm(self) -> None:
        self.failing_call = 0

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            is_later = self.calls > self.failing_call and not self.only_once
            if self.failing_call and (self.calls == self.failing_call or is_later):
                raise self.error
            return function(*arguments, **options)

        return call


def faults_until_success(save_once: Callable[[int], bool]) -> int:
    """Let the first call fail, then the second, and so on until a save succeeds; return how many saves failed."""
    failing_call = 1
    while not save_once(failing_call):
        failing_call += 1
    return failing_call - 1


def kill_saves(artefact: Artefact, folder: Path) -> Tries:
    """Kill a process at each call that changes files, while it replaces version 1 of an artefact by version 2.

    What is read afterwards must be one of the versions, whole, and a further save must succeed.
    """
    versions: list[object] = []
    for version in (1, 2):
        artefact.save(folder / str(version), version)
        versions.append(artefact.load(folder / str(version)))
    tries = Tries()
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch, ("replace", "unlink", "rmdir", "fsync"))

        def save_once(failing_call: int) -> bool:
            directory = folder / f"killed {failing_call}"
            faults.disarm()
            artefact.save(directory, 1)
            faults.arm(failing_call, Killed(), only_once=False)
            try:
                artefact.save(directory, 2)
            except Killed:
                faults.disarm()
                _cut_unfinished_files(directory)
                tries.faults += _problems_after(artefact, directory, versions, f"killed at call {failing_call}")
                return False
            faults.disarm()
            return True

        tries.number = faults_until_success(save_once)
    return tries


def _problems_after(artefact: Artefact, directory: Path, versions: list[object], when: str) -> list[str]:
    """What is wrong with an artefact whose save was killed."""
    problems: list[str] = []
    try:
        if artefact.load(directory) not in versions:
            problems.append(f"{when}: a mixture is read")
        artefact.save(directory, 2)
        if artefact.load(directory) != versions[1]:
            problems.append(f"{when}: the next save does not replace what is left")
    except OpenCLTError as error:
        problems.append(f"{when}: {error}")
    return problems


def _cut_unfinished_files(directory: Path) -> None:
    """Leave half of each file that has a temporary name, as if the process was killed while it wrote the file."""
    for path in directory.rglob(".part-*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save_over_foreign_files(artefact: Artefact, folder: Path) -> Tries:
    """Save an artefact where a file of another program has the name of one of its files, for each of its files.

    The save must name that file, leave it, and write nothing.
    """
    probe = folder / "probe"
    artefact.save(probe, 1)
    written = sorted(path.relative_to(probe) for path in probe.rglob("*") if path.is_file())
    tries = Tries()
    for path in written:
        if path.name == files.MANIFEST:
            continue
        tries.number += 1
        directory = folder / f"foreign {tries.number}"
        foreign = files.write_text(directory / path, '{"mine": 1}')
        if path.with_name(files.MANIFEST) in written:
            files.list_names(foreign.parent, ["something else"])
        try:
            artefact.save(directory, 1)
            tries.faults.append(f"{path} of another program is in the way, and the save does not say so")
        except OpenCLTError as error:
            if str(foreign) not in str(error):
                tries.faults.append(f"{path} of another program is in the way, but the error is: {error}")
        if foreign.read_text() != '{"mine": 1}':
            tries.faults.append(f"{path} of another program is lost")
        left = [other for other in directory.rglob("*") if other.is_file() and other.name != files.MANIFEST]
        if left != [foreign]:
            tries.faults.append(f"{path} of another program is in the way, and yet something is written: {left}")
    return tries
