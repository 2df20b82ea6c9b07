"""Contexts hold the tokens of their texts in order; only tokens that do not fill a last context are lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from open_clt.config import TextsConfig
from open_clt.data.contexts import ContextStream, pack_contexts
from open_clt.errors import TextError
from open_clt.language.language_model import LanguageModel
from tests.refusals import refuses
from tests.tiny_models import TEXTS


def test_every_context_begins_with_bos_and_the_rest_is_the_texts_in_order(tiny_gpt2: LanguageModel) -> None:
    contexts = pack_contexts(TEXTS * 20, tiny_gpt2, 16)
    assert contexts.shape[1] == 16
    assert (contexts[:, 0] == tiny_gpt2.bos_token_id).all()
    stream = [token for ids in tiny_gpt2.token_ids(TEXTS * 20) for token in [*ids, tiny_gpt2.eos_token_id]]
    assert contexts[:, 1:].flatten().tolist() == stream[: contexts[:, 1:].numel()]
    assert len(stream) - contexts[:, 1:].numel() < 15


def test_with_from_start_every_context_begins_where_a_text_begins(tiny_gpt2: LanguageModel) -> None:
    contexts = pack_contexts(TEXTS * 20, tiny_gpt2, 16, from_start=True)
    beginnings = {tuple(ids[:5]) for ids in tiny_gpt2.token_ids(TEXTS)}
    assert {tuple(row[1:6].tolist()) for row in contexts} == beginnings


def test_contexts_are_at_most_as_long_as_the_context_of_the_model(tiny_gpt2: LanguageModel) -> None:
    assert pack_contexts(TEXTS * 40, tiny_gpt2, 1000).shape[1] == tiny_gpt2.context_length


@pytest.mark.parametrize("from_start", [False, True])
def test_a_stream_yields_the_contexts_that_packing_returns(tiny_gpt2: LanguageModel, from_start: bool) -> None:
    packed = pack_contexts(TEXTS * 20, tiny_gpt2, 16, from_start=from_start)
    stream = ContextStream(lambda: TEXTS * 20, tiny_gpt2, 16, TextsConfig(from_start=from_start, held_out_contexts=0))
    assert torch.equal(torch.cat([chunk.contexts for chunk in stream.chunks(7)]), packed)


@pytest.mark.parametrize("from_start", [False, True])
def test_a_stream_can_start_at_any_of_its_places(tiny_gpt2: LanguageModel, from_start: bool) -> None:
    stream = ContextStream(
        lambda: ["", *TEXTS, " "] * 5, tiny_gpt2, 16, TextsConfig(from_start=from_start, held_out_contexts=3)
    )
    whole = list(stream.chunks(2))
    assert len({chunk.place for chunk in whole}) == len(whole)
    for index, (place, _) in enumerate(whole):
        rest = list(stream.chunks(2, place))
        assert [chunk.place for chunk in rest] == [chunk.place for chunk in whole[index:]]
        for chunk, expected in zip(rest, whole[index:], strict=True):
            assert torch.equal(chunk.contexts, expected.contexts)


def test_a_stream_holds_out_its_first_contexts(tiny_gpt2: LanguageModel) -> None:
    packed = pack_contexts(TEXTS * 20, tiny_gpt2, 16)
    stream = ContextStream(lambda: TEXTS * 20, tiny_gpt2, 16, TextsConfig(held_out_contexts=5))
    assert torch.equal(stream.head(), packed[:5])
    assert torch.equal(next(stream.chunks(4)).contexts, packed[5:9])
    with refuses(TextError, 5000):
        ContextStream(lambda: TEXTS, tiny_gpt2, 16, TextsConfig(held_out_contexts=5000)).head()
    with refuses(TextError):
        list(ContextStream(lambda: ["one"], tiny_gpt2, 16, TextsConfig(held_out_contexts=0)).chunks(4))


def test_a_stream_reads_texts_only_as_far_as_it_needs_them(tiny_gpt2: LanguageModel) -> None:
    reads: list[int] = []
    """Number of texts read, each time that the texts are opened."""

    def endless() -> Iterator[str]:
        reads.append(0)
        while True:
            reads[-1] += 1
            yield TEXTS[0]

    chunks = ContextStream(endless, tiny_gpt2, 16, TextsConfig(held_out_contexts=0)).chunks(2)
    for _ in range(3):
        next(chunks)
    assert max(reads) <= 64


def test_a_stream_ends_after_max_contexts(tiny_gpt2: LanguageModel) -> None:
    packed = pack_contexts(TEXTS * 20, tiny_gpt2, 16)
    stream = ContextStream(lambda: TEXTS * 20, tiny_gpt2, 16, TextsConfig(held_out_contexts=5, max_contexts=7))
    chunks = list(stream.chunks(3))
    assert torch.equal(torch.cat([chunk.contexts for chunk in chunks]), packed[5:12])
    rest = torch.cat([chunk.contexts for chunk in stream.chunks(3, chunks[1].place)])
    assert torch.equal(rest, packed[8:12])


def test_a_tenth_of_a_few_contexts_is_held_out_and_a_very_short_text_fills_ten(tiny_gpt2: LanguageModel) -> None:
    packed = pack_contexts(TEXTS * 20, tiny_gpt2, 16)
    assert len(ContextStream(lambda: TEXTS * 20, tiny_gpt2, 16, TextsConfig()).head()) == len(packed) // 10
    short = ContextStream(lambda: TEXTS[:2], tiny_gpt2, 16, TextsConfig())
    whole = pack_contexts(TEXTS[:2], tiny_gpt2, 16)
    assert torch.equal(torch.cat([short.head(), *(chunk.contexts for chunk in short.chunks(4))]), whole)
    assert whole.shape[1] < 16


def test_a_few_short_texts_give_ten_short_contexts(tiny_gpt2: LanguageModel, caplog: pytest.LogCaptureFixture) -> None:
    contexts = pack_contexts(TEXTS, tiny_gpt2, 64)
    assert contexts.shape[0] >= 10
    assert "shortened" in caplog.text


def test_packing_stops_reading_after_max_contexts(tiny_gpt2: LanguageModel) -> None:
    texts_read = 0

    def endless():
        nonlocal texts_read
        while True:
            texts_read += 1
            yield TEXTS[0]

    assert pack_contexts(endless(), tiny_gpt2, 16, max_contexts=5).shape == (5, 16)
    assert texts_read <= 64


@pytest.mark.parametrize(
    ("texts", "named"),
    [([], 4), (["", "  \n"], 4), ("one string", "list"), (iter([3]), "int")],
)
def test_texts_that_are_too_short_or_of_the_wrong_type_are_refused(
    tiny_gpt2: LanguageModel, texts: object, named: object
) -> None:
    with refuses(TextError, named):
        pack_contexts(texts, tiny_gpt2, 16)


def test_packed_tokens_are_integers_of_the_vocabulary(tiny_gpt2: LanguageModel) -> None:
    contexts = pack_contexts(TEXTS * 20, tiny_gpt2, 16)
    assert contexts.dtype == torch.long
    assert int(contexts.max()) < tiny_gpt2.vocab_size
