"""Transcoders in the layout of EleutherAI's sparsify and clt-training compute what their equations say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from open_clt.config import TopKConfig
from open_clt.errors import CheckpointError, ConfigError
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer_layers
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.to_jumprelu import convert_to_jumprelu
from tests.hub.stand_in import serving
from tests.refusals import refuses
from tests.transcoders.formats.written_by_clt_training import of_clt_training, write_clt_training
from tests.transcoders.formats.written_layouts import N_LAYERS, random_inputs


@pytest.mark.parametrize("memory_limit", [None, 1], ids=["in memory", "in files"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cross_layer": 2, "divide_cross_layer": True},
        {"divide_cross_layer": True, "post_encoder_scale": True, "normalize_io": True, "skip_connection": True},
        {"per_source_tied": True, "post_encoder_scale": True},
        {"coalesce_topk": "concat", "skip_connection": True, "normalize_io": True, "post_encoder_scale": True},
        {"coalesce_topk": "per-layer", "skip_connection": True, "divide_cross_layer": True},
        {"coalesce_topk": "per-layer", "cross_layer": 2, "post_encoder_scale": True},
        {"cross_layer": 0, "skip_connection": True},
        {"cross_layer": 1, "normalize_io": True},
        {"cross_layer": 0, "transcode": False, "normalize_io": True},
        {"cross_layer": 0, "added": True, "skip_connection": True, "normalize_io": True},
        {"cross_layer": 0, "added": True, "transcode": False, "normalize_io": True},
        {"added": True, "post_encoder_scale": True, "divide_cross_layer": True},
        {"cross_layer": 1, "added": True},
    ],
    ids=str,
)
def test_it_computes_what_the_equations_say(tmp_path: Path, settings: dict[str, Any], memory_limit: int | None) -> None:
    layers = write_clt_training(tmp_path, **settings)
    transcoder, inputs = load_transcoder(tmp_path, memory_limit=memory_limit), random_inputs()
    with torch.no_grad():
        found = transcoder(inputs).reconstruction
    torch.testing.assert_close(found, of_clt_training(layers, inputs, **settings), atol=1e-4, rtol=1e-4)
    assert transcoder.config.reach_of(0) == max(1, settings.get("cross_layer", N_LAYERS))
    assert isinstance(transcoder.config.nonlinearity, TopKConfig)
    assert transcoder.config.nonlinearity.offsets == settings.get("added", False)


@pytest.mark.parametrize(
    ("settings", "hooks"),
    [
        ({}, ("mlp.hook_in", "mlp.hook_out")),
        ({"transcode": False}, ("mlp.hook_out", "mlp.hook_out")),
        ({"module": ""}, ("hook_resid_pre", "hook_resid_post")),
        ({"module": "", "transcode": False}, ("hook_resid_post", "hook_resid_post")),
    ],
    ids=str,
)
def test_hooks_are_those_of_the_module(tmp_path: Path, settings: dict[str, Any], hooks: tuple[str, str]) -> None:
    write_clt_training(tmp_path, cross_layer=0, aliases=False, **settings)
    config = load_transcoder(tmp_path).config
    assert (config.input_hook, config.target_hook) == hooks


def test_the_config_of_the_run_names_the_model_and_what_is_read(tmp_path: Path) -> None:
    write_clt_training(tmp_path)
    write_clt_training(tmp_path, module="", cross_layer=0)
    names = [f"layers.{layer}.post_attention_layernorm" for layer in range(N_LAYERS)]
    (tmp_path / "config.json").write_text(json.dumps({"model": "meta-llama/Llama-3.2-1B", "hookpoints_in": names}))
    config = load_transcoder(f"{tmp_path}/*.mlp").config
    assert (config.input_hook, config.language_model) == ("hook_resid_mid", "meta-llama/Llama-3.2-1B")
    with refuses(CheckpointError, "'*[0-9]'", "'*[0-9].mlp'"):
        load_transcoder(tmp_path)
    assert load_transcoder(f"{tmp_path}/*[0-9]").config.target_hook == "hook_resid_post"


@pytest.mark.parametrize(
    ("run", "named"),
    [
        ({"hookpoints_in": ["layers.0.input_layernorm"]}, "layers.0.input_layernorm"),
        ({"hookpoints_in": ["layers.1.ln_2", "layers.0.ln_2", "layers.2.ln_2"]}, "layers.1.ln_2"),
        ({"hookpoints_in": 1}, "hookpoints_in"),
        ([], "config.json"),
        (
            {"model": "google/gemma-2-2b", "hookpoints_in": [f"layers.{i}.post_attention_layernorm" for i in range(3)]},
            "post_attention_layernorm",
        ),
    ],
    ids=str,
)
def test_other_inputs_are_refused(tmp_path: Path, run: object, named: str) -> None:
    write_clt_training(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(run))
    with refuses(CheckpointError, tmp_path / "config.json", named):
        load_transcoder(tmp_path)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"activation": "groupmax"}, "'groupmax'"),
        ({"activation": "batchtopk"}, "'batchtopk'"),
        ({"coalesce_topk": "group"}, "'group'"),
        ({"coalesce_topk": "concat", "topk_coalesced": True}, "topk_coalesced"),
        ({"secondary_target_tied": True}, "secondary_target_tied"),
        ({"embed_skip": True}, "embed_skip"),
        ({"gram_lookup": True}, "gram_lookup"),
        ({"transcode": 1}, "transcode"),
        ({"transcode": False}, "n_targets"),
        ({"k": 0}, 0),
        ({"k": "3"}, "'3'"),
        ({"n_targets": "1"}, "'1'"),
        ({"n_targets": 2}, "n_targets"),
        ({"module": ".self_attn"}, "'.self_attn'"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_expressed_are_refused(tmp_path: Path, settings: dict[str, Any], named: object) -> None:
    n_targets = settings.pop("n_targets", None)
    write_clt_training(tmp_path, **settings)
    if n_targets is not None:
        _change(tmp_path / "layers.2.mlp", n_targets=n_targets)
    with refuses(CheckpointError, tmp_path, named):
        load_transcoder(tmp_path)


def _change(folder: Path, **settings: Any) -> None:
    path = folder / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_layers_with_other_settings_are_refused(tmp_path: Path) -> None:
    write_clt_training(tmp_path)
    _change(tmp_path / "layers.1.mlp", k=2)
    with refuses(CheckpointError, tmp_path / "layers.1.mlp" / "cfg.json", "k"):
        load_transcoder(tmp_path)


def test_a_missing_layer_is_refused(tmp_path: Path) -> None:
    write_clt_training(tmp_path)
    (tmp_path / "layers.1.mlp" / "sae.safetensors").unlink()
    with refuses(CheckpointError, tmp_path, "layer 1"):
        load_transcoder(tmp_path)


def test_numbers_that_are_added_after_topk_are_stored_and_are_not_exported_wrongly(tmp_path: Path) -> None:
    layers = write_clt_training(tmp_path / "read", cross_layer=0, added=True)
    transcoder, inputs = load_transcoder(tmp_path / "read"), random_inputs()
    save_transcoder(transcoder, tmp_path / "saved")
    with torch.no_grad():
        found = load_transcoder(tmp_path / "saved")(inputs).reconstruction
        folded = transcoder.folded()(inputs).reconstruction
    expected = of_clt_training(layers, inputs, cross_layer=0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(folded, expected, atol=1e-4, rtol=1e-4)
    with refuses(CheckpointError, "offsets"):
        save_circuit_tracer_layers(transcoder, tmp_path / "exported")
    with refuses(ConfigError, "offsets"):
        convert_to_jumprelu(transcoder, inputs, inputs)


@pytest.mark.parametrize("name", ["post_encs.0", "post_encs.1", "W_skips.1", "gate"])
def test_tensors_that_cannot_be_expressed_are_refused(tmp_path: Path, name: str) -> None:
    write_clt_training(tmp_path, skip_connection=True)
    path = tmp_path / "layers.1.mlp" / "sae.safetensors"
    tensors = load_file(path)
    changed = torch.zeros_like(tensors.get(name, torch.zeros(2)))
    changed.view(-1)[-1] = 1
    save_file(tensors | {name: changed}, path)
    with refuses(CheckpointError, tmp_path, "1", name):
        load_transcoder(tmp_path)


def test_a_transcoder_of_sparsify_has_no_tensors_after_topk(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"cross_layer": 0, "skip_connection": True}
    layers = write_clt_training(tmp_path, **settings)
    for layer in range(N_LAYERS):
        path = tmp_path / f"layers.{layer}.mlp" / "sae.safetensors"
        tensors = load_file(path)
        del tensors["post_enc"]
        save_file(tensors, path)
    inputs = random_inputs()
    with torch.no_grad():
        found = load_transcoder(tmp_path)(inputs).reconstruction
    torch.testing.assert_close(found, of_clt_training(layers, inputs, **settings), atol=1e-4, rtol=1e-4)


def test_the_folder_of_one_layer_is_refused(tmp_path: Path) -> None:
    write_clt_training(tmp_path)
    with refuses(CheckpointError, tmp_path / "layers.1.mlp", "one layer"):
        load_transcoder(tmp_path / "layers.1.mlp")


def test_decoders_that_lack_a_source_are_refused(tmp_path: Path) -> None:
    write_clt_training(tmp_path, coalesce_topk="per-layer")
    path = tmp_path / "layers.2.mlp" / "sae.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"W_dec": tensors["W_dec"][:-1].clone()}, path)
    with refuses(CheckpointError, tmp_path, "W_dec", 17):
        load_transcoder(tmp_path)


@pytest.mark.parametrize("says_inputs", [False, True], ids=["no config of the run", "config of the run"])
def test_one_of_two_sets_on_the_hub_is_read(tmp_path: Path, says_inputs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = write_clt_training(tmp_path / "repository", coalesce_topk="per-layer")
    write_clt_training(tmp_path / "repository", module="", cross_layer=0)
    if says_inputs:
        run = {"hookpoints_in": [f"h.{layer}.ln_2" for layer in range(N_LAYERS)]}
        (tmp_path / "repository" / "config.json").write_text(json.dumps(run))
    inputs = random_inputs()
    with serving({"org/name": tmp_path / "repository"}, monkeypatch, tmp_path / "cache"), torch.no_grad():
        transcoder = load_transcoder("org/name/layers.*.mlp", memory_limit=1)
        found = transcoder(inputs).reconstruction
    expected = of_clt_training(layers, inputs, coalesce_topk="per-layer")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert transcoder.config.input_hook == ("hook_resid_mid" if says_inputs else "mlp.hook_in")
