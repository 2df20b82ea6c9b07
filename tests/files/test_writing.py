"""Writing: single files and directories, and what stands in their place stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_clt import files
from open_clt.errors import CheckpointError, ConfigError
from tests.refusals import refuses


def test_writing_to_a_symbolic_link_replaces_the_file_that_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near.json").symlink_to(tmp_path / "far" / "real.json")
    files.write_json(tmp_path / "near.json", {"a": 1})
    assert (tmp_path / "near.json").is_symlink()
    assert files.read_json(tmp_path / "far" / "real.json") == {"a": 1}


def test_a_file_does_not_replace_a_directory(tmp_path: Path) -> None:
    directory = tmp_path / "picture.png"
    directory.mkdir()
    with refuses(ConfigError, directory):
        files.write_text(directory, "text")
    assert list(tmp_path.iterdir()) == [directory]


def test_values_that_json_cannot_hold_are_refused_before_a_file_changes(tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "a.json", {"a": 1})
    for value in (object(), 10**400, 2**63, {(1, 2): 3}):
        with refuses(CheckpointError, path):
            files.write_json(path, {"a": value})
    for settings in ({"strict": True}, {"finite": True}):
        with refuses(CheckpointError, path):
            files.write_json(path, {"a": float("nan")}, **settings)
    with refuses(CheckpointError, path):
        files.write_yaml(path, {"a": "\ud800"}, comment="half a character")
    assert files.read_json(path) == {"a": 1}


def test_a_key_that_a_row_lacks_is_an_empty_cell(tmp_path: Path) -> None:
    path = files.write_rows(tmp_path / "a.csv", [{"step": 1}, {"step": 2, "note": "two\nlines, and a comma"}])
    assert files.read_rows(path) == [{"step": "1", "note": ""}, {"step": "2", "note": "two\nlines, and a comma"}]


@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_a_file_where_a_directory_is_wanted_is_named_and_left_alone(tmp_path: Path, place: str) -> None:
    (tmp_path / "taken").write_text("the user's own")
    for write in (files.make_directory, lambda path: files.write_text(path / "a.txt", "x"), files.check_directory):
        with refuses(ConfigError, str(tmp_path / place)):
            write(tmp_path / place)
    with refuses(ConfigError, str(tmp_path / place)), files.saving(tmp_path / place) as stage:
        stage("a.txt").write_text("x")
    assert (tmp_path / "taken").read_text() == "the user's own"


def test_a_directory_where_a_file_is_wanted_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "taken" / "below").mkdir(parents=True)
    with refuses(ConfigError, str(tmp_path / "taken")):
        files.write_text(tmp_path / "taken", "x")
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "below"]


def test_checking_a_directory_creates_nothing(tmp_path: Path) -> None:
    files.check_directory(tmp_path / "new" / "directory")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a\0b", "half \ud83d"])
def test_a_path_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    for write in (lambda path: files.write_text(path, "text"), lambda path: files.write_text(path / "a.txt", "text")):
        with refuses(ConfigError, "path"):
            write(tmp_path / name)
    for check in (files.check_file, files.check_directory, files.make_directory):
        with refuses(ConfigError, "path"):
            check(tmp_path / name)


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    zeros = torch.zeros(4)
    path = files.write_tensors(
        tmp_path / "a.safetensors", {"a": zeros, "b": zeros, "c": zeros[1:3], "d": torch.ones(2)}
    )
    read = files.read_tensors(path)
    assert {name: tensor.tolist() for name, tensor in read.items()} == {
        "a": [0] * 4,
        "b": [0] * 4,
        "c": [0, 0],
        "d": [1, 1],
    }
