"""Files: whatever fails, an artefact is the new one or the former one, and a damaged file is one clear error."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

import open_clt
from open_clt import files
from open_clt.errors import CheckpointError, ConfigError, ResourceError
from open_clt.graphs.formats.networkx import read_graphml, to_networkx
from tests.faults.artefacts import ARTEFACTS, Artefact, save_in_circuit_tracers_layout, save_native, transcoder_facts
from tests.faults.interrupted import Faults, Killed, faults_until_success, kill_saves, save_over_foreign_files
from tests.graphs.hand_graph import hand_graph
from tests.refusals import refuses

resource = pytest.importorskip("resource")
WRITES = re.compile(
    r"\b(saving|writing|write_(bytes|json|rows|tensors|text|yaml)|savefig|save_file|to_csv|write_image|dump_stats)\("
    r"|open\(.*[\"'][wax]b?[\"']"
)
PACKAGE = Path(open_clt.__file__).parent


QUICK = ("transcoder", "graph", "circuit", "checkpoint", "unfinished dataset", "session of the explorer", "text")
"""Artefacts whose saves are killed in the default tests: one of each way to save."""


@pytest.fixture(params=ARTEFACTS)
def artefact(request: pytest.FixtureRequest) -> Artefact:
    return ARTEFACTS[request.param]


@pytest.fixture
def loaded_versions(artefact: Artefact, tmp_path: Path) -> list[object]:
    """The values that loading gives for version 1 and for version 2."""
    versions: list[object] = []
    for version in (1, 2):
        artefact.save(tmp_path / str(version), version)
        versions.append(artefact.load(tmp_path / str(version)))
    assert versions[0] != versions[1]
    return versions


def temporary_files(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob(".*") if path.name != files.MANIFEST]


def test_a_save_replaces_the_former_artefact_and_leaves_other_files_alone(
    artefact: Artefact, loaded_versions: list[object], tmp_path: Path
) -> None:
    directory = tmp_path / "saved"
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    ordinary_mode = stat.S_IMODE((directory / "notes.txt").stat().st_mode)
    for version in (1, 2, 1):
        artefact.save(directory, version)
        assert artefact.load(directory) == loaded_versions[version - 1]
    assert temporary_files(directory) == []
    assert (directory / "notes.txt").read_text() == "mine"
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.rglob("*") if path.is_file()} == {ordinary_mode}


def test_a_save_that_fails_leaves_the_former_artefact(
    artefact: Artefact, loaded_versions: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "saved"
    artefact.save(directory, 1)
    faults = Faults(monkeypatch, ("replace", "fsync"))

    def save_once(failing_call: int) -> bool:
        faults.arm(failing_call, OSError("no space left"), only_once=True)
        try:
            artefact.save(directory, 2)
        except OSError:
            faults.disarm()
            assert artefact.load(directory) == loaded_versions[0], f"call {failing_call} failed"
            assert temporary_files(directory) == [], f"call {failing_call} failed"
            return False
        faults.disarm()
        return True

    assert faults_until_success(save_once) >= 2
    assert artefact.load(directory) == loaded_versions[1]


def test_a_first_save_that_fails_leaves_nothing_to_load(
    artefact: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(monkeypatch, ("replace", "fsync"))

    def save_once(failing_call: int) -> bool:
        directory = tmp_path / str(failing_call)
        faults.arm(failing_call, OSError("no space left"), only_once=True)
        try:
            artefact.save(directory, 2)
        except OSError:
            faults.disarm()
            with pytest.raises(CheckpointError):
                artefact.load(directory)
            assert temporary_files(directory) == []
            return False
        faults.disarm()
        return True

    assert faults_until_success(save_once) >= 2


@pytest.mark.parametrize(
    "artefact",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ARTEFACTS],
    indirect=True,
)
def test_a_process_that_is_killed_leaves_the_former_artefact_or_the_new_one(artefact: Artefact, tmp_path: Path) -> None:
    tries = kill_saves(artefact, tmp_path)
    assert tries.number >= 2
    assert not tries.faults


def kill_after_renaming(monkeypatch: pytest.MonkeyPatch, name: str) -> Faults:
    """Kill the process once the former file ``name`` has its ``.old-`` name."""
    faults = Faults(monkeypatch, ("replace", "unlink"))
    guarded = os.replace

    def replace_and_die(source: Path, target: Path) -> None:
        guarded(source, target)
        if target.name == f".old-{name}":
            faults.arm(1, Killed(), only_once=False)

    monkeypatch.setattr(os, "replace", replace_and_die)
    return faults


@pytest.mark.parametrize("name", ["config.json", "transcoder.safetensors"])
def test_the_former_artefact_is_read_if_a_process_is_killed_between_two_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_native(tmp_path, 1)
    former = transcoder_facts(tmp_path)
    kill_after_renaming(monkeypatch, name)
    with pytest.raises(Killed):
        save_native(tmp_path, 2)
    assert not (tmp_path / name).exists()
    assert transcoder_facts(tmp_path) == former


def test_the_former_artefact_is_read_in_circuit_tracers_layout_if_a_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_in_circuit_tracers_layout(tmp_path, 1)
    former = transcoder_facts(tmp_path)
    kill_after_renaming(monkeypatch, "config.yaml")
    with pytest.raises(Killed):
        save_in_circuit_tracers_layout(tmp_path, 2)
    assert not (tmp_path / "config.yaml").exists()
    assert transcoder_facts(tmp_path) == former


DAMAGED_JSON = (
    b"",
    b"{",
    b"\xff\xfe\xff",
    b'{"a":' * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a": %d}' % 10**30,
    b'{"a": ' + b"9" * 10_000 + b"}",
    b"[1]",
)
WITH_JSON = [name for name, artefact in ARTEFACTS.items() if artefact.json]


@pytest.mark.parametrize("name", WITH_JSON)
def test_damaged_json_is_one_clear_error(name: str, tmp_path: Path) -> None:
    artefact = ARTEFACTS[name]
    artefact.save(tmp_path, 1)
    path = tmp_path / str(artefact.json)
    for content in DAMAGED_JSON:
        path.write_bytes(content)
        with refuses(CheckpointError, path) as raised:
            artefact.load(tmp_path)
        assert "\n" not in str(raised.value)
    path.unlink()
    with refuses(CheckpointError, path):
        artefact.load(tmp_path)


@pytest.mark.parametrize("name", ["transcoder", "graph", "report", "checkpoint"])
@pytest.mark.parametrize("change", [{"format": "other"}, {"format_version": 99}, {"format_version": "2"}], ids=str)
def test_a_file_of_another_format_or_version_is_one_clear_error(
    name: str, change: dict[str, object], tmp_path: Path
) -> None:
    artefact = ARTEFACTS[name]
    artefact.save(tmp_path, 1)
    path = tmp_path / str(artefact.json)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with refuses(CheckpointError, path):
        artefact.load(tmp_path)


@pytest.mark.parametrize("name", ["transcoder", "transcoder for circuit-tracer", "graph", "checkpoint"])
def test_a_truncated_or_missing_tensor_file_is_one_clear_error(name: str, tmp_path: Path) -> None:
    artefact = ARTEFACTS[name]
    artefact.save(tmp_path, 1)
    path = next(iter(sorted(tmp_path.rglob("*.safetensors"))))
    content = path.read_bytes()
    for damaged in (content[:-1], content[:20], b"", b"\xff" * 40):
        path.write_bytes(damaged)
        with refuses(CheckpointError, path):
            artefact.load(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError):
        artefact.load(tmp_path)


def test_graphml_with_an_integer_too_large_for_a_tensor_is_refused(tmp_path: Path) -> None:
    graph = to_networkx(hand_graph())
    next(iter(graph.nodes.values()))["index"] = 10**30
    nx.write_graphml(graph, tmp_path / "large.graphml")
    with pytest.raises(CheckpointError):
        read_graphml(tmp_path / "large.graphml")


def test_no_kind_of_artefact_replaces_a_file_where_its_directory_goes(artefact: Artefact, tmp_path: Path) -> None:
    blocking = files.write_text(tmp_path / "model.pt", "precious")
    for path in (blocking, blocking / "below"):
        with refuses(ConfigError, blocking):
            artefact.save(path, 1)
    assert blocking.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [blocking]


@contextmanager
def full_disk() -> Iterator[None]:
    """The system refuses files of more than 8 bytes, as it refuses every file on a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@contextmanager
def read_only_disk() -> Iterator[None]:
    """The system refuses to create files, although the permissions of directories allow it."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("touch", "write_bytes"):
            patch.setattr(Path, name, refuse)
        yield


@pytest.mark.parametrize("bad_disk", [full_disk, read_only_disk])
def test_an_artefact_that_cannot_be_written_is_one_sentence_and_leaves_the_former_one(
    bad_disk: Callable[[], Any], artefact: Artefact, tmp_path: Path
) -> None:
    artefact.save(tmp_path, 1)
    former = artefact.load(tmp_path)
    with bad_disk(), refuses(ResourceError, Path(*tmp_path.parts[:3])) as raised:
        artefact.save(tmp_path, 2)
    assert ".part-" not in str(raised.value)
    assert artefact.load(tmp_path) == former
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("name", [name for name, artefact in ARTEFACTS.items() if not artefact.named_by_user])
def test_a_save_names_a_file_of_another_program_and_leaves_it(name: str, tmp_path: Path) -> None:
    tries = save_over_foreign_files(ARTEFACTS[name], tmp_path)
    assert tries.number >= 1
    assert not tries.faults


def test_every_module_that_writes_files_is_in_the_table() -> None:
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    modules["practice_run"] = PACKAGE.parent / "practice_run.py"
    writing = {name for name, path in modules.items() if WRITES.search(path.read_text())}
    in_the_table = {module for artefact in ARTEFACTS.values() for module in artefact.modules}
    assert {name for name in writing if not name.startswith("files.")} == in_the_table
