"""Texts: what is read from files and data sets, and the errors where they cannot be read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from open_clt import files
from open_clt.config import TextsConfig
from open_clt.data.texts import dataset_texts, open_texts, read_texts
from open_clt.errors import ConfigError, TextError
from open_clt.files import limits
from tests.refusals import refuses

ROWS = [{"text": "one two", "topic": "numbers"}, {"text": "three\nfour", "topic": "more"}]


def test_texts_are_read_from_text_jsonl_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A whole file.\n\nOne text.", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("\n\n".join(map(json.dumps, ROWS)) + "\n", encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "c.parquet")
    assert list(read_texts(tmp_path / "a.txt")) == ["A whole file.\n\nOne text."]
    for name in ("b.jsonl", "c.parquet"):
        assert list(read_texts(tmp_path / name)) == ["one two", "three\nfour"]
        assert list(read_texts(str(tmp_path / name), column="topic")) == ["numbers", "more"]
        with refuses(TextError, "body", "text", "topic"):
            list(read_texts(tmp_path / name, column="body"))


def test_settings_of_data_sets_may_stand_beside_a_file(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "one", "body": "two"}', encoding="utf-8")
    config = TextsConfig(source=str(tmp_path / "b.jsonl"), subset="english", split="validation", column="body")
    assert list(open_texts(config)) == ["two"]


def test_a_column_of_a_plain_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    with refuses(ConfigError, "column", "'body'"):
        read_texts(tmp_path / "a.txt", column="body")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with refuses(TextError, "absent.txt"):
        read_texts(tmp_path / "absent.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with refuses(TextError, "binary.txt"):
        read_texts(tmp_path / "binary.txt")
    (tmp_path / "half.jsonl").write_text('{"text": "fine"}\n{"text": ', encoding="utf-8")
    with refuses(TextError, "half.jsonl", "line 2"):
        list(read_texts(tmp_path / "half.jsonl", bad_rows=0))
    (tmp_path / "list.jsonl").write_text("[1]\n", encoding="utf-8")
    with refuses(TextError, "list.jsonl", "line 1"):
        list(read_texts(tmp_path / "list.jsonl"))
    (tmp_path / "number.jsonl").write_text('{"text": 3}\n', encoding="utf-8")
    with refuses(TextError, "number.jsonl", 3):
        list(read_texts(tmp_path / "number.jsonl"))
    (tmp_path / "fake.parquet").write_bytes(b"not parquet at all")
    with refuses(TextError, "fake.parquet"):
        list(read_texts(tmp_path / "fake.parquet"))


GOOD = ["one", "zwei, drei", "four\nlines"]


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Write rows of a column ``text`` in the format that the suffix names."""
    if path.name.endswith(".parquet"):
        parquet.write_table(pyarrow.table({"text": rows}), path)
        return path
    match path.name.removesuffix(".gz").rpartition(".")[2]:
        case "jsonl" | "ndjson":
            content = "".join(json.dumps({"text": row}) + "\n" for row in rows)
        case "json":
            content = json.dumps([{"text": row} for row in rows])
        case suffix:
            file = io.StringIO()
            csv.writer(file, delimiter="\t" if suffix == "tsv" else ",").writerows([("n", "text"), *enumerate(rows)])
            content = file.getvalue()
    data = b"\xef\xbb\xbf" + content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


ROW_FILES = [
    "a.jsonl",
    "a.ndjson",
    "a.json",
    "a.csv",
    "a.tsv",
    "a.CSV",
    "a.jsonl.gz",
    "a.json.gz",
    "a.csv.gz",
    "a.parquet",
]


@pytest.mark.parametrize("name", ROW_FILES)
def test_files_of_rows_are_read_with_a_byte_order_mark_and_packed(name: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / name, GOOD)
    assert list(open_texts(TextsConfig(source=str(path)))) == GOOD
    with refuses(TextError, path, "'body'"):
        list(read_texts(path, column="body"))


def test_a_byte_order_mark_is_not_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfText")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfText"))
    (tmp_path / "c.json").write_bytes(b'\xef\xbb\xbf["Text"]')
    for name in ("a.txt", "b.txt.gz", "c.json"):
        assert list(read_texts(tmp_path / name)) == ["Text"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_rows_without_a_text_are_skipped_and_counted(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_rows(tmp_path / name, [None, "one", None, "two"])
    assert list(read_texts(path)) == ["one", "two"]
    assert "None" in caplog.records[0].getMessage()
    assert [argument for argument in caplog.records[1].args or () if isinstance(argument, int)] == [2, 2]
    assert list(read_texts(path, bad_rows=2)) == ["one", "two"]
    with refuses(TextError, path, 1, "bad_rows"):
        list(read_texts(path, bad_rows=1))


@pytest.mark.parametrize("row", [b'{"text": "\xff"}', b'{"text": "\\ud83d"}', b"\xff\xfe", b"3", b'{"text": 1}', b"{"])
def test_a_damaged_line_is_named_and_does_not_end_the_reading(row: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + row + b'\n{"text": "two"}\n')
    assert list(read_texts(path)) == ["one", "two"]
    with refuses(TextError, path, "line 2"):
        list(read_texts(path, bad_rows=0))


def test_a_row_of_a_csv_file_that_is_not_utf_8_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\none\n\xff\ntwo\n")
    assert list(read_texts(tmp_path / "a.csv")) == ["one", "two"]


def test_a_json_file_that_is_not_an_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "one"}')
    with refuses(TextError, tmp_path / "a.json"):
        list(read_texts(tmp_path / "a.json"))


def test_deep_or_endless_json_and_special_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for row in ('{"text": ' + "[" * 100_000, '{"text": ' + "9" * 10_000 + "}", '{"text": "\\ud800'):
        path.write_text(f'{{"text": "first"}}\n{row}\n')
        texts = read_texts(path, bad_rows=0)
        assert next(texts) == "first"
        with refuses(TextError, path, "line 2"):
            next(texts)
    for name in ("a.txt", "b.jsonl", "a.parquet"):
        os.mkfifo(tmp_path / name)
        with refuses(TextError, tmp_path / name):
            list(read_texts(tmp_path / name))


def test_equal_rows_of_a_parquet_file_take_little_memory(tmp_path: Path) -> None:
    """A file of a kilobyte holds a long text a hundred thousand times."""
    text = "x" * 300_000
    rows = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100_000, pyarrow.int32()), pyarrow.array([text]))
    parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "x.parquet", compression="zstd")
    tracemalloc.start()
    before = pyarrow.total_allocated_bytes()
    texts = read_texts(tmp_path / "x.parquet")
    assert next(texts) == text
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak + pyarrow.total_allocated_bytes() - before < 100 * len(text)


def test_a_parquet_file_with_too_large_a_row_group_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LARGEST_ROW_GROUP", 1000)
    small, large = tmp_path / "small.parquet", tmp_path / "large.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), small)
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "other": [str(i) * 2000 for i in range(2)]}), large)
    assert list(read_texts(small)) == ["a", "b"]
    with refuses(TextError, large, "1,000"):
        list(read_texts(large))


@pytest.mark.parametrize("streaming", [True, False])
def test_texts_of_a_local_data_set_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    assert list(dataset_texts(str(folder), streaming=streaming)) == ["one two", "three\nfour"]
    with refuses(TextError, "nowhere"):
        dataset_texts(str(folder), split="nowhere", streaming=streaming)
    with refuses(TextError, "body"):
        list(dataset_texts(str(folder), column="body", streaming=streaming))


def test_a_source_of_texts_is_a_file_or_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    for source in (folder, folder / "train.jsonl"):
        assert list(open_texts(TextsConfig(source=str(source), column="topic"))) == ["numbers", "more"]
    with refuses(TextError, "body"):
        list(open_texts(TextsConfig(source=str(folder), column="body")))
    with refuses(TextError, "gone.parquet"):
        open_texts(TextsConfig(source="gone.parquet"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"one\n\xff\n"),
        ("a.jsonl", b'{"text": "one"}\n[3]\n'),
        ("a.h5", b"no HDF5"),
        ("a.tar", b"no archive" * 100),
        ("a.csv", b"text,other\n1,2,3,4\n"),
    ],
)
def test_a_damaged_file_of_a_local_data_set_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with refuses(TextError, tmp_path):
        list(dataset_texts(str(tmp_path)))


def test_a_directory_of_too_many_files_is_not_read_as_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_FILES", 3)
    for name in ("a.txt", "folder/b.txt"):
        files.write_text(tmp_path / name, "The cat sat.")
    assert list(open_texts(TextsConfig(source=str(tmp_path)))) == ["The cat sat."] * 2
    files.write_text(tmp_path / "folder" / "c.txt", "A dog.")
    with refuses(TextError, tmp_path):
        open_texts(TextsConfig(source=str(tmp_path)))


def test_a_data_set_without_a_name_is_refused() -> None:
    for name in ("", " "):
        with refuses(TextError, repr(name)):
            dataset_texts(name)


def test_a_column_that_holds_no_texts_or_has_the_name_of_another_is_refused(tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("text,text\none,two\n")
    with refuses(TextError, "two.csv", "'text'"):
        list(read_texts(tmp_path / "two.csv"))
    dates = pyarrow.array([10**9], pyarrow.date32())  # no date of Python is so late
    parquet.write_table(pyarrow.table({"text": dates}), tmp_path / "dates.parquet")
    with refuses(TextError, "dates.parquet", "'text'", "date32"):
        list(read_texts(tmp_path / "dates.parquet"))
    packed = pyarrow.array(["one", "one", None]).dictionary_encode()
    parquet.write_table(pyarrow.table({"text": packed}), tmp_path / "packed.parquet")
    assert list(read_texts(tmp_path / "packed.parquet")) == ["one", "one"]


def test_an_unreachable_data_set_is_refused_by_its_name() -> None:
    for source in ("nobody/nothing", "nosuch.md", "/nowhere/nosuch"):
        with refuses(TextError, source):
            open_texts(TextsConfig(source=source))


def test_a_hub_that_does_not_answer_is_refused_before_a_library_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with refuses(TextError, "127.0.0.1:9"):
        dataset_texts("nobody/nothing")
