"""Texts become contexts: nothing is lost but the rest of the last one, and mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from open_clt.activations.language_model import LanguageModel
from open_clt.activations.text import dataset_texts, pack_contexts, read_texts
from open_clt.errors import TextError
from tests.tiny_models import TEXTS

ROWS = [{"text": "one two", "topic": "numbers"}, {"text": "three\nfour", "topic": "more"}]


def test_every_context_begins_with_bos_and_the_rest_is_the_texts_in_order(tiny_gpt2: LanguageModel) -> None:
    contexts = pack_contexts(TEXTS * 20, tiny_gpt2, 16)
    assert contexts.shape[1] == 16
    assert (contexts[:, 0] == tiny_gpt2.bos_token_id).all()
    stream = [token for ids in tiny_gpt2.token_ids(TEXTS * 20) for token in [*ids, tiny_gpt2.eos_token_id]]
    assert contexts[:, 1:].flatten().tolist() == stream[: contexts[:, 1:].numel()]
    assert len(stream) - contexts[:, 1:].numel() < 15


def test_every_context_can_begin_as_a_text_begins(tiny_gpt2: LanguageModel) -> None:
    contexts = pack_contexts(TEXTS * 20, tiny_gpt2, 16, from_start=True)
    beginnings = {tuple(ids[:5]) for ids in tiny_gpt2.token_ids(TEXTS)}
    assert {tuple(row[1:6].tolist()) for row in contexts} == beginnings


def test_contexts_are_no_longer_than_the_model_reads(tiny_gpt2: LanguageModel) -> None:
    assert pack_contexts(TEXTS * 40, tiny_gpt2, 1000).shape[1] == tiny_gpt2.context_length


def test_a_few_short_texts_give_ten_short_contexts(tiny_gpt2: LanguageModel, caplog: pytest.LogCaptureFixture) -> None:
    contexts = pack_contexts(TEXTS, tiny_gpt2, 64)
    assert contexts.shape[0] >= 10
    assert "shortened" in caplog.text


def test_packing_stops_reading_when_it_has_enough(tiny_gpt2: LanguageModel) -> None:
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield TEXTS[0]

    assert pack_contexts(endless(), tiny_gpt2, 16, max_contexts=5).shape == (5, 16)
    assert read <= 64


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "do not fill a context"),
        (["", "  \n"], "do not fill a context"),
        ("one string", "give a list"),
        (iter([3]), "an? int; give strings"),
    ],
)
def test_too_little_or_wrong_text_is_named(tiny_gpt2: LanguageModel, texts: object, message: str) -> None:
    with pytest.raises(TextError, match=message):
        pack_contexts(texts, tiny_gpt2, 16)


def test_texts_are_read_from_text_jsonl_and_parquet(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    (tmp_path / "a.txt").write_text("A whole file.\n\nOne text.", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("\n\n".join(map(json.dumps, ROWS)) + "\n", encoding="utf-8")
    parquet.write_table(Table.from_pylist(ROWS), tmp_path / "c.parquet")
    assert list(read_texts(tmp_path / "a.txt")) == ["A whole file.\n\nOne text."]
    for name in ("b.jsonl", "c.parquet"):
        assert list(read_texts(tmp_path / name)) == ["one two", "three\nfour"]
        assert list(read_texts(str(tmp_path / name), column="topic")) == ["numbers", "more"]
        with pytest.raises(TextError, match=r"no column 'body'; it has text, topic"):
            list(read_texts(tmp_path / name, column="body"))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="There is no file"):
        read_texts(tmp_path / "absent.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TextError, match="no UTF-8 text"):
        read_texts(tmp_path / "binary.txt")
    (tmp_path / "half.jsonl").write_text('{"text": "fine"}\n{"text": ', encoding="utf-8")
    with pytest.raises(TextError, match=r"half\.jsonl, line 2 is no JSON"):
        list(read_texts(tmp_path / "half.jsonl"))
    (tmp_path / "list.jsonl").write_text("[1]\n", encoding="utf-8")
    with pytest.raises(TextError, match="is a JSON list"):
        list(read_texts(tmp_path / "list.jsonl"))
    (tmp_path / "number.jsonl").write_text('{"text": 3}\n', encoding="utf-8")
    with pytest.raises(TextError, match="holds 3, which is no text"):
        list(read_texts(tmp_path / "number.jsonl"))
    (tmp_path / "fake.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(TextError, match="no Parquet file"):
        list(read_texts(tmp_path / "fake.parquet"))


@pytest.mark.parametrize("streaming", [True, False])
def test_a_local_data_set_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    assert list(dataset_texts(str(folder), streaming=streaming)) == ["one two", "three\nfour"]
    with pytest.raises(TextError, match="cannot be loaded"):
        dataset_texts(str(folder), split="nowhere", streaming=streaming)
    with pytest.raises(TextError, match="no column 'body'"):
        list(dataset_texts(str(folder), column="body", streaming=streaming))


def test_an_unreachable_data_set_is_named() -> None:
    with pytest.raises(TextError, match=r"cannot be loaded.*Check its name"):
        dataset_texts("nobody/nothing")


def test_packed_tokens_are_integers_of_the_vocabulary(tiny_gpt2: LanguageModel) -> None:
    contexts = pack_contexts(TEXTS * 20, tiny_gpt2, 16)
    assert contexts.dtype == torch.long
    assert int(contexts.max()) < tiny_gpt2.vocab_size


def test_a_silent_hub_is_named_before_any_library_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TextError, match=r"127\.0\.0\.1:9 does not answer; check the connection"):
        dataset_texts("nobody/nothing")
