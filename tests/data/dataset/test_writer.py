"""A dataset holds every token once, in an order that the seed decides, also if the harvest was stopped at any write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt import files
from open_clt.data.dataset.manifest import read_manifest
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.dataset.writer import write_dataset
from open_clt.data.harvest import ActivationBatch, MemoryStore
from open_clt.errors import CheckpointError, ConfigError, NotFiniteError, ResourceError, TextError
from tests.data.dataset.killing import check_refused_or_whole
from tests.data.dataset.small_dataset import all_of, contents, harvested, store, write
from tests.faults.interrupted import Faults, Killed, faults_until_success
from tests.refusals import refuses


def rows_by_token(batches: list[ActivationBatch]) -> ActivationBatch:
    """All rows of batches, sorted by token id."""
    whole = all_of(MemoryStore(batches))
    return whole.take(whole.tokens.argsort())


def test_a_dataset_holds_every_token_once_with_its_own_activations(tmp_path: Path) -> None:
    dataset = ActivationDataset(write(tmp_path / "dataset"))
    assert len(dataset) == 70
    assert [shard.tokens for shard in dataset.manifest.shards] == [10] * 7
    for ours, given in zip(rows_by_token(list(dataset)), all_of(store()), strict=True):
        assert torch.equal(ours, given[:70].to(ours.dtype))
    assert [*contents(tmp_path / "dataset")] == [
        "manifest.json",
        "norm_stats.json",
        *(f"shard-{index:05d}.safetensors" for index in range(7)),
    ]
    dataset.verify()


def test_tokens_are_mixed_across_contexts_in_an_order_that_the_seed_decides(tmp_path: Path) -> None:
    orders = {}
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        dataset = ActivationDataset(write(tmp_path / name, seed=seed))
        orders[name] = all_of(MemoryStore(list(dataset))).tokens.tolist()
    assert contents(tmp_path / "first") == contents(tmp_path / "again")
    assert orders["first"] != orders["other"]
    contexts_of_first_shard = {token // 10 for token in orders["first"][:10]}
    assert len(contexts_of_first_shard) > 1
    assert set(orders["first"][:30]) == set(range(30))  # three shards are mixed, and memory holds no more


def test_a_text_that_ends_early_gives_a_smaller_dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_dataset(store(47), harvested(), tmp_path / "dataset")
    assert "47" in caplog.text
    assert [shard.tokens for shard in read_manifest(tmp_path / "dataset").shards] == [10, 10, 10, 10, 7]
    with refuses(TextError):
        write_dataset(MemoryStore([]), harvested(), tmp_path / "empty")
    write_dataset(store(), harvested(seed=3), tmp_path / "empty")  # nothing was harvested, so any harvest may begin


@pytest.mark.parametrize(
    ("tokens", "shards_mixed"),
    [pytest.param(25, 2, id="short"), pytest.param(70, 3, id="long", marks=pytest.mark.slow)],
)
def test_a_dataset_that_was_stopped_at_any_write_is_finished_as_if_it_was_not(
    tokens: int, shards_mixed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"tokens": tokens, "shards_mixed": shards_mixed}
    whole = contents(write(tmp_path / "whole", **settings))
    faults = Faults(monkeypatch, ("replace", "unlink", "rmdir", "fsync"))
    resumed_shards: set[int] = set()

    def harvest_once(failing_call: int) -> bool:
        directory = tmp_path / f"killed {failing_call}"
        faults.arm(failing_call, Killed(), only_once=False)
        try:
            write(directory, **settings)
        except Killed:
            faults.disarm()
            _cut_unfinished_files(directory)
            check_refused_or_whole(directory, whole)
            resumed_shards.add(len(list(directory.glob("shard-*"))))
            write(directory, **settings)
            assert contents(directory) == whole, f"killed at call {failing_call}"
            shutil.rmtree(directory)
            return False
        faults.disarm()
        return True

    assert faults_until_success(harvest_once) > 20
    assert resumed_shards == set(range(len(whole) - 1))


def _cut_unfinished_files(directory: Path) -> None:
    """Leave half of each file that has a temporary name, as if the process was killed while it wrote the file."""
    for path in directory.rglob(".part-*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_finished_dataset_stays_as_it_is(tmp_path: Path) -> None:
    directory = write(tmp_path / "dataset")
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    write_dataset(MemoryStore([]), harvested(), directory)  # the store is not read
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 6},
        {"dtype": "int8"},
        {"tokens": 80},
        {"model": "another"},
        {"input_hook": "mlp.hook_in"},
        {"shard_tokens": 20},
    ],
    ids=str,
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_do_not_go_on_with_a_dataset(
    finished: bool, other: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if finished:
        write(tmp_path / "dataset")
    else:
        stop_after_two_shards(tmp_path / "dataset", monkeypatch)
    before = contents(tmp_path / "dataset")
    (name,) = other
    with refuses(ConfigError, tmp_path / "dataset", name):
        write(tmp_path / "dataset", **other)
    assert contents(tmp_path / "dataset") == before


def stop_after_two_shards(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Harvest until the third shard cannot be written."""
    write_tensors = files.write_tensors

    def stop(path: Path, tensors: Any) -> Path:
        if path.name == "shard-00002.safetensors":
            raise ResourceError("stopped")
        return write_tensors(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_tensors", stop)
        with pytest.raises(ResourceError, match="stopped"):
            write(directory)


def test_an_unfinished_dataset_is_not_read_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after_two_shards(tmp_path / "dataset", monkeypatch)
    with refuses(CheckpointError, tmp_path / "dataset"):
        ActivationDataset(tmp_path / "dataset")
    (tmp_path / "dataset" / "shard-00001.safetensors").write_bytes(b"damaged")
    with refuses(CheckpointError, tmp_path / "dataset" / "shard-00001.safetensors"):
        write(tmp_path / "dataset")


@pytest.mark.parametrize("change", ["another token", "one token less", "another order", "the end is missing"])
def test_a_text_that_was_changed_is_not_mixed_with_the_former_one(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after_two_shards(tmp_path / "dataset", monkeypatch)
    before = contents(tmp_path / "dataset")
    changed = all_of(store())
    if change == "another token":
        changed.tokens[12] += 1
    rows = {
        "another token": slice(None),
        "one token less": slice(1, None),
        "another order": torch.arange(100).flip(0),
        "the end is missing": slice(15),
    }
    memory = MemoryStore([changed.take(rows[change])])
    with refuses(TextError, tmp_path / "dataset"):
        write_dataset(memory, harvested(), tmp_path / "dataset")
    with refuses(TextError, tmp_path / "dataset", "shard-00001"):
        write_dataset(MemoryStore([]), harvested(), tmp_path / "dataset")
    assert contents(tmp_path / "dataset") == before
    write(tmp_path / "dataset")
    assert contents(tmp_path / "dataset") == contents(write(tmp_path / "whole"))


def test_a_directory_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    for name in ("notes.txt", "manifest.json", "unfinished.json", "shard-00000.safetensors"):
        directory = tmp_path / name.partition(".")[0]
        theirs = files.write_text(directory / name, '{"mine": 1}')
        with refuses(ConfigError, directory, name):
            write(directory)
        assert contents(directory) == {name: theirs.read_bytes()}


def test_a_disk_or_a_memory_that_is_too_small_is_found_before_the_first_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = 10**13
    with refuses(ResourceError, tmp_path / "dataset", f"{tokens * harvested().bytes_per_token:,}"):
        write(tmp_path / "dataset", tokens=tokens)
    monkeypatch.setattr(files, "check_disk", lambda *_: None)
    with refuses(ResourceError, f"{tokens:,}"):
        write(tmp_path / "dataset", tokens=tokens, shard_tokens=2**31 - 1, shards_mixed=10**6)
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(("number", "dtype"), [(torch.nan, "float32"), (torch.inf, "int8"), (70_000.0, "float16")])
def test_activations_that_cannot_be_stored_are_named(number: float, dtype: str, tmp_path: Path) -> None:
    memory = store()
    memory.batches[4].targets[2, 1, 0] = number
    with refuses(NotFiniteError, "targets", "layer 1", 34):
        write_dataset(memory, harvested(dtype=dtype), tmp_path / "dataset")
