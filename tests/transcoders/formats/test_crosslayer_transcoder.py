"""A transcoder in the layout of crosslayer-transcoder computes what that package computes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from open_clt.config import CrossLayerConfig
from open_clt.errors import CheckpointError
from open_clt.transcoders.formats.load import load_transcoder
from tests.refusals import refuses
from tests.transcoders.formats.written_by_crosslayer_transcoder import (
    of_crosslayer_transcoder,
    write_crosslayer_transcoder,
)
from tests.transcoders.formats.written_layouts import random_inputs


@pytest.mark.parametrize("memory_limit", [None, 1], ids=["in memory", "in files"])
@pytest.mark.parametrize(
    ("nonlinearity", "options"),
    [
        ("JumpReLU", {}),
        ("JumpReLU", {"cross": False, "standardizer": "Layerwise"}),
        ("ReLU", {"standardizer": None}),
        ("PerLayerTopK", {"standardizer": "Layerwise", "dtype": torch.bfloat16}),
        ("BatchTopK", {"cross": False}),
        ("PerLayerBatchTopK", {"standardizer": None}),
    ],
    ids=str,
)
def test_it_computes_what_the_equations_say(
    tmp_path: Path, nonlinearity: str, options: dict[str, Any], memory_limit: int | None
) -> None:
    tensors = write_crosslayer_transcoder(tmp_path, nonlinearity=nonlinearity, **options)
    transcoder, inputs = load_transcoder(tmp_path, memory_limit=memory_limit), random_inputs()
    expected = of_crosslayer_transcoder(tensors, inputs, nonlinearity)
    with torch.no_grad():
        torch.testing.assert_close(transcoder(inputs).reconstruction, expected, atol=1e-4, rtol=1e-4)
    assert isinstance(transcoder.config, CrossLayerConfig)
    assert transcoder.config.reach == (None if options.get("cross", True) else 1)
    assert (transcoder.config.input_hook, transcoder.config.target_hook) == ("hook_resid_mid", "hook_mlp_out")


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("nonlinearity", "os.system"),
        ("decoder", "MatryoshkaDecoder"),
        ("input_standardizer", "standardize.SamplewiseInputStandardizer"),
    ],
)
def test_classes_that_are_not_read_are_refused_and_not_imported(tmp_path: Path, part: str, name: str) -> None:
    write_crosslayer_transcoder(tmp_path, parts={part: {"class_path": name, "init_args": {}}})
    with refuses(CheckpointError, tmp_path, part, name.rpartition(".")[2]):
        load_transcoder(tmp_path)


def test_tensors_that_the_config_does_not_explain_are_refused(tmp_path: Path) -> None:
    write_crosslayer_transcoder(tmp_path, parts={"input_standardizer": None})
    with refuses(CheckpointError, tmp_path, "input_standardizer.mean"):
        load_transcoder(tmp_path)


@pytest.mark.parametrize("std", [0.0, -1.0])
def test_standard_deviations_that_cannot_divide_are_refused(tmp_path: Path, std: float) -> None:
    write_crosslayer_transcoder(tmp_path)
    tensors = load_file(tmp_path / "checkpoint.safetensors")
    tensors["input_standardizer.std"][1, 2] = std
    save_file(tensors, tmp_path / "checkpoint.safetensors")
    with refuses(CheckpointError, tmp_path, "input_standardizer.std", std):
        load_transcoder(tmp_path)
