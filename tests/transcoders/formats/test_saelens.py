"""Transcoders of SAELens compute what its equations say; what cannot be expressed is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from open_clt.cli import main
from open_clt.errors import CheckpointError
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.load import load_transcoder
from tests.refusals import refuses
from tests.transcoders.formats.written_by_saelens import folder_of, of_saelens, write_saelens
from tests.transcoders.formats.written_layouts import random_inputs

IN_MEMORY_AND_NOT = pytest.mark.parametrize("memory_limit", [None, 1], ids=["in memory", "in files"])


def edit_metadata(folder: Path, layer: int, **values: Any) -> Path:
    """Change values of the metadata in the config of a layer, and return its path."""
    path = edit(folder, layer)
    return edit(folder, layer, metadata=json.loads(path.read_text())["metadata"] | values)


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


def test_info_says_which_layer_a_folder_of_the_first_layer_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_saelens(tmp_path)
    assert main(["info", str(folder_of(tmp_path, 0))]) == 0
    assert "layer 0" in capsys.readouterr().out


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
    path = edit_metadata(tmp_path, 1, **{name: hook})
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
    edit_metadata(tmp_path, 1, model_name="pythia")
    with refuses(CheckpointError, "'gpt2'", "'pythia'"):
        load_transcoder(tmp_path)


@pytest.mark.parametrize("name", ["d_in", "d_out", "d_sae"])
@pytest.mark.parametrize("size", [5, "4", None, True])
def test_a_size_that_the_tensors_contradict_is_refused(name: str, size: object, tmp_path: Path) -> None:
    write_saelens(tmp_path)
    path = edit(tmp_path, 1, **{name: size})
    with refuses(CheckpointError, path, name, size, "sae_weights.safetensors"):
        load_transcoder(tmp_path)


def test_a_decoder_of_another_width_is_refused(tmp_path: Path) -> None:
    """SAELens can hold outputs of another width than inputs; attribution and replacement cannot use them."""
    write_saelens(tmp_path, architecture="transcoder")
    path = folder_of(tmp_path, 1) / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"W_dec": tensors["W_dec"][:, :2].contiguous()}, path)
    edit(tmp_path, 1, d_out=2)
    with refuses(CheckpointError, tmp_path, "W_dec"):
        load_transcoder(tmp_path)


def test_sizes_may_be_left_out(tmp_path: Path) -> None:
    write_saelens(tmp_path)
    for layer in range(3):
        path = edit(tmp_path, layer)
        settings = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in settings.items() if not name.startswith("d_")}))
    assert load_transcoder(tmp_path).config.n_layers == 3


def nest(folder: Path, *widths: str) -> list[dict[str, Tensor]]:
    """Write equal transcoders in folders within the folder of each layer, one for each width; return their tensors."""
    layers: list[dict[str, Tensor]] = []
    for width in widths:
        layers = write_saelens(folder / width)
        for layer in range(3):
            place = folder / f"layer_{layer}" / width / f"average_l0_{70 + layer}"
            place.parent.mkdir(parents=True)
            folder_of(folder / width, layer).rename(place)
        (folder / width).rmdir()
    return layers


@IN_MEMORY_AND_NOT
def test_folders_of_layers_may_hold_folders(tmp_path: Path, memory_limit: int | None) -> None:
    layers = nest(tmp_path, "width_16k")
    found = load_transcoder(tmp_path, memory_limit=memory_limit)(random_inputs()).reconstruction
    torch.testing.assert_close(found, of_saelens(layers, random_inputs()), atol=1e-5, rtol=1e-4)


def test_a_choice_of_several_folders_in_each_layer_lists_patterns_that_select_one(tmp_path: Path) -> None:
    layers = nest(tmp_path, "width_16k", "width_65k")
    (tmp_path / "layer_1/width_65k/average_l0_71/cfg.json").write_text("damaged")  # settings are not read
    patterns = ("layer_*/width_16k", "layer_*/width_65k")
    with refuses(CheckpointError, tmp_path, "layer 0", *map(repr, patterns)):
        load_transcoder(tmp_path)
    found = load_transcoder(f"{tmp_path}/{patterns[0]}")(random_inputs()).reconstruction
    torch.testing.assert_close(found, of_saelens(layers, random_inputs()), atol=1e-5, rtol=1e-4)
    with refuses(CheckpointError, tmp_path / patterns[1].replace("*", "1")):
        load_transcoder(f"{tmp_path}/{patterns[1]}")


def test_several_folders_of_one_layer_are_named(tmp_path: Path) -> None:
    nest(tmp_path, "width_16k", "width_65k")
    with refuses(CheckpointError, tmp_path / "layer_0", "'width_16k/average_l0_70/'", "'width_65k/average_l0_70/'"):
        load_transcoder(tmp_path / "layer_0")
    found = load_transcoder(tmp_path / "layer_0/width_16k")
    assert found.config.n_layers == 1


def test_a_transcoder_that_one_of_the_folders_holds_within_is_not_read(tmp_path: Path) -> None:
    layers = write_saelens(tmp_path)
    shutil.copytree(folder_of(tmp_path, 1), folder_of(tmp_path, 0) / "checkpoint_1")
    found = load_transcoder(tmp_path)(random_inputs()).reconstruction
    torch.testing.assert_close(found, of_saelens(layers, random_inputs()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("hook", ["ln2.hook_normalized", "hook_mlp_in"])
def test_gemmas_hooks_are_those_that_their_names_in_transformers_mean(hook: str, tmp_path: Path) -> None:
    """Releases of SAELens name the output of Gemma-3's norm before the MLP differently, its weight included."""
    write_saelens(tmp_path)
    for layer in range(3):
        block = f"model.layers.{layer}"
        names = {
            "hook_name": f"blocks.{layer}.{hook}",
            "hf_hook_name": f"{block}.pre_feedforward_layernorm.output",
            "hf_hook_name_out": f"{block}.post_feedforward_layernorm.output",
        }
        edit_metadata(tmp_path, layer, **names)
    config = load_transcoder(tmp_path).config
    assert (config.input_hook, config.target_hook) == ("mlp.hook_in", "hook_mlp_out")


@pytest.mark.parametrize("hf_hook", [None, 3, "model.layers.1.output", "model.norm", "layers." * 100_000])
def test_a_hook_whose_name_in_transformers_is_not_known_keeps_the_name_of_saelens(
    hf_hook: object, tmp_path: Path
) -> None:
    write_saelens(tmp_path)
    edit_metadata(tmp_path, 1, hf_hook_name=hf_hook)
    assert load_transcoder(tmp_path).config.input_hook == "ln2.hook_normalized"


def test_names_of_a_hook_in_different_layers_are_refused(tmp_path: Path) -> None:
    write_saelens(tmp_path)
    hf_hook = "model.layers.2.pre_feedforward_layernorm.output"
    path = edit_metadata(tmp_path, 1, hf_hook_name=hf_hook)
    with refuses(CheckpointError, path, "blocks.1.ln2.hook_normalized", hf_hook):
        load_transcoder(tmp_path)
