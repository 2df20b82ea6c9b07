"""Transcoders in the layouts of other tools compute what those tools compute with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from open_clt.config import ReLUConfig
from open_clt.errors import CheckpointError
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer
from open_clt.transcoders.formats.load import LAYOUTS, load_transcoder
from tests.refusals import refuses
from tests.transcoders.formats.written_layouts import (
    of_circuit_tracer_layers,
    of_gemma_scope_2,
    random_inputs,
    write_circuit_tracer_layers,
    write_gemma_scope_2,
)
from tests.transcoders.test_cross_layer import make

IN_MEMORY_AND_NOT = pytest.mark.parametrize("memory_limit", [None, 1], ids=["in memory", "in files"])


def loaded(folder: Path, memory_limit: int | None = None) -> CrossLayerTranscoder:
    transcoder = load_transcoder(folder, memory_limit=memory_limit)
    assert isinstance(transcoder, CrossLayerTranscoder)
    return transcoder


@IN_MEMORY_AND_NOT
@pytest.mark.parametrize(
    ("options", "k"),
    [({}, None), ({"thresholds": True, "skip": True}, None), ({"activation": "topk", "k": 2, "skip": True}, 2)],
    ids=["relu", "jumprelu with skip", "topk with skip"],
)
def test_transcoders_of_circuit_tracer_per_layer(
    tmp_path: Path, options: dict[str, Any], k: int | None, memory_limit: int | None
) -> None:
    layers = write_circuit_tracer_layers(tmp_path, **options)
    transcoder, inputs = loaded(tmp_path, memory_limit), random_inputs()
    expected = of_circuit_tracer_layers(layers, inputs, k=k)
    torch.testing.assert_close(transcoder(inputs).reconstruction, expected, atol=1e-5, rtol=1e-4)
    config = transcoder.config
    assert (config.reach, config.input_hook, config.target_hook) == (1, "mlp.hook_in", "mlp.hook_out")
    assert config.language_model == "Qwen/Qwen3-0.6B"


def test_files_of_layers_that_the_config_names_are_read(tmp_path: Path) -> None:
    names = ["b/layer.safetensors", "a.safetensors", "c.safetensors"]
    layers = write_circuit_tracer_layers(tmp_path, transcoders=names)
    expected = of_circuit_tracer_layers(layers, random_inputs())
    torch.testing.assert_close(loaded(tmp_path)(random_inputs()).reconstruction, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"transcoders": ["https://org/layer.safetensors"]}, "https://org"),
        ({"transcoders": ["../layer_0.safetensors"]}, "../layer_0.safetensors"),
        ({"transcoders": ["/etc/passwd"]}, "/etc/passwd"),
        ({"transcoders": "layer_0.safetensors"}, "list"),
        ({"activation": "topk"}, "k"),
        ({"activation": "gelu"}, "gelu"),
        ({"activation": "jumprelu"}, "jumprelu"),
        ({"model_kind": "sae"}, "sae"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_per_layer_that_cannot_be_expressed_are_refused(
    tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    write_circuit_tracer_layers(tmp_path)
    (tmp_path / "config.yaml").write_text(
        (tmp_path / "config.yaml").read_text() + "".join(f"{name}: {value!r}\n" for name, value in settings.items())
    )
    with refuses(CheckpointError, tmp_path, named):
        load_transcoder(tmp_path)


@IN_MEMORY_AND_NOT
@pytest.mark.parametrize("skip", [False, True])
def test_cross_layer_transcoders_of_gemma_scope_2(tmp_path: Path, skip: bool, memory_limit: int | None) -> None:
    layers = write_gemma_scope_2(tmp_path, skip=skip)
    transcoder, inputs = loaded(tmp_path, memory_limit), random_inputs()
    expected = of_gemma_scope_2(layers, inputs)
    torch.testing.assert_close(transcoder(inputs).reconstruction, expected, atol=1e-5, rtol=1e-4)
    assert (transcoder.config.reach, transcoder.config.input_hook) == (None, "mlp.hook_in")


def test_gemma_scope_2_without_a_layer_is_refused(tmp_path: Path) -> None:
    write_gemma_scope_2(tmp_path)
    (tmp_path / "params_layer_2.safetensors").unlink()
    with refuses(CheckpointError, tmp_path, "layers"):
        load_transcoder(tmp_path)


def write_circuit_tracer(folder: Path) -> None:
    save_circuit_tracer(make(ReLUConfig()), folder)


FILES = {
    "W_enc_1.safetensors": write_circuit_tracer,
    "W_dec_1.safetensors": write_circuit_tracer,
    "layer_1.safetensors": write_circuit_tracer_layers,
    "params_layer_1.safetensors": write_gemma_scope_2,
}


@pytest.mark.parametrize("name", FILES)
def test_copies_of_files_beside_those_of_layers_are_left_out(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path)
    before = load_transcoder(tmp_path)
    for copy in (name.replace("_1", "_1_copy"), name.replace("_1", "_01")):
        (tmp_path / copy).write_bytes((tmp_path / name).read_bytes())
    after = load_transcoder(tmp_path)
    inputs = torch.randn(5, before.config.n_layers, before.config.d_model)
    assert torch.equal(after(inputs).reconstruction, before(inputs).reconstruction)


@pytest.mark.parametrize("name", FILES)
def test_a_tensor_that_a_layout_does_not_have_is_refused(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path)
    save_file({**load_file(tmp_path / name), "W_skip_1": torch.zeros(4, 4)}, tmp_path / name)
    with refuses(CheckpointError, "W_skip_1", tmp_path):
        load_transcoder(tmp_path)


def test_the_table_of_layouts_has_every_layout_and_its_test(repository: Path) -> None:
    text = (repository / "docs" / "layouts.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9-]+)` .* \| `(tests/[^`]+)` \|$", text, re.MULTILINE)
    assert [key for key, _ in rows] == [layout.key for layout in LAYOUTS]
    for _, test in rows:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (repository / file).read_text()
