"""Several processes write the dataset of one process, also if any of them was killed, and never a wrong one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import distributed

from open_clt.data.contexts import Place
from open_clt.data.dataset.from_model import harvest_settings, store_of
from open_clt.data.dataset.manifest import Harvested, HarvestedText, shard_name
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.dataset.unfinished import (
    UnfinishedDataset,
    begun_dataset,
    check_place,
    unfinished_processes,
    write_unfinished,
)
from open_clt.data.dataset.writer import write_dataset
from open_clt.data.harvest import ActivationStore, MemoryStore
from open_clt.errors import CheckpointError, ConfigError, OpenCLTError
from open_clt.language.language_model import LanguageModel
from open_clt.processes import Processes
from tests.data.dataset.killing import Point, counted
from tests.data.dataset.parts import shards_of, statistics_of
from tests.data.dataset.small_dataset import all_of, contents, harvested, store, write
from tests.refusals import refuses
from tests.tiny_models import TEXTS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")

SETTINGS = harvested(shards_mixed=2)
"""Settings of a dataset of four blocks, of which the last one has a single shard."""
Stores = Callable[[Processes], ActivationStore]
"""Function that makes the store of a process."""


def the_same(_: Processes) -> MemoryStore:
    return store()


def write_in_processes(
    directory: Path,
    stores: Stores = the_same,
    settings: Harvested = SETTINGS,
    *,
    count: int = 2,
    deaths: Mapping[int, Point] = MappingProxyType({}),
) -> list[str]:
    """Write a dataset in processes of which some are killed; return how each ended: "", an error, or "killed"."""
    directory.parent.mkdir(exist_ok=True)
    meeting = directory.parent / f"meeting {len(list(directory.parent.iterdir()))}"
    children: list[tuple[int, int]] = []
    for rank in range(count):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            answer = "a bug"
            try:
                answer = _share(
                    directory, stores, settings, Processes(rank, count), meeting=meeting, death=deaths.get(rank)
                )
            finally:
                os.write(writing, answer.encode())
                os._exit(0)
        os.close(writing)
        children.append((child, reading))
    ends: list[str] = []
    for child, reading in children:
        with os.fdopen(reading) as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        ends.append("killed" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else answer)
    return ends


def _share(
    directory: Path, stores: Stores, settings: Harvested, processes: Processes, *, meeting: Path, death: Point | None
) -> str:
    """Write the share of this process, and return how it ended."""
    rendezvous: dict[str, Any] = {
        "init_method": f"file://{meeting}",
        "rank": processes.rank,
        "world_size": processes.count,
    }
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60), **rendezvous)
    try:
        counted(lambda out: write_dataset(stores(processes), settings, out, processes=processes), directory, death)
    except OpenCLTError as error:
        return f"{type(error).__name__}: {error}"
    except RuntimeError:  # what gloo raises when another process has ended
        return "lost"
    return ""


def check_same_rows(directory: Path, whole: Path) -> None:
    """A dataset has the shards of another one, bit for bit, and its statistics up to rounding."""
    ours, theirs = contents(directory), contents(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if name.startswith("shard") and ours[name] != theirs[name]] == []
    dataset = ActivationDataset(directory)
    dataset.verify()
    manifests = [replace(ActivationDataset(one).manifest, statistics_sha256="0" * 64) for one in (directory, whole)]
    assert manifests[0] == manifests[1]
    batch = all_of(MemoryStore(list(dataset)))
    for kind in ("inputs", "targets"):
        numbers = getattr(batch, kind).double()
        moments = getattr(dataset.statistics, kind)(use_first_position=True)
        torch.testing.assert_close(moments.mean, numbers.mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(moments.variance, numbers.var(0, correction=0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)])
def test_several_processes_write_the_shards_of_one(count: int, tmp_path: Path) -> None:
    """Five processes share four blocks, so one of them has none."""
    whole = write(tmp_path / "whole", shards_mixed=2)
    assert write_in_processes(tmp_path / "runs" / "out", count=count) == [""] * count
    check_same_rows(tmp_path / "runs" / "out", whole)
    before = contents(tmp_path / "runs" / "out")
    assert write_in_processes(tmp_path / "runs" / "out", count=count) == [""] * count  # nothing is left to do
    assert contents(tmp_path / "runs" / "out") == before


@pytest.mark.slow
def test_the_language_model_runs_on_own_contexts_only(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    text = HarvestedText(source="texts", context_length=12)
    hooks: dict[str, Any] = {"input_hook": "hook_resid_mid", "target_hook": "hook_mlp_out"}
    settings = harvest_settings(tiny_gpt2, text, tokens=900, shard_tokens=100, shards_mixed=2, **hooks)
    capture = tiny_gpt2.capture

    def of_model(processes: Processes) -> ActivationStore:
        def count_tokens(contexts: torch.Tensor, *others: str, **chosen: Any) -> object:
            with (tmp_path / f"tokens of {processes.rank}").open("a") as file:
                file.write(f"{contexts.numel()}\n")
            return capture(contexts, *others, **chosen)

        tiny_gpt2.capture = count_tokens  # pyright: ignore[reportAttributeAccessIssue]
        made = store_of(tiny_gpt2, lambda: TEXTS * 20, settings)
        made.batch_size = 4
        return made

    write_dataset(store_of(tiny_gpt2, lambda: TEXTS * 20, settings), settings, tmp_path / "whole")
    assert write_in_processes(tmp_path / "runs" / "out", of_model, settings) == ["", ""]
    check_same_rows(tmp_path / "runs" / "out", tmp_path / "whole")
    for rank, blocks in enumerate((3, 2)):
        tokens = sum(map(int, (tmp_path / f"tokens of {rank}").read_text().split()))
        assert tokens <= blocks * (200 + 2 * 48)  # at both ends of a block, a batch may be of two processes


def test_a_file_that_another_process_writes_meanwhile_is_not_taken_for_a_foreign_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = begun_dataset(tmp_path, SETTINGS, Processes(1, 2))
    assert isinstance(begun, UnfinishedDataset)

    def look_before_the_other_writes(directory: Path) -> list[Processes]:
        found = unfinished_processes(directory)
        write_unfinished(directory, begun)
        return found

    monkeypatch.setattr("open_clt.data.dataset.unfinished.unfinished_processes", look_before_the_other_writes)
    check_place(tmp_path)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "unfinished-1-of-2.json").unlink(missing_ok=True)
    with refuses(ConfigError, "notes.txt"):
        check_place(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_harvest_goes_on_after_any_process_was_killed(seed: int, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", shards_mixed=2)
    random, output = Random(seed), tmp_path / "runs" / "out"
    for rank in (seed % 2, random.randint(0, 1)):
        point = Point("after a renaming", random.randint(1, 4)) if seed < 4 else Point("call", random.randint(1, 5000))
        ends = write_in_processes(output, deaths={rank: point})
        if ends == ["", ""]:
            break
        assert ends[rank] == "killed"
        assert ends[1 - rank] in ("", "lost")  # the last barrier may be behind it
        if not (output / "manifest.json").exists():
            with pytest.raises(CheckpointError):
                ActivationDataset(output)
    assert write_in_processes(output) == ["", ""]
    check_same_rows(output, whole)


def test_a_process_that_fails_stops_the_others_and_leaves_no_dataset(tmp_path: Path) -> None:
    def with_nan(processes: Processes) -> MemoryStore:
        made = store()
        made.batches[3].inputs[2, 1, 0] = torch.nan  # token 26, in a block of the second process
        return made

    output = tmp_path / "runs" / "out"
    ends = write_in_processes(output, with_nan)
    assert ends[0] == "lost"
    assert ends[1].startswith("NotFiniteError")
    with pytest.raises(CheckpointError):
        ActivationDataset(output)
    assert write_in_processes(output) == ["", ""]
    check_same_rows(output, write(tmp_path / "whole", shards_mixed=2))


def test_processes_with_different_texts_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "runs" / "out"
    ends = write_in_processes(output, lambda processes: store(100 if processes.is_first else 33))
    assert ends[0].startswith("TextError")
    assert "did not read the same text" in ends[0]
    assert not (output / "manifest.json").exists()


def test_another_number_of_processes_does_not_go_on(tmp_path: Path) -> None:
    two = Processes(1, 2)
    shards = tuple(replace(shard, file=shard_name(2 + index)) for index, shard in enumerate(shards_of(2)))
    state: dict[str, Any] = {"harvested": SETTINGS, "shards": shards, "place": Place(), "statistics": statistics_of(2)}
    write_unfinished(tmp_path, UnfinishedDataset(**state, processes=two))
    for other in (Processes(), Processes(0, 3)):
        with refuses(ConfigError, tmp_path, 2, other.count):
            begun_dataset(tmp_path, SETTINGS, other)
    mine = begun_dataset(tmp_path, SETTINGS, two)
    assert isinstance(mine, UnfinishedDataset)
    assert mine.shards == shards
    assert mine.block == 1
    first = begun_dataset(tmp_path, SETTINGS, Processes(0, 2))
    assert isinstance(first, UnfinishedDataset)
    assert (first.shards, first.tokens, first.block) == ((), 20, 0)
    assert first.bytes_to_write == 50 * SETTINGS.bytes_per_token
    path = tmp_path / "unfinished-1-of-2.json"
    content = json.loads(path.read_text())
    content["shards"].reverse()
    path.write_text(json.dumps(content))
    with refuses(CheckpointError, path):
        begun_dataset(tmp_path, SETTINGS, two)
