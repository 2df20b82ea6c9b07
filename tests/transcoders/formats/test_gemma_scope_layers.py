"""Transcoders per layer of Gemma Scope compute what its equations say, and a pattern selects one of several sets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from open_clt.cli import main
from open_clt.errors import CheckpointError
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.load import load_transcoder
from tests.hub.stand_in import serving
from tests.refusals import refuses
from tests.transcoders.formats.written_by_gemma_scope import (
    of_gemma_scope_layers,
    write_gemma_scope_1,
    write_gemma_scope_2_layers,
)
from tests.transcoders.formats.written_layouts import random_inputs

IN_MEMORY_AND_NOT = pytest.mark.parametrize("memory_limit", [None, 1], ids=["in memory", "in files"])
SMALL, BIG = "width_16k_l0_small", "width_16k_l0_big"


def computes(source: str | Path, expected: Tensor, memory_limit: int | None = None) -> CrossLayerTranscoder:
    """Load a transcoder and assert that it writes ``expected`` for the random inputs."""
    transcoder = load_transcoder(source, memory_limit=memory_limit)
    assert isinstance(transcoder, CrossLayerTranscoder)
    torch.testing.assert_close(transcoder(random_inputs()).reconstruction, expected, atol=1e-5, rtol=1e-4)
    return transcoder


@IN_MEMORY_AND_NOT
@pytest.mark.parametrize("skip", [False, True])
def test_transcoders_of_gemma_scope_2_per_layer(tmp_path: Path, skip: bool, memory_limit: int | None) -> None:
    layers = write_gemma_scope_2_layers(tmp_path, skip=skip)
    config = computes(tmp_path, of_gemma_scope_layers(layers, random_inputs()), memory_limit).config
    assert (config.reach, config.input_hook, config.target_hook) == (1, "mlp.hook_in", "hook_mlp_out")


@pytest.mark.parametrize("end", ["", "/", "/params.safetensors"])
def test_a_pattern_selects_a_set_of_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    layers = {
        name: write_gemma_scope_2_layers(tmp_path, name=name, seed=seed, skip=name.endswith("affine"))
        for seed, name in enumerate([SMALL, BIG, f"{SMALL}_affine"])
    }
    for name, of_set in layers.items():
        computes(f"{tmp_path}/layer_*_{name}{end}", of_gemma_scope_layers(of_set, random_inputs()))
    monkeypatch.chdir(tmp_path)
    computes(f"layer_*_{BIG}", of_gemma_scope_layers(layers[BIG], random_inputs()))


@IN_MEMORY_AND_NOT
@pytest.mark.parametrize("revision", ["", "@main"])
def test_a_pattern_selects_a_set_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str, memory_limit: int | None
) -> None:
    folder = tmp_path / "repository" / "transcoder_all"
    layers = [write_gemma_scope_2_layers(folder, name=name, seed=seed) for seed, name in enumerate([SMALL, BIG])]
    with serving({"org/name": tmp_path / "repository"}, monkeypatch, tmp_path / "cache") as hub:
        source = f"org/name/transcoder_all/layer_*_{SMALL}{revision}"
        computes(source, of_gemma_scope_layers(layers[0], random_inputs()), memory_limit)
        assert hub.bytes_of(SMALL)
        assert not hub.bytes_of(BIG)
        with refuses(CheckpointError, "org/name/transcoder_all", f"layer_*_{BIG}", f"layer_*_{SMALL}"):
            load_transcoder("org/name/transcoder_all")
        with refuses(CheckpointError, "layer_*_width_1m"):
            load_transcoder("org/name/transcoder_all/layer_*_width_1m")


def test_a_directory_of_several_sets_asks_for_one(tmp_path: Path) -> None:
    for number in range(5):
        write_gemma_scope_2_layers(tmp_path, name=f"width_{number}k_l0_small")
    with refuses(CheckpointError, tmp_path, "layer_*_width_0k_l0_small", "2 more"):
        load_transcoder(tmp_path)
    with refuses(CheckpointError, "layer_*_width_9k*"):
        load_transcoder(f"{tmp_path}/layer_*_width_9k*")


def test_a_set_without_one_of_its_layers_is_refused(tmp_path: Path) -> None:
    write_gemma_scope_2_layers(tmp_path)
    (tmp_path / f"layer_1_{SMALL}" / "params.safetensors").unlink()
    with refuses(CheckpointError, tmp_path, "layer 1"):
        load_transcoder(tmp_path)


def test_info_of_a_set_names_its_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gemma_scope_2_layers(tmp_path)
    write_gemma_scope_2_layers(tmp_path, name=BIG)
    assert main(["info", f"{tmp_path}/layer_*_{BIG}"]) == 0
    assert "gemma-scope-2-layers" in capsys.readouterr().out


@IN_MEMORY_AND_NOT
@pytest.mark.parametrize("by_columns", [False, True])
def test_transcoders_of_gemma_scope_1(tmp_path: Path, by_columns: bool, memory_limit: int | None) -> None:
    layers = write_gemma_scope_1(tmp_path, by_columns=by_columns)
    config = computes(tmp_path, of_gemma_scope_layers(layers, random_inputs()), memory_limit).config
    assert (config.reach, config.input_hook, config.target_hook) == (1, "ln2.hook_normalized", "hook_mlp_out")


def test_a_layer_with_several_transcoders_asks_for_a_list(tmp_path: Path) -> None:
    layers = write_gemma_scope_1(tmp_path)
    shutil.copytree(tmp_path / "layer_1/width_16k/average_l0_65", tmp_path / "layer_1/width_16k/average_l0_9")
    with refuses(CheckpointError, tmp_path, "layer 1", "config.yaml"):
        load_transcoder(tmp_path)
    names = [f"layer_{layer}/width_16k/average_l0_{n}/params.npz" for layer, n in enumerate((76, 9, 49))]
    write_config(tmp_path, names)
    computes(tmp_path, of_gemma_scope_layers(layers, random_inputs()))


def write_config(folder: Path, names: list[str]) -> None:
    """A config of circuit-tracer that lists files."""
    config = {
        "model_name": "google/gemma-2-2b", "model_kind": "transcoder_set", "feature_input_hook": "ln2.hook_normalized",
        "feature_output_hook": "hook_mlp_out", "transcoders": names,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@IN_MEMORY_AND_NOT
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("place", ["here", "on the hub"])
def test_a_config_lists_files_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, place: str, memory_limit: int | None
) -> None:
    weights, listing = tmp_path / "weights", tmp_path / "listing"
    if version == 1:
        layers = write_gemma_scope_1(weights)
        names = [f"layer_{layer}/width_16k/average_l0_{n}/params.npz" for layer, n in enumerate((76, 65, 49))]
    else:
        layers = write_gemma_scope_2_layers(weights, skip=True)
        names = [f"layer_{layer}_{SMALL}/params.safetensors" for layer in range(3)]
    write_config(
        listing, [f"hf://org/weights/{name}{end}" for name, end in zip(names, ("", "?revision=v1", ""), strict=True)]
    )
    source = str(listing) if place == "here" else "org/listing"
    with serving({"org/weights": weights, "org/listing": listing}, monkeypatch, tmp_path / "cache") as hub:
        config = computes(source, of_gemma_scope_layers(layers, random_inputs()), memory_limit).config
        assert any(path.startswith("/api/models/org/weights/revision/v1") for path, _ in hub.requests)
    assert config.language_model == "google/gemma-2-2b"


@pytest.mark.parametrize(
    "name",
    [
        "hf://org/weights/../params.npz",
        "hf://org/weights/params.pt",
        "hf://weights",
        "https://org/weights/params.npz",
        "hf://org/weights/params.npz?revision=a&token=b",
    ],
)
def test_other_addresses_in_a_config_are_refused(tmp_path: Path, name: str) -> None:
    write_config(tmp_path, [name])
    with refuses(CheckpointError, tmp_path):
        load_transcoder(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_info_fetches_headers_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], version: int
) -> None:
    weights, listing = tmp_path / "weights", tmp_path / "listing"
    layers = {1: write_gemma_scope_1, 2: write_gemma_scope_2_layers}[version](weights, n_features=200_000)
    names = sorted(str(path.relative_to(weights)) for path in weights.rglob("params.*"))
    write_config(listing, [f"hf://org/weights/{name}" for name in names])
    with serving({"org/weights": weights}, monkeypatch, tmp_path / "cache") as hub:
        for source in ("org/weights", str(listing)):
            assert main(["info", source]) == 0
            assert "200,000" in capsys.readouterr().out
        size = sum(path.stat().st_size for path in weights.rglob("params.*"))
        assert 0 < hub.bytes_of(r"params") < size / 10
        transcoder = load_transcoder(str(listing), memory_limit=1)
        assert transcoder.stored is not None
        chosen = torch.tensor([199_999, 0, 7])
        for encoder, tensors in zip(transcoder.stored.encoders, layers, strict=True):
            expected = next(tensor for name, tensor in tensors.items() if name.lower() == "w_enc")
            assert torch.equal(encoder.rows(chosen), expected.T[chosen])
