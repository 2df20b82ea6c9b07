"""Harvesting and shuffling: every token once, with its own activations, far from its neighbours."""

from __future__ import annotations

import pytest
import torch

from open_clt.activations.buffer import (
    ActivationBatch,
    Harvest,
    MemoryStore,
    collect,
    concatenate,
    harvest,
    keep_rows,
    shuffle,
    without_outliers,
)
from open_clt.activations.language_model import LanguageModel
from open_clt.activations.text import pack_contexts
from open_clt.errors import TextError
from tests.tiny_models import TEXTS


def numbered(tokens: int, size: int = 10) -> list[ActivationBatch]:
    """Batches whose inputs, targets and token ids all tell which token a row is; a context has ``size`` tokens."""
    numbers = torch.arange(tokens)
    values = numbers.float()[:, None, None].expand(tokens, 2, 3)
    block = ActivationBatch(values.clone(), -values, numbers, numbers % size)
    return [block.take(rows) for rows in numbers.split(size)]


def assert_rows_belong_together(batch: ActivationBatch) -> None:
    assert torch.equal(batch.inputs[:, 1, 2], batch.tokens.float())
    assert torch.equal(batch.targets[:, 0, 0], -batch.tokens.float())
    assert torch.equal(batch.positions, batch.tokens % 10)


def test_harvest_gives_what_the_model_computes(tiny_gpt2: LanguageModel) -> None:
    contexts = pack_contexts(TEXTS * 5, tiny_gpt2, 16)
    batches = list(harvest(tiny_gpt2, contexts, input_hook="hook_resid_mid", target_hook="hook_mlp_out", batch_size=3))
    everything = concatenate(batches)
    captured = tiny_gpt2.capture(contexts)
    torch.testing.assert_close(everything.inputs, captured.inputs.flatten(0, 1))
    torch.testing.assert_close(everything.targets, captured.targets.flatten(0, 1))
    assert torch.equal(everything.tokens, contexts.flatten())
    assert everything.positions[:17].tolist() == [*range(16), 0]
    assert not everything.inputs.requires_grad


def test_a_harvest_can_be_read_again_and_again(tiny_gpt2: LanguageModel) -> None:
    contexts = pack_contexts(TEXTS * 2, tiny_gpt2, 8)
    store = Harvest(tiny_gpt2, contexts, input_hook="ln2.hook_normalized", target_hook="hook_mlp_out", batch_size=4)
    first, second = concatenate(list(store)), concatenate(list(store))
    assert torch.equal(first.inputs, second.inputs)
    assert first.size == store.n_tokens == contexts.numel()


@pytest.mark.parametrize("capacity", [30, 100, 1000])
def test_shuffling_loses_and_repeats_no_token(capacity: int) -> None:
    batches = list(shuffle(numbered(203), capacity=capacity, batch_size=8, generator=torch.Generator().manual_seed(0)))
    assert [batch.size for batch in batches] == [8] * 25 + [3]
    everything = concatenate(batches)
    assert_rows_belong_together(everything)
    assert sorted(everything.tokens.tolist()) == list(range(203))


def test_shuffling_mixes_tokens_across_documents() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = list(shuffle(numbered(1000), capacity=400, batch_size=20, generator=generator))
    documents = [(batch.tokens // 10).unique().numel() for batch in batches]
    assert min(documents) >= 10  # of at most 20; unshuffled it would be 2


def test_shuffling_follows_its_generator() -> None:
    def order(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return concatenate(list(shuffle(numbered(100), capacity=40, batch_size=8, generator=generator))).tokens.tolist()

    assert order(0) == order(0) != order(1)


def test_shuffling_reads_no_further_than_its_capacity() -> None:
    read = 0

    def counted():
        nonlocal read
        for batch in numbered(1000):
            read += batch.size
            yield batch

    batches = shuffle(counted(), capacity=100, batch_size=8, generator=torch.Generator())
    for given, batch in enumerate(batches):
        assert read - given * 8 <= 110
        assert batch.size <= 8


def test_first_positions_and_large_norms_are_left_out() -> None:
    batches = numbered(40)
    limit = torch.tensor([30.0, 25.0]) * 3**0.5
    kept = concatenate(list(without_outliers(batches, skip_first_position=True, largest_norm=limit * 1.0001)))
    assert kept.tokens.tolist() == [number for number in range(26) if number % 10]
    everything = concatenate(list(without_outliers(batches, skip_first_position=False)))
    assert everything.size == 40


def test_collecting_stops_at_its_limit_and_says_so() -> None:
    store = MemoryStore(numbered(100))
    whole = collect(store, max_bytes=1e6)
    assert whole.complete
    assert_rows_belong_together(whole.block)
    part = collect(store, max_bytes=35.0 * 2 * 6 * 4)
    assert (part.block.size, part.complete) == (35, False)
    assert collect(store, max_bytes=35.0 * 2 * 6 * 4, dtype=torch.bfloat16).block.size == 70
    with pytest.raises(TextError, match="no token to train on"):
        collect(MemoryStore([]), max_bytes=1e6)


def test_keeping_rows_in_place_equals_indexing() -> None:
    block = concatenate(numbered(20_000))
    keep = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) < 0.7
    expected = block.tokens[keep]
    kept = keep_rows(block, keep)
    assert torch.equal(kept.tokens, expected)
    assert_rows_belong_together(kept)
