"""Ownership: what OpenCLT wrote may be replaced, and everything else is named and left alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from open_clt import files
from open_clt.errors import CheckpointError, ConfigError
from open_clt.transcoders.formats.native import FORMAT
from tests.faults.artefacts import save_in_circuit_tracers_layout, save_native, transcoder_facts
from tests.refusals import refuses


def test_listed_names_are_ours_and_other_names_are_not(tmp_path: Path) -> None:
    for name in ("ours.csv", "theirs.csv"):
        (tmp_path / name).write_text(name)
    files.check_ours(tmp_path, ["absent.csv"])
    files.list_names(tmp_path, ["ours.csv", "later.csv"])
    files.list_names(tmp_path, ["more.csv"])
    assert files.listed_names(tmp_path) == {"ours.csv", "later.csv", "more.csv"}
    files.check_ours(tmp_path, ["ours.csv", "absent.csv"])
    with refuses(ConfigError, tmp_path / "theirs.csv"):
        files.check_ours(tmp_path, ["ours.csv", "theirs.csv"])
    (tmp_path / "link.csv").symlink_to(tmp_path / "nowhere")
    with refuses(ConfigError, tmp_path / "link.csv"):
        files.check_ours(tmp_path, ["link.csv"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_processes_that_list_names_at_the_same_time_lose_none(tmp_path: Path) -> None:
    children: list[int] = []
    for rank in range(4):
        if (child := os.fork()) == 0:
            try:
                for number in range(10):
                    files.list_names(tmp_path, [f"{rank}-{number}.txt"])
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert len(files.listed_names(tmp_path)) == 40


def test_an_artefact_is_ours_if_its_head_states_its_format(tmp_path: Path) -> None:
    assert not files.is_ours(tmp_path, "config.json", FORMAT)
    for content in ('{"model_type": "gpt2"}', '{"format": "other"}', "{", "[1]"):
        (tmp_path / "config.json").write_text(content)
        assert not files.is_ours(tmp_path, "config.json", FORMAT), content
    (tmp_path / "config.json").write_text(json.dumps(FORMAT.header()))
    assert files.is_ours(tmp_path, "config.json", FORMAT)


@pytest.mark.parametrize("names", [["../outside"], ["/etc/passwd"], [3], "name", None], ids=str)
def test_a_manifest_cannot_name_files_outside_its_directory(names: object, tmp_path: Path) -> None:
    (tmp_path / files.MANIFEST).write_text(
        json.dumps({"format": "open-clt-directory", "format_version": 1, "names": names})
    )
    with refuses(CheckpointError, tmp_path / files.MANIFEST):
        files.listed_names(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "transcoder.safetensors"])
def test_a_transcoder_does_not_replace_a_file_of_another_program(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with refuses(ConfigError, tmp_path / name):
        save_native(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "{}"


@pytest.mark.parametrize("name", ["config.yaml", "W_dec_1.safetensors"])
def test_circuit_tracers_layout_does_not_replace_a_file_of_another_program(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("model_kind: cross_layer_transcoder\n")
    with refuses(ConfigError, tmp_path / name):
        save_in_circuit_tracers_layout(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_circuit_tracers_layout_replaces_its_own_files_and_no_others(tmp_path: Path) -> None:
    save_in_circuit_tracers_layout(tmp_path / "former", 1)
    theirs = tmp_path / "former" / "W_enc_mine.safetensors"
    theirs.write_text("mine")
    save_in_circuit_tracers_layout(tmp_path / "former", 2)
    assert theirs.read_text() == "mine"
    save_in_circuit_tracers_layout(tmp_path / "new", 2)
    assert transcoder_facts(tmp_path / "former") == transcoder_facts(tmp_path / "new")
    names = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("former", "new")]
    assert names[0] == sorted([*names[1], theirs.name])
