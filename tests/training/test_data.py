"""Data: read once if it fits, mixed, filtered, and the same from any step on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
import torch

from open_clt.activations.buffer import ActivationBatch, MemoryStore
from open_clt.errors import ConfigError, TextError
from open_clt.training.data import ActivationDataModule, prepare
from tests.training.synthetic import D_MODEL, LAYERS, quick_training, relu_mlps

BYTES_PER_TOKEN = 2 * LAYERS * D_MODEL * 4


class CountingStore:
    """A store that counts how often it is read."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.n_tokens = store.n_tokens
        self.batches_read = 0

    def __iter__(self) -> Iterator[ActivationBatch]:
        for batch in self.store:
            self.batches_read += 1
            yield batch


def test_what_fits_memory_is_read_once_for_all_epochs() -> None:
    store = CountingStore(relu_mlps(640))
    data = ActivationDataModule(store, quick_training(epochs=3))
    assert data.steps == 3 * (600 // 64)
    assert len(list(data.train_dataloader())) == data.steps
    assert store.batches_read == 4


def test_what_does_not_fit_is_read_again_each_epoch() -> None:
    store = CountingStore(relu_mlps(640, batches=10))
    data = ActivationDataModule(store, quick_training(epochs=2, memory_limit=200 * BYTES_PER_TOKEN / 1e9))
    batches = list(data.train_dataloader())
    assert len(batches) == data.steps == 2 * (600 // 64)
    assert all(batch.size == 64 for batch in batches)
    first, second = (torch.cat([batch.tokens for batch in batches[half]]) for half in (slice(9), slice(9, 18)))
    assert first.unique().numel() == second.unique().numel() == 9 * 64
    assert not torch.equal(first, second)


@pytest.mark.parametrize("memory_limit", [1.0, 200 * BYTES_PER_TOKEN / 1e9])
def test_batches_are_the_same_from_any_step_on(memory_limit: float) -> None:
    data = ActivationDataModule(relu_mlps(640), quick_training(memory_limit=memory_limit))
    whole = list(islice(data.batches(), 25))
    for start in (0, 3, 9, 20):
        for batch, expected in zip(islice(data.batches(start), 5), whole[start:], strict=False):
            assert torch.equal(batch.tokens, expected.tokens)


def test_first_positions_and_outliers_are_left_out() -> None:
    store = relu_mlps(640)
    store.batches[1].inputs[7, 1] *= 1000  # token 167, which is no first position
    prepared = prepare(store, quick_training())
    tokens = torch.cat([batch.tokens for batch in prepared.store])
    assert (tokens % 16 != 0).all()
    assert 167 not in tokens
    assert prepared.tokens == tokens.numel() == 599
    held_out = ActivationDataModule(relu_mlps(64), quick_training(), held_out=store).held_out_batches()
    assert torch.equal(torch.cat([batch.tokens for batch in held_out]), tokens)


def test_statistics_come_from_all_tokens_not_the_first_batch() -> None:
    store = relu_mlps(640)
    store.batches[3].targets.add_(100)
    prepared = prepare(store, quick_training())
    kept = torch.cat([batch.targets[batch.positions > 0] for batch in store])
    torch.testing.assert_close(prepared.targets.mean, kept.mean(0))


def test_bfloat16_storage_halves_the_room() -> None:
    limit = 400 * BYTES_PER_TOKEN / 1e9
    full = prepare(relu_mlps(640), quick_training(memory_limit=limit))
    half = prepare(relu_mlps(640), quick_training(memory_limit=limit, storage_dtype="bfloat16"))
    assert (full.capacity, half.capacity) == (400, 601)


def test_no_token_left_is_a_clear_error() -> None:
    with pytest.raises(TextError, match="no token to train on"):
        prepare(MemoryStore([]), quick_training())
    batch = next(iter(relu_mlps(16)))
    with pytest.raises(TextError, match="first of its context"):
        prepare(MemoryStore([batch.take(slice(1))]), quick_training())


@pytest.mark.parametrize(
    ("name", "value", "legal"),
    [
        ("batch_size", 0, "at least 1"),
        ("max_steps", 0, "at least 1"),
        ("held_out_share", 1.0, "is a share"),
        ("learning_rate", -1e-3, "above 0"),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: float, legal: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}.*{legal}"):
        quick_training(**{name: value})
