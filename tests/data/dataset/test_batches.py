"""Batches of a dataset: every token once over all processes, in an order of seed and epoch, from any place on."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from threading import active_count
from typing import Any

import pytest
import torch

from open_clt.data.contexts import Place
from open_clt.data.dataset import read
from open_clt.data.dataset.batches import DatasetBatches
from open_clt.data.harvest import ActivationBatch, MemoryStore, SeekableStore
from open_clt.errors import CheckpointError, ConfigError
from tests.data.dataset.small_dataset import all_of, store, write
from tests.refusals import refuses

TOKENS = 65


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 65 tokens in shards of 10."""
    return write(tmp_path_factory.mktemp("data") / "dataset", tokens=TOKENS)


def tokens_of(batches: DatasetBatches) -> list[list[int]]:
    return [batch.tokens.tolist() for batch in batches]


@pytest.mark.parametrize("order", ["random", "sequence"])
@pytest.mark.parametrize("size", [1, 4, 10, 27, 65, 100])
def test_an_epoch_yields_every_token_once_with_its_activations(directory: Path, size: int, order: Any) -> None:
    batches = list(read(directory, size, seed=3, order=order))
    assert [batch.size for batch in batches[:-1]] == [size] * (len(batches) - 1)
    read_tokens, given = all_of(MemoryStore(batches)), all_of(store())
    assert sorted(read_tokens.tokens.tolist()) == list(range(TOKENS))
    for ours, theirs in zip(read_tokens, given.take(read_tokens.tokens), strict=True):
        assert torch.equal(ours, theirs)


def test_the_order_is_a_function_of_seed_and_epoch(directory: Path) -> None:
    orders = {seed: tokens_of(read(directory, TOKENS, seed=seed, epochs=10)) for seed in (0, 1)}
    assert len({tuple(epoch) for epochs in orders.values() for epoch in epochs}) == 20
    assert orders[0] == tokens_of(read(directory, TOKENS, epochs=10))
    assert len({min(epoch[:10]) // 30 for epoch in orders[0]}) > 1  # shards come in random order, too
    in_sequence = tokens_of(read(directory, TOKENS, order="sequence", epochs=2))
    assert in_sequence[0] == in_sequence[1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int8"])
def test_a_batch_has_the_type_of_the_shards_and_int8_becomes_float32(dtype: str, tmp_path: Path) -> None:
    batch = next(iter(read(write(tmp_path / "dataset", dtype=dtype), 16)))
    assert batch.inputs.dtype == batch.targets.dtype == (torch.float32 if dtype == "int8" else getattr(torch, dtype))
    assert batch.tokens.dtype == batch.positions.dtype == torch.long


@pytest.mark.parametrize("order", ["random", "sequence"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 40])
@pytest.mark.parametrize("size", [2, 13, 100])
def test_processes_read_every_token_once_in_equal_numbers_of_batches(
    directory: Path, world_size: int, size: int, order: Any
) -> None:
    ranks = [
        read(directory, size, rank=rank, world_size=world_size, order=order, epochs=2) for rank in range(world_size)
    ]
    parts = [tokens_of(batches) for batches in ranks]
    assert len({len(part) for part in parts}) == 1
    assert [len(batches) for batches in ranks] == [len(part) for part in parts]
    assert [batches.n_tokens for batches in ranks] == [sum(map(len, part)) for part in parts]
    steps = [[token for batch in step for token in batch] for step in zip(*parts, strict=True)]
    whole = [token for batch in tokens_of(read(directory, size * world_size, epochs=2, order=order)) for token in batch]
    assert [token for step in steps for token in step] == whole
    for step in zip(*parts, strict=True):
        sizes = [len(batch) for batch in step]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= size


@pytest.mark.parametrize(("world_size", "size"), [(4, 1), (100, 3)])
def test_a_remainder_that_cannot_be_divided_goes_to_some_processes(directory: Path, world_size: int, size: int) -> None:
    parts = [tokens_of(read(directory, size, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(token for part in parts for batch in part for token in batch) == list(range(TOKENS))
    assert all(batch for part in parts for batch in part)
    assert max(map(len, parts)) - min(map(len, parts)) == 1


@pytest.mark.parametrize("order", ["random", "sequence"])
def test_reading_goes_on_from_every_place(directory: Path, order: Any) -> None:
    settings: dict[str, Any] = {"order": order, "epochs": 2, "seed": 4, "rank": 1, "world_size": 2}
    whole = list(read(directory, 7, **settings))
    for used in range(len(whole) + 1):
        begun = read(directory, 7, **settings)
        assert len(list(islice(begun, used))) == used
        resumed = read(directory, 7, **settings)
        resumed.load_state_dict(begun.state_dict())
        assert_equal(list(resumed), whole[used:])
        assert_equal(list(resumed), whole)  # the next iteration is a whole one
        placed = list(begun.read_from(Place(used)))
        assert [place for place, _ in placed] == [Place(item) for item in range(used, len(whole))]
        assert_equal([batch for _, batch in placed], whole[used:])


def assert_equal(ours: list[ActivationBatch], theirs: list[ActivationBatch]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(*fields) for fields in zip(one, other, strict=True))


def test_a_place_of_another_dataset_or_of_other_settings_is_refused(directory: Path, tmp_path: Path) -> None:
    state = read(directory, 7).state_dict()
    other = write(tmp_path / "other", tokens=TOKENS, seed=6)
    for batches, name in (
        (read(directory, 8), "batch_tokens"),
        (read(directory, 7, seed=1), "seed"),
        (read(directory, 7, order="sequence"), "order"),
        (read(directory, 7, world_size=2), "world_size"),
        (read(other, 7), "dataset"),
    ):
        with refuses(CheckpointError, name):
            batches.load_state_dict(state)


def test_reading_is_a_store_that_can_be_read_from_a_place_and_leaves_no_thread(directory: Path) -> None:
    before = active_count()
    batches = read(directory, 7)
    assert isinstance(batches, SeekableStore)
    assert "65 tokens" in repr(batches)
    iterator = iter(batches)
    next(iterator)
    del iterator
    assert active_count() == before


def test_wrong_arguments_are_refused(directory: Path) -> None:
    with refuses(ConfigError, "batch_tokens"):
        read(directory, 0)
    with refuses(ConfigError, "seed"):
        read(directory, 4, seed=-1)
    with refuses(ConfigError, "rank", 2):
        read(directory, 4, rank=2, world_size=2)
    with refuses(ConfigError, "order"):
        read(directory, 4, order="backwards")  # pyright: ignore[reportArgumentType]
