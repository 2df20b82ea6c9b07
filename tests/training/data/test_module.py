"""Training data: read once if it fits in memory, mixed, filtered, and the same from any position on."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch

from open_clt.data import harvest as buffer
from open_clt.data.contexts import Place
from open_clt.data.harvest import ActivationBatch, MemoryStore, Placed
from open_clt.errors import CheckpointError, ConfigError, TextError
from open_clt.training.data.module import ActivationDataModule, DataState, refuse_other_settings
from open_clt.training.data.preparation import prepare
from tests.refusals import refuses
from tests.training.synthetic import D_MODEL, LAYERS, quick_data, quick_training, relu_mlps

BYTES_PER_TOKEN = 2 * LAYERS * D_MODEL * 4


class CountingStore:
    """A store that counts the batches that are read from it."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.n_tokens = store.n_tokens
        self.batches_read = 0

    def __iter__(self) -> Iterator[ActivationBatch]:
        for batch in self.store:
            self.batches_read += 1
            yield batch


def test_data_that_fits_in_memory_is_read_once_for_all_epochs() -> None:
    store = CountingStore(relu_mlps(640))
    data = ActivationDataModule(store, quick_data(epochs=3))
    assert data.steps == 3 * (600 // 64)
    assert len(list(data.train_dataloader())) == data.steps
    assert store.batches_read == 4


def test_data_that_does_not_fit_in_memory_is_read_in_each_epoch() -> None:
    store = CountingStore(relu_mlps(640, batches=10))
    data = ActivationDataModule(store, quick_data(epochs=2, memory_limit=200 * BYTES_PER_TOKEN / 1e9))
    batches = list(data.train_dataloader())
    assert len(batches) == data.steps == 2 * (600 // 64)
    assert all(batch.size == 64 for batch in batches)
    first, second = (torch.cat([batch.tokens for batch in batches[half]]) for half in (slice(9), slice(9, 18)))
    assert first.unique().numel() == second.unique().numel() == 9 * 64
    assert not torch.equal(first, second)


@pytest.mark.parametrize("memory_limit", [1.0, 200 * BYTES_PER_TOKEN / 1e9])
def test_batches_are_the_same_from_any_state_on(memory_limit: float) -> None:
    data = ActivationDataModule(relu_mlps(640, batches=10), quick_data(memory_limit=memory_limit))
    whole = list(islice(data.batches(), 25))
    for start in (1, 3, 9, 20):
        state = DataState(**whole[start - 1][0]._asdict())
        for (_, batch), (_, expected) in zip(islice(data.batches(state), 5), whole[start:], strict=False):
            assert torch.equal(batch.tokens, expected.tokens)
            assert torch.equal(batch.inputs, expected.inputs)


def test_resuming_reads_no_earlier_data() -> None:
    class Seekable(CountingStore):
        def read_from(self, place: Place) -> Iterator[Placed]:
            for index, batch in list(enumerate(self.store))[place.item :]:
                self.batches_read += 1
                yield Placed(Place(index), batch)

    store = Seekable(relu_mlps(6400, batches=100))
    data = ActivationDataModule(store, quick_data(memory_limit=400 * BYTES_PER_TOKEN / 1e9))
    state, _ = list(islice(data.batches(), 80))[-1]
    store.batches_read = 0
    next(iter(data.batches(state)))
    data.close()
    assert 3 <= store.batches_read <= 3 * (192 // 64 + 1), "the current block and the next one"


def test_memory_holds_two_blocks_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[weakref.ref[torch.Tensor]] = []
    room_for = buffer._room_for  # pyright: ignore[reportPrivateUsage]

    def watched(*arguments: Any) -> ActivationBatch:
        room = room_for(*arguments)
        blocks.append(weakref.ref(room.inputs))
        return room

    monkeypatch.setattr(buffer, "_room_for", watched)

    class Watched(CountingStore):
        """Counts the tokens that are read, before each batch is yielded."""

        def __iter__(self) -> Iterator[ActivationBatch]:
            for batch in self.store:
                self.batches_read += batch.size
                yield batch

    limit = 2000
    store = Watched(relu_mlps(64_000, batches=1000))
    data = ActivationDataModule(store, quick_data(memory_limit=limit * BYTES_PER_TOKEN / 1e9))
    assert data.prepared.block_size == limit // 2 // 64 * 64
    store.batches_read = 0
    for state, _ in islice(data.batches(), 800):
        used = (state.batches - 1) // (data.prepared.block_size // 64) * data.prepared.block_size * 64 / 60
        assert store.batches_read - used <= 64 / 60 * limit + 128
        assert sum(block() is not None for block in blocks) <= 2
    data.close()


def test_the_next_block_is_harvested_during_training() -> None:
    store = CountingStore(relu_mlps(2560, batches=40))
    data = ActivationDataModule(store, quick_data(memory_limit=400 * BYTES_PER_TOKEN / 1e9, max_steps=36))
    for step, _ in enumerate(data.train_dataloader()):
        while step == 0 and store.batches_read <= 400 // 64 + 1:  # wait until batches beyond the first block are read
            time.sleep(0.001)
    cost = data.cost
    assert cost.before > 0
    assert cost.meanwhile > 0
    assert cost.share == pytest.approx(cost.waited / cost.total)


def test_an_error_in_the_harvesting_thread_is_raised_in_training() -> None:
    class Broken(CountingStore):
        def __iter__(self) -> Iterator[ActivationBatch]:
            yield from islice(super().__iter__(), 8)
            raise TextError("line 9 is not a text")

    data = ActivationDataModule(Broken(relu_mlps(640, batches=10)), quick_data(memory_limit=2e-5, max_steps=30))
    with refuses(TextError, "line 9"):
        list(data.train_dataloader())
    assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())


def test_an_early_end_stops_the_harvesting_thread() -> None:
    store = CountingStore(relu_mlps(64_000, batches=1000))
    data = ActivationDataModule(store, quick_data(memory_limit=20_000 * BYTES_PER_TOKEN / 1e9))
    batches = iter(data.train_dataloader())
    next(batches)
    read_before = store.batches_read
    batches.close()
    assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())
    assert store.batches_read <= read_before + 5


def test_a_store_of_unknown_size_needs_max_steps() -> None:
    class Endless(CountingStore):
        n_tokens = None

        def __init__(self, store: MemoryStore) -> None:
            self.store, self.batches_read = store, 0

    limit = 200 * BYTES_PER_TOKEN / 1e9
    with refuses(ConfigError, "max_steps"):
        _ = ActivationDataModule(Endless(relu_mlps(640)), quick_data(memory_limit=limit)).steps
    data = ActivationDataModule(Endless(relu_mlps(640)), quick_data(memory_limit=limit, max_steps=20))
    assert len(list(data.train_dataloader())) == 20
    assert ActivationDataModule(Endless(relu_mlps(640)), quick_data(epochs=2)).steps == 2 * (600 // 64)


def test_first_positions_and_outliers_are_left_out() -> None:
    store = relu_mlps(640)
    store.batches[1].inputs[7, 1] *= 1000  # token 167, which is not at a first position
    prepared = prepare(store, quick_data())
    assert prepared.kept is not None
    tokens = prepared.kept.tokens
    assert (tokens % 16 != 0).all()
    assert 167 not in tokens
    assert prepared.tokens == tokens.numel() == 599
    held_out = ActivationDataModule(relu_mlps(64), quick_data(), held_out=store).held_out_batches()
    assert torch.equal(torch.cat([batch.tokens for batch in held_out]), tokens)


def test_resuming_a_run_of_an_older_version_names_the_setting_that_it_lacks() -> None:
    settings = {"n_features": 24, "use_first_position": False}
    refuse_other_settings({**settings, "skip_first_position": True}, settings)
    with refuses(CheckpointError, "use_first_position"):
        refuse_other_settings({"n_features": 24}, settings)


def test_statistics_come_from_all_tokens_not_the_first_batch() -> None:
    store = relu_mlps(640)
    store.batches[3].targets.add_(100)
    prepared = prepare(store, quick_data())
    usable = torch.cat([batch.targets[batch.positions > 0] for batch in store])
    torch.testing.assert_close(prepared.targets.mean, usable.mean(0))


def test_bfloat16_storage_takes_half_the_memory() -> None:
    limit = 400 * BYTES_PER_TOKEN / 1e9
    float32 = prepare(relu_mlps(640), quick_data(memory_limit=limit))
    bfloat16 = prepare(relu_mlps(640), quick_data(memory_limit=limit, storage_dtype="bfloat16"))
    assert (float32.kept, float32.block_size) == (None, 192)
    assert bfloat16.kept is not None
    assert (bfloat16.kept.inputs.dtype, bfloat16.block_size) == (torch.bfloat16, 600)


def test_data_without_usable_tokens_is_refused() -> None:
    with refuses(TextError):
        prepare(MemoryStore([]), quick_data())
    batch = next(iter(relu_mlps(16)))
    with refuses(TextError, "use_first_position"):
        prepare(MemoryStore([batch.take(slice(1))]), quick_data())
    with refuses(ConfigError, "memory_limit", 1e-12):
        prepare(MemoryStore([batch.take(slice(1)), batch]), quick_data(memory_limit=1e-12))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("max_steps", 0),
        ("learning_rate", -1e-3),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with refuses(ConfigError, name, value):
        quick_training(**{name: value})
