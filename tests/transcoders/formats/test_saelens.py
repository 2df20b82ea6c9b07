"""Transcoders of SAELens compute what its equations say; what cannot be expressed is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.cli import main
from open_clt.errors import CheckpointError
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.load import load_transcoder
from tests.refusals import refuses
from tests.transcoders.formats.written_by_saelens import folder_of, of_saelens, write_saelens
from tests.transcoders.formats.written_layouts import random_inputs

IN_MEMORY_AND_NOT = pytest.mark.parametrize("memory_limit", [None, 1], ids=["in memory", "in files"])


def edit(folder: Path, layer: int, **settings: Any) -> Path:
    """Change settings of the config of a layer, and return its path."""
    path = folder_of(folder, layer) / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return path


@IN_MEMORY_AND_NOT
@pytest.mark.parametrize(
    "architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_it_computes_what_the_equations_say(tmp_path: Path, architecture: str, memory_limit: int | None) -> None:
    layers = write_saelens(tmp_path, architecture=architecture)
    transcoder = load_transcoder(tmp_path, memory_limit=memory_limit)
    assert isinstance(transcoder, CrossLayerTranscoder)
    expected = of_saelens(layers, random_inputs())
    torch.testing.assert_close(transcoder(random_inputs()).reconstruction, expected, atol=1e-5, rtol=1e-4)
    config = transcoder.config
    assert (config.reach, config.skip) == (1, "skip" in architecture)
    hooks = (config.input_hook, config.target_hook)
    assert (hooks, config.language_model) == (("ln2.hook_normalized", "hook_mlp_out"), "gpt2")


def test_a_pattern_selects_one_of_two_sets(tmp_path: Path) -> None:
    layers = write_saelens(tmp_path)
    for layer in range(3):
        shutil.copytree(folder_of(tmp_path, layer), tmp_path / f"other_{layer}")
    with refuses(CheckpointError, tmp_path, "layer 0"):
        load_transcoder(tmp_path)
    expected = of_saelens(layers, random_inputs())
    found = load_transcoder(f"{tmp_path}/*_transcoder")(random_inputs()).reconstruction
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_folder_of_the_first_layer_is_a_transcoder_of_one_layer(tmp_path: Path) -> None:
    layers = write_saelens(tmp_path)
    found = load_transcoder(folder_of(tmp_path, 0))(random_inputs()[:, :1]).reconstruction
    torch.testing.assert_close(found, of_saelens(layers[:1], random_inputs()[:, :1]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", [1, 2])
def test_a_folder_of_a_later_layer_alone_is_refused(tmp_path: Path, layer: int) -> None:
    write_saelens(tmp_path)
    with refuses(CheckpointError, folder_of(tmp_path, layer), f"layer {layer}", "layer 0", "folder for each layer"):
        load_transcoder(folder_of(tmp_path, layer))


def test_a_missing_layer_is_refused(tmp_path: Path) -> None:
    write_saelens(tmp_path)
    shutil.rmtree(folder_of(tmp_path, 1))
    with refuses(CheckpointError, tmp_path, "layer 1"):
        load_transcoder(tmp_path)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_folder_without_one_of_its_files_is_refused(tmp_path: Path, name: str) -> None:
    write_saelens(tmp_path)
    (folder_of(tmp_path, 2) / name).unlink()
    with refuses(CheckpointError, folder_of(tmp_path, 2) / name):
        load_transcoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architecture", "topk"),
        ("apply_b_dec_to_input", True),
        ("normalize_activations", "layer_norm"),
        ("normalize_activations", "expected_average_only_in"),
        ("reshape_activations", "hook_z"),
        ("activation_fn", "gelu"),
    ],
)
def test_a_setting_that_cannot_be_expressed_is_refused(tmp_path: Path, name: str, value: object) -> None:
    write_saelens(tmp_path)
    path = edit(tmp_path, 1, **{name: value})
    with refuses(CheckpointError, path, name, value):
        load_transcoder(tmp_path)


@pytest.mark.parametrize("name", ["hook_name", "hook_name_out"])
@pytest.mark.parametrize("hook", [None, "hook_embed", "blocks." + "1" * 5000 + ".hook_mlp_out"])
def test_a_hook_that_is_not_of_a_block_is_refused(tmp_path: Path, name: str, hook: str | None) -> None:
    write_saelens(tmp_path)
    path = edit(tmp_path, 1)
    metadata = json.loads(path.read_text())["metadata"] | {name: hook}
    edit(tmp_path, 1, metadata=metadata)
    with refuses(CheckpointError, path, name):
        load_transcoder(tmp_path)


def test_layers_of_different_architectures_are_refused(tmp_path: Path) -> None:
    write_saelens(tmp_path / "a")
    write_saelens(tmp_path / "b", architecture="transcoder")
    shutil.rmtree(folder_of(tmp_path / "a", 1))
    shutil.copytree(folder_of(tmp_path / "b", 1), folder_of(tmp_path / "a", 1))
    with refuses(CheckpointError, tmp_path / "a", "1"):
        load_transcoder(tmp_path / "a")


def test_info_names_the_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_saelens(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    assert "saelens" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["hook_head_index", "hook_head_index_out"])
def test_a_transcoder_of_one_head_is_refused(name: str, tmp_path: Path) -> None:
    write_saelens(tmp_path, **{name: 3})
    with refuses(CheckpointError, name, "'3'"):
        load_transcoder(tmp_path)


def test_transcoders_of_several_models_are_refused(tmp_path: Path) -> None:
    write_saelens(tmp_path)
    path = folder_of(tmp_path, 1) / "cfg.json"
    settings = json.loads(path.read_text())
    settings["metadata"]["model_name"] = "pythia"
    path.write_text(json.dumps(settings))
    with refuses(CheckpointError, "'gpt2'", "'pythia'"):
        load_transcoder(tmp_path)
