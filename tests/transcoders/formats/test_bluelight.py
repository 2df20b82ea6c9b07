"""A transcoder in BluelightAI's layout computes what its equations say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.config import CrossLayerConfig
from open_clt.errors import CheckpointError
from open_clt.transcoders.formats.load import load_transcoder
from tests.refusals import refuses
from tests.transcoders.formats.written_by_bluelight import D_MODEL, N_LAYERS, of_bluelight, write_bluelight


@pytest.mark.parametrize("memory_limit", [None, 1], ids=["in memory", "in files"])
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk", "topk_all"])
@pytest.mark.parametrize(
    ("layout", "options"),
    [("input_layer", {"version": 2, "bias": False}), ("output_layer", {"in_parts": True})],
    ids=str,
)
def test_it_computes_what_the_equations_say(
    tmp_path: Path, layout: str, options: dict[str, Any], activation: str, memory_limit: int | None
) -> None:
    tensors = write_bluelight(tmp_path, decoder_layout=layout, activation=activation, **options)
    transcoder = load_transcoder(tmp_path, memory_limit=memory_limit)
    inputs = torch.randn(20, N_LAYERS, D_MODEL, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = transcoder(inputs).reconstruction
    expected = of_bluelight(tensors, inputs, activation=activation, layout=layout)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert isinstance(transcoder.config, CrossLayerConfig)
    assert (transcoder.config.input_hook, transcoder.config.target_hook) == ("mlp.hook_in", "mlp.hook_out")
    assert transcoder.config.language_model == "qwen"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"activation": "gelu"}, "'gelu'"),
        ({"decoder_layout": "shared"}, "'shared'"),
        ({"input_attr": "self_attn.input"}, "'self_attn.input'"),
        ({"output_attr": None}, "None"),
        ({"layer_indices": [0, 2]}, "layer_indices"),
        ({"layer_indices": [0, 1, 2], "n_layers": 10**12}, "layer_indices"),
        ({"n_layers": "3"}, "'3'"),
        ({"d_latent": 7}, "encoder.W"),
        ({"version": 3}, 3),
        ({"activation": "topk", "k": 0}, 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("version", [1, 2])
def test_settings_that_are_not_read_are_refused(
    tmp_path: Path, changes: dict[str, Any], named: object, version: int
) -> None:
    write_bluelight(tmp_path, **{"version": version, **changes})
    with refuses(CheckpointError, named):
        load_transcoder(tmp_path)


def test_outputs_of_another_width_are_refused(tmp_path: Path) -> None:
    write_bluelight(tmp_path, version=2)
    path = tmp_path / "model_config.json"
    settings = json.loads(path.read_text())
    settings["base_model"]["hook_points"]["output"]["dim"] = 5
    path.write_text(json.dumps(settings))
    with refuses(CheckpointError, path, 4, 5):
        load_transcoder(tmp_path)


@pytest.mark.parametrize(
    ("manifest", "named"),
    [({"format": "other", "files": []}, "layer_weights"), ({"format": "layer_weights", "files": ["../x"]}, "../x")],
    ids=str,
)
def test_a_manifest_of_another_kind_is_refused(tmp_path: Path, manifest: dict[str, Any], named: str) -> None:
    write_bluelight(tmp_path, in_parts=True)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with refuses(CheckpointError, named):
        load_transcoder(tmp_path)


def test_a_file_of_the_manifest_that_is_missing_is_refused(tmp_path: Path) -> None:
    write_bluelight(tmp_path, in_parts=True)
    (tmp_path / "layer_1.safetensors").unlink()
    with refuses(CheckpointError, tmp_path / "layer_1.safetensors"):
        load_transcoder(tmp_path)


def test_a_manifest_of_some_layers_is_refused(tmp_path: Path) -> None:
    write_bluelight(tmp_path, in_parts=True)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_indices": [2, 0, 1]}))
    with refuses(CheckpointError, path, "layer_indices", "[2, 0, 1]"):
        load_transcoder(tmp_path)
