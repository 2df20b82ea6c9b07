"""Readers of texts and prompts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml

from open_clt.data.dataset_card import check_card
from open_clt.data.prompts import read_prompts
from open_clt.data.texts import read_texts
from tests.faults.reading.reader import Reader, nothing


def _write_rows(path: Path) -> None:
    rows = [{"text": "The cat sat."}, {"text": "Ein Hund, natürlich."}, {"text": "line\nbreak"}]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _write_parquet(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["The cat sat.", "A dog."]}), folder / "text.parquet")


def _write_data_set(folder: Path) -> None:
    _write_rows(folder / "rows.jsonl")
    card = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "rows.jsonl"}]}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n# Rows\n")


def _texts(name: str) -> Callable[[Path], Iterable[float]]:
    def read(folder: Path) -> Iterable[float]:
        for text in read_texts(folder / name):
            text.encode()
        return ()

    return read


TEXTS: dict[str, Reader] = {
    "text": Reader(
        lambda folder: (folder / "text.txt").write_text("The cat sat.\nEin Hund, natürlich.\n"),
        _texts("text.txt"),
        "data.texts",
    ),
    "rows": Reader(lambda folder: _write_rows(folder / "text.jsonl"), _texts("text.jsonl"), "data.texts"),
    "columns": Reader(_write_parquet, _texts("text.parquet"), "data.texts"),
    "card of a data set": Reader(_write_data_set, nothing(lambda folder: check_card(folder)), "data.dataset_card"),
    "templates of prompts": Reader(
        lambda folder: (folder / "prompts.json").write_text(
            '{"templates": ["The {animal} sat"], "values": [{"animal": "cat"}, {"animal": "dog"}]}'
        ),
        nothing(lambda folder: read_prompts(folder / "prompts.json")),
        "data.prompts",
    ),
    "prompts": Reader(
        lambda folder: (folder / "prompts.txt").write_text("The cat\nA dog\n"),
        nothing(lambda folder: read_prompts(folder / "prompts.txt")),
        "data.prompts",
    ),
}
