"""A transcoder in the layout of Llama Scope computes what its package computes with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from open_clt.errors import CheckpointError
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.load import load_transcoder
from tests.refusals import refuses
from tests.transcoders.formats.written_by_llamascope import (
    HOOKS,
    of_llamascope,
    of_llamascope_layers,
    write_llamascope,
    write_llamascope_layers,
)
from tests.transcoders.formats.written_layouts import random_inputs


@pytest.mark.parametrize("memory_limit", [None, 1], ids=["in memory", "in files"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sparsity_include_decoder_norm": False, "norm_activation": "inference"},
        {"act_fn": "relu"},
        {"act_fn": "topk"},
        {"act_fn": "topk", "sparsity_include_decoder_norm": False},
        {"act_fn": "layertopk"},
        {"act_fn": "layertopk", "sparsity_include_decoder_norm": False},
    ],
    ids=str,
)
def test_it_computes_what_the_equations_say(tmp_path: Path, settings: dict[str, Any], memory_limit: int | None) -> None:
    tensors = write_llamascope(tmp_path, **settings)
    transcoder, inputs = load_transcoder(tmp_path, memory_limit=memory_limit), random_inputs()
    expected = of_llamascope(tensors, inputs, **settings)
    with torch.no_grad():
        torch.testing.assert_close(transcoder(inputs).reconstruction, expected, atol=1e-4, rtol=1e-4)
    config = transcoder.config
    assert (config.input_hook, config.target_hook) == ("ln2.hook_normalized", "hook_mlp_out")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sae_type": "lorsa"}, "lorsa"),
        ({"act_fn": "batchtopk"}, "batchtopk"),
        ({"norm_activation": "token-wise"}, "token-wise"),
        ({"hook_points_in": HOOKS["hook_points_in"][1:]}, "blocks.1.ln2.hook_normalized"),
        ({"hook_points_in": HOOKS["hook_points_in"][::-1]}, "blocks.2.ln2.hook_normalized"),
        ({"hook_points_out": None}, "hook_points_out"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_expressed_are_refused(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    write_llamascope(tmp_path, **settings)
    with refuses(CheckpointError, tmp_path, named):
        load_transcoder(tmp_path)


def test_a_feature_that_writes_nothing_is_never_active(tmp_path: Path) -> None:
    write_llamascope(tmp_path)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    tensors["W_D.2"][2, 3] = 0
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    transcoder = load_transcoder(tmp_path)
    assert isinstance(transcoder, CrossLayerTranscoder)
    features = transcoder.encode(100 * random_inputs())[2].dense()
    assert not features[:, 3].any()
    assert features.any()


@pytest.mark.parametrize("memory_limit", [None, 1], ids=["in memory", "in files"])
@pytest.mark.parametrize(
    ("settings", "bias"),
    [
        ({}, True),
        ({"act_fn": "topk", "sae_type": "transcoder"}, False),
        ({"sparsity_include_decoder_norm": False}, True),
    ],
    ids=str,
)
def test_transcoders_of_one_layer_each(
    tmp_path: Path, settings: dict[str, Any], bias: bool, memory_limit: int | None
) -> None:
    layers = write_llamascope_layers(tmp_path, bias=bias, **settings)
    transcoder, inputs = load_transcoder(tmp_path, memory_limit=memory_limit), random_inputs()
    with torch.no_grad():
        found = transcoder(inputs).reconstruction
    torch.testing.assert_close(found, of_llamascope_layers(layers, inputs, **settings), atol=1e-4, rtol=1e-4)
    assert transcoder.config.input_hook == "ln2.hook_normalized"
    assert transcoder.config.reach_of(0) == 1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sae_type": "lorsa"}, "lorsa"),
        ({"act_fn": "relu"}, "act_fn"),
        ({"hook_point_in": "blocks.0.hook_resid_mid"}, "blocks.0.hook_resid_mid"),
        ({"hook_point_in": 1}, "hook_point_in"),
    ],
    ids=str,
)
def test_layers_that_do_not_belong_together_are_refused(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    write_llamascope_layers(tmp_path)
    path = tmp_path / "layer1_transcoder_8x_k4" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with refuses(CheckpointError, tmp_path, named):
        load_transcoder(tmp_path)


def test_topk_across_layers_of_transcoders_per_layer_is_refused(tmp_path: Path) -> None:
    write_llamascope_layers(tmp_path, act_fn="layertopk")
    with refuses(CheckpointError, tmp_path, "'layertopk'"):
        load_transcoder(tmp_path)


def test_an_encoder_with_a_gate_is_refused(tmp_path: Path) -> None:
    write_llamascope_layers(tmp_path)
    path = tmp_path / "layer1_transcoder_8x_k4" / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"W_E_glu": tensors["W_E"].clone()}, path)
    with refuses(CheckpointError, tmp_path, "W_E_glu"):
        load_transcoder(tmp_path)
