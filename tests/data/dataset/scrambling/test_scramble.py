"""A scrambled dataset has the same rows in an order of the seed alone, also if the scramble was killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from open_clt import files
from open_clt.data.dataset import read, scramble
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.dataset.scrambling import scramble as scramble_module
from open_clt.data.dataset.scrambling.keys import keys
from open_clt.data.harvest import MemoryStore
from open_clt.errors import CheckpointError, ConfigError, ResourceError
from tests.data.dataset.killing import check_killed_jobs, check_refused_or_whole
from tests.data.dataset.small_dataset import all_of, contents, harvested, write
from tests.faults.interrupted import Faults, Killed, faults_until_success
from tests.refusals import refuses

IN_RUNS = 25 * harvested().bytes_per_token
"""A memory limit with which a dataset of 70 tokens is sorted in several runs."""


def stored_rows(directory: Path) -> list[bytes]:
    """The bytes of every token of a dataset, as they are stored, in order."""
    rows: list[bytes] = []
    for shard in ActivationDataset(directory).manifest.shards:
        tensors = files.read_tensors(directory / shard.file)
        for row in range(shard.tokens):
            rows.append(
                b"".join(tensors[name][row].contiguous().view(-1).numpy().tobytes() for name in sorted(tensors))
            )
    return rows


def checksum(directory: Path) -> int:
    """A checksum of a dataset that does not depend on the order of its rows."""
    return sum(int.from_bytes(hashlib.sha256(row).digest()) for row in stored_rows(directory)) % (1 << 256)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_rows_are_the_same_in_another_order(dtype: str, tmp_path: Path) -> None:
    source = write(tmp_path / "source", dtype=dtype)
    manifest = scramble(source, tmp_path / "out", seed=4)
    assert checksum(tmp_path / "out") == checksum(source)
    before, after = stored_rows(source), stored_rows(tmp_path / "out")
    assert after == [before[number] for number in keys(4, 0, 70).argsort().tolist()]
    assert after != before
    first_tokens = all_of(MemoryStore(list(read(tmp_path / "out", 10, order="sequence")))).tokens[:10]
    assert len({int(token) // 30 for token in first_tokens}) > 1  # three shards were mixed by the harvest
    dataset = ActivationDataset(tmp_path / "out")
    dataset.verify()
    assert dataset.manifest == manifest
    assert (tmp_path / "out" / "norm_stats.json").read_bytes() == (source / "norm_stats.json").read_bytes()
    assert sorted(contents(tmp_path / "out")) == sorted(contents(source))
    assert manifest.harvested == ActivationDataset(source).manifest.harvested
    assert manifest.scrambled is not None
    assert manifest.scrambled.seed == 4
    assert manifest.scrambled.manifest_sha256 == hashlib.sha256((source / "manifest.json").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("shards", "shard_tokens", "tokens_in_memory"),
    [((10, 3), None, 100), ((15, 2), 7, 100), ((30, 1), 1000, 100), ((10, 3), 7, 25), ((30, 1), 60, 60)],
    ids=str,
)
def test_the_order_depends_on_the_seed_alone(
    shards: tuple[int, int],
    shard_tokens: int | None,
    tokens_in_memory: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It depends neither on the sizes of shards, here or in the source, nor on the memory."""
    monkeypatch.setattr(scramble_module, "_PLACES_AT_ONCE", 20)
    monkeypatch.setattr(scramble_module, "_CHUNK", 4)
    source = write(tmp_path / "source", shard_tokens=shards[0], shards_mixed=shards[1])
    before = stored_rows(write(tmp_path / "same order"))
    assert stored_rows(source) == before
    limit = tokens_in_memory * harvested().bytes_per_token
    scramble(source, tmp_path / "out", seed=9, shard_tokens=shard_tokens, memory_limit=limit)
    assert stored_rows(tmp_path / "out") == [before[number] for number in keys(9, 0, 70).argsort().tolist()]
    sizes = [shard.tokens for shard in ActivationDataset(tmp_path / "out").manifest.shards]
    size = min(70, shard_tokens or shards[0])
    assert sizes == [size] * (70 // size) + [70 % size] * (70 % size > 0)


def scramble_in_runs(source: Path, output: Path) -> None:
    scramble(source, output, seed=2, memory_limit=IN_RUNS)


@pytest.mark.slow
def test_a_scramble_that_was_stopped_at_any_write_is_finished_as_if_it_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source", tokens=30)
    scramble_in_runs(source, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    faults = Faults(monkeypatch, ("replace", "unlink", "rmdir", "fsync"))
    held: set[int] = set()

    def scramble_once(failing_call: int) -> bool:
        directory = tmp_path / f"killed {failing_call}"
        faults.arm(failing_call, Killed(), only_once=False)
        try:
            scramble_in_runs(source, directory)
        except Killed:
            faults.disarm()
            check_refused_or_whole(directory, whole)
            held.add(len(list(directory.glob("*.safetensors"))))
            scramble_in_runs(source, directory)
            assert contents(directory) == whole, f"killed at call {failing_call}"
            return False
        faults.disarm()
        return True

    assert faults_until_success(scramble_once) > 15
    assert held == {0, 1, 2, 3, 4, 5}  # of two runs and three shards


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize(
    "seeds",
    [
        range(1),
        pytest.param(range(1, 6), marks=pytest.mark.slow),
        pytest.param(range(6, 36), marks=pytest.mark.soak),
    ],
    ids=str,
)
def test_killed_scrambles_end_as_if_they_had_not_been_killed(seeds: range, tmp_path: Path) -> None:
    source = write(tmp_path / "source")
    check_killed_jobs(lambda directory: scramble_in_runs(source, directory), tmp_path, seeds)


def test_a_finished_scramble_stays_as_it_is(tmp_path: Path) -> None:
    source = write(tmp_path / "source")
    manifest = scramble(source, tmp_path / "out", seed=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert scramble(source, tmp_path / "out", seed=1) == manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    with refuses(ConfigError, tmp_path / "out"):
        write(tmp_path / "out")  # a harvest with the settings of the source


def test_other_settings_and_other_directories_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "source")
    scramble(source, tmp_path / "out", seed=1)
    before = contents(tmp_path / "out")
    other = write(tmp_path / "other", seed=6)
    calls: list[tuple[Path, dict[str, Any], object]] = [
        (source, {"seed": 2}, "seed"),
        (source, {"seed": 1, "shard_tokens": 5}, "shard_tokens"),
        (other, {"seed": 1}, tmp_path / "out"),
    ]
    for chosen, settings, named in calls:
        with refuses(ConfigError, tmp_path / "out", named):
            scramble(chosen, tmp_path / "out", **settings)
    assert contents(tmp_path / "out") == before
    with refuses(ConfigError, source):
        scramble(source, source)
    theirs = files.write_text(tmp_path / "theirs" / "run-00000.safetensors", "mine")
    with refuses(ConfigError, theirs.parent, theirs.name):
        scramble(source, theirs.parent)
    with refuses(CheckpointError, tmp_path / "missing"):
        scramble(tmp_path / "missing", tmp_path / "new")
    with refuses(ConfigError, "seed"):
        scramble(source, tmp_path / "new", seed=-1)


@pytest.mark.parametrize("memory_limit", [None, IN_RUNS])
def test_a_damaged_source_is_not_copied(memory_limit: int | None, tmp_path: Path) -> None:
    source = write(tmp_path / "source")
    path = source / "shard-00003.safetensors"
    content = bytearray(path.read_bytes())
    content[-200] ^= 1  # the number is another one, but a legal one
    path.write_bytes(content)
    with refuses(CheckpointError, path):
        scramble(source, tmp_path / "out", memory_limit=memory_limit)
    with refuses(CheckpointError, tmp_path / "out"):
        ActivationDataset(tmp_path / "out")


def test_a_disk_or_a_memory_that_is_too_small_is_found_before_the_first_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, per_token = write(tmp_path / "source"), harvested().bytes_per_token
    with refuses(ResourceError, f"{10 * per_token:,}"):
        scramble(source, tmp_path / "out", memory_limit=9 * per_token)
    free = SimpleNamespace(free=2 * 70 * per_token - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with refuses(ResourceError, tmp_path / "out", f"{2 * 70 * per_token:,}"):
        scramble_in_runs(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    scramble(source, tmp_path / "out")  # without runs, it is half as much


def test_a_damaged_state_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "source")
    with monkeypatch.context() as patch:
        patch.setattr(scramble_module, "write_manifest", None)
        with pytest.raises(TypeError):
            scramble_in_runs(source, tmp_path / "out")
    path = tmp_path / "out" / "scrambling.json"
    whole = json.loads(path.read_text())
    for change_to in ({"run_tokens": 0}, {"runs": whole["runs"][1:]}, {"format_version": 2}, {"scrambled": None}):
        path.write_text(json.dumps({**whole, **change_to}))
        with refuses(CheckpointError, path):
            scramble_in_runs(source, tmp_path / "out")
    path.write_text(json.dumps(whole))
    scramble_in_runs(source, tmp_path / "out")
    assert checksum(tmp_path / "out") == checksum(source)
