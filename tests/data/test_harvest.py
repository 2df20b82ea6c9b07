"""Harvested and mixed batches hold every token once, with its own activations, apart from its neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from open_clt.config import TextsConfig
from open_clt.data.contexts import ContextStream, Place, pack_contexts
from open_clt.data.harvest import (
    ActivationBatch,
    ActivationStore,
    Block,
    Harvest,
    MemoryStore,
    Placed,
    blocks,
    collect,
    concatenate,
    keep_rows,
    mixed,
    read_from,
    without_outliers,
)
from open_clt.errors import TextError
from open_clt.language.language_model import LanguageModel
from tests.refusals import refuses
from tests.tiny_models import TEXTS


def numbered(n_tokens: int, size: int = 10) -> list[ActivationBatch]:
    """Return batches whose inputs, targets and token ids are the index of the token; a context has ``size`` tokens."""
    indices = torch.arange(n_tokens)
    values = indices.float()[:, None, None].expand(n_tokens, 2, 3)
    block = ActivationBatch(values.clone(), -values, indices, indices % size)
    return [block.take(rows) for rows in indices.split(size)]


def assert_rows_belong_together(batch: ActivationBatch) -> None:
    assert torch.equal(batch.inputs[:, 1, 2], batch.tokens.float())
    assert torch.equal(batch.targets[:, 0, 0], -batch.tokens.float())
    assert torch.equal(batch.positions, batch.tokens % 10)


def everything(batch: ActivationBatch) -> ActivationBatch:
    return batch


BEGINNING = Place()


def in_blocks(store: ActivationStore, size: int, start: Place = BEGINNING, **settings: Any) -> list[Block]:
    read = read_from(store, start)
    return list(blocks(read, **{"size": size, "usable": everything, "used": start.used, **settings}))


def shuffled(n_tokens: int, *, block_size: int, batch_size: int, seed: int = 0) -> list[ActivationBatch]:
    generator = torch.Generator().manual_seed(seed)
    read = in_blocks(MemoryStore(numbered(n_tokens)), block_size)
    return [batch for block in read for batch in mixed(block.tokens, batch_size=batch_size, generator=generator)]


def test_a_harvest_holds_the_activations_that_the_model_computes(tiny_gpt2: LanguageModel) -> None:
    contexts = pack_contexts(TEXTS * 5, tiny_gpt2, 16)
    store = Harvest(tiny_gpt2, contexts, input_hook="hook_resid_mid", target_hook="hook_mlp_out", batch_size=3)
    together = concatenate(list(store))
    captured = tiny_gpt2.capture(contexts)
    torch.testing.assert_close(together.inputs, captured.inputs.flatten(0, 1))
    torch.testing.assert_close(together.targets, captured.targets.flatten(0, 1))
    assert torch.equal(together.tokens, contexts.flatten())
    assert together.positions[:17].tolist() == [*range(16), 0]
    assert not together.inputs.requires_grad


def test_a_harvest_can_be_read_several_times(tiny_gpt2: LanguageModel) -> None:
    contexts = pack_contexts(TEXTS * 2, tiny_gpt2, 8)
    store = Harvest(tiny_gpt2, contexts, input_hook="ln2.hook_normalized", target_hook="hook_mlp_out", batch_size=4)
    first, second = concatenate(list(store)), concatenate(list(store))
    assert torch.equal(first.inputs, second.inputs)
    assert first.size == store.n_tokens == contexts.numel()


@pytest.mark.parametrize("streamed", [True, False])
def test_a_harvest_that_starts_at_a_place_equals_the_rest_of_a_whole_harvest(
    tiny_gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    stream = ContextStream(lambda: TEXTS * 5, tiny_gpt2, 16, TextsConfig(held_out_contexts=0))
    contexts = stream if streamed else pack_contexts(TEXTS * 5, tiny_gpt2, 16)
    store = Harvest(tiny_gpt2, contexts, input_hook="hook_resid_mid", target_hook="hook_mlp_out", batch_size=3)
    whole = list(read_from(store, Place()))
    capture, contexts_read = LanguageModel.capture, 0

    def counted(self: LanguageModel, tokens: torch.Tensor, *arguments: Any, **settings: Any) -> Any:
        nonlocal contexts_read
        contexts_read += tokens.shape[0]
        return capture(self, tokens, *arguments, **settings)

    monkeypatch.setattr(LanguageModel, "capture", counted)
    rest = list(read_from(store, whole[2].place))
    assert len(rest) == len(whole) - 2
    assert [place for place, _ in rest] == [place for place, _ in whole[2:]]
    for (_, batch), (_, expected) in zip(rest, whole[2:], strict=True):
        assert torch.equal(batch.inputs, expected.inputs)
    assert contexts_read == sum(batch.size for _, batch in rest) / 16  # nothing before the place was harvested


@pytest.mark.slow
def test_two_threads_harvest_from_one_model_without_mixing(tiny_gpt2: LanguageModel) -> None:
    contexts = pack_contexts(TEXTS * 20, tiny_gpt2, 16)
    stores = [
        Harvest(tiny_gpt2, ordered, input_hook="hook_resid_mid", target_hook="hook_mlp_out", batch_size=2)
        for ordered in (contexts, contexts.flip(0))
    ]
    alone = [concatenate(list(store)) for store in stores]
    with ThreadPoolExecutor() as threads:
        together = list(threads.map(lambda store: concatenate(list(store)), stores))
    for expected, batch in zip(alone, together, strict=True):
        assert torch.equal(batch.inputs, expected.inputs)


@pytest.mark.parametrize("size", [7, 30, 100, 1000])
def test_blocks_hold_every_token_once(size: int) -> None:
    read = in_blocks(MemoryStore(numbered(203)), size)
    assert [block.tokens.size for block in read] == [size] * (203 // size) + [203 % size] * (203 % size > 0)
    together = concatenate([block.tokens for block in read])
    assert_rows_belong_together(together)
    assert together.tokens.tolist() == list(range(203))


def test_a_block_can_be_read_again_from_its_place() -> None:
    def odd(batch: ActivationBatch) -> ActivationBatch:
        return batch.take(batch.tokens % 2 == 1)

    store = MemoryStore(numbered(203))
    whole = in_blocks(store, 33, usable=odd)
    for index, start in enumerate(whole):
        again, expected = in_blocks(store, 33, start.place, usable=odd), whole[index:]
        assert [block.tokens.tokens.tolist() for block in again] == [block.tokens.tokens.tolist() for block in expected]
        assert [block.place for block in again] == [block.place for block in expected]


def test_mixed_batches_hold_every_token_once() -> None:
    batches = shuffled(203, block_size=100, batch_size=8)
    together = concatenate(batches)
    assert_rows_belong_together(together)
    assert sorted(together.tokens.tolist()) == list(range(203))
    assert together.tokens.tolist() != list(range(203))


def test_mixing_spreads_documents_over_batches() -> None:
    batches = shuffled(1000, block_size=200, batch_size=20)
    documents = [(batch.tokens // 10).unique().numel() for batch in batches]
    assert min(documents) >= 8  # at most 20; without mixing it would be 2


def test_the_order_of_mixing_depends_on_the_generator_alone() -> None:
    orders = [concatenate(shuffled(100, block_size=40, batch_size=8, seed=seed)).tokens.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_a_block_is_yielded_before_more_of_the_store_is_read_than_it_needs() -> None:
    tokens_read = 0

    def counted() -> Iterator[Placed]:
        nonlocal tokens_read
        for index, batch in enumerate(numbered(1000)):
            tokens_read += batch.size
            yield Placed(Place(index), batch)

    for index, block in enumerate(blocks(counted(), size=100, usable=everything)):
        assert block.tokens.size == 100
        assert tokens_read <= 100 * (index + 1) + 10


def test_first_positions_and_large_norms_are_left_out() -> None:
    batches = numbered(40)
    limit = torch.tensor([30.0, 25.0]) * 3**0.5
    together = concatenate(batches)
    kept = without_outliers(together, first_position=1, largest_norm=limit * 1.0001)
    assert kept.tokens.tolist() == [token for token in range(26) if token % 10]
    assert without_outliers(together, first_position=0).size == 40


def test_collecting_stops_at_its_limit_and_reports_it() -> None:
    store = MemoryStore(numbered(100))
    whole = collect(store, max_bytes=1e6)
    assert whole.complete
    assert_rows_belong_together(whole.block)
    part = collect(store, max_bytes=35.0 * 2 * 6 * 4)
    assert (part.block.size, part.complete) == (35, False)
    assert collect(store, max_bytes=35.0 * 2 * 6 * 4, dtype=torch.bfloat16).block.size == 70
    with refuses(TextError):
        collect(MemoryStore([]), max_bytes=1e6)


@pytest.mark.parametrize("streamed", [True, False])
def test_only_enough_tokens_are_harvested_if_not_all_fit_in_memory(
    tiny_gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    stream = ContextStream(lambda: TEXTS * 20, tiny_gpt2, 16, TextsConfig(held_out_contexts=0))
    contexts = stream if streamed else torch.cat([chunk.contexts for chunk in stream.chunks(4)])
    store = Harvest(tiny_gpt2, contexts, input_hook="hook_resid_mid", target_hook="hook_mlp_out", batch_size=1)
    whole = collect(store, max_bytes=1e9, enough=32)
    assert whole.complete
    per_token = 2 * whole.block.inputs[0].numel() * 4
    passes = 0
    capture = LanguageModel.capture

    def counted(*arguments: Any, **settings: Any) -> Any:
        nonlocal passes
        passes += 1
        return capture(*arguments, **settings)

    monkeypatch.setattr(LanguageModel, "capture", counted)
    part = collect(store, max_bytes=80.0 * per_token, enough=32)
    assert (part.block.size, part.complete, part.capacity, passes) == (32, False, 80, 3)
    assert torch.equal(part.block.tokens, whole.block.tokens[:32])


def test_keeping_rows_in_place_equals_indexing() -> None:
    block = concatenate(numbered(20_000))
    keep = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) < 0.7
    expected = block.tokens[keep]
    kept = keep_rows(block, keep)
    assert torch.equal(kept.tokens, expected)
    assert_rows_belong_together(kept)
