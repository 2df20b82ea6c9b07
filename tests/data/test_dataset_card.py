"""The card of a data set: it may name files of its directory, and no others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from open_clt.data.texts import dataset_texts
from open_clt.errors import TextError
from tests.refusals import refuses


def write(folder: Path, data_files: object, name: str = "README.md") -> Path:
    """Write a data set with a card that names its files."""
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"text": "one two"}\n')
    card = json.dumps({"configs": [{"config_name": "default", "data_files": data_files}]})  # JSON is YAML, too
    (folder / name).write_text(f"---\n{card}\n---\n\n# Rows\n" if name == "README.md" else card)
    return folder


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "data_files",
    [
        "../secret.jsonl",
        "/dev/zero",
        "https://example.com/x.jsonl",
        ["rows.jsonl", "../secret.jsonl"],
        [{"split": "train", "path": ["../secret.jsonl"]}],
        {"train": "../secret.jsonl"},
    ],
)
def test_a_card_that_names_files_elsewhere_is_refused(data_files: object, name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}\n')
    folder = write(tmp_path / "rows", data_files, name)
    with refuses(TextError, folder):
        dataset_texts(str(folder))


def test_no_card_hides_a_name_behind_odd_ends_of_lines(tmp_path: Path) -> None:
    folder = write(tmp_path / "rows", "rows.jsonl")
    for end in ("\r", "\u2028", "\x85"):
        card = f"---\nnote: 'a{end}---{end}b'\nconfigs:\n- data_files: ../secret.jsonl\n---\n"
        (folder / "README.md").write_bytes(card.encode())
        with refuses(TextError, folder.name):
            dataset_texts(str(folder))


def test_a_card_that_names_its_own_files_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = write(tmp_path / "rows", [{"split": "train", "path": ["rows*.jsonl"]}])
    assert list(dataset_texts(str(folder))) == ["one two"]


@pytest.mark.parametrize(
    "content", ["[" * 900, "a: b: c", "a: " + "b" * 2**20, "configs: &a\n- data_files: &b [*b, ../x]"]
)
def test_a_damaged_card_is_refused(content: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "rows", "rows.jsonl")
    (folder / "README.md").write_text(f"---\n{content}\n---\n")
    with refuses(TextError, folder):
        dataset_texts(str(folder))


def test_special_files_and_programs_in_a_data_set_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "rows", "rows.jsonl")
    os.mkfifo(folder / ".huggingface.yaml")
    with refuses(TextError, folder / ".huggingface.yaml"):
        dataset_texts(str(folder))
    (folder / ".huggingface.yaml").unlink()
    (folder / "rows.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with refuses(TextError, folder, "rows.py"):
        dataset_texts(str(folder))
    assert not (tmp_path / "ran").exists()
