"""Numbers that a data type cannot hold, and scales that cannot be, are refused when a transcoder is saved or read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from open_clt.config import JumpReLUConfig, ReLUConfig
from open_clt.errors import CheckpointError, ConfigError
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.transcoder import Transcoder
from tests.refusals import refuses
from tests.transcoders.test_cross_layer import make


def test_numbers_beyond_float32_are_refused_with_tensor_and_layer(tmp_path: Path) -> None:
    transcoder = make(ReLUConfig())
    save_transcoder(transcoder, tmp_path)
    path = tmp_path / "transcoder.safetensors"
    weights = transcoder.W_enc.detach().double()
    weights[2, 5, 1] = 1e300
    save_file({**transcoder.state_dict(), "W_enc": weights}, path)
    with refuses(CheckpointError, "'W_enc'", "layer 2", path):
        load_transcoder(tmp_path)


def test_numbers_beyond_float16_are_neither_saved_nor_loaded_in_float16(tmp_path: Path) -> None:
    transcoder = make(ReLUConfig())
    transcoder.W_enc.data[1, 0, 0] = 1e5
    with refuses(CheckpointError, "'W_enc'", "layer 1", "inf"):
        save_transcoder(transcoder, tmp_path / "half", dtype=torch.float16)
    save_transcoder(transcoder, tmp_path / "single")
    with refuses(CheckpointError, "'W_enc'", "layer 1", tmp_path / "single"):
        load_transcoder(tmp_path / "single", dtype=torch.float16)
    load_transcoder(tmp_path / "single")


@pytest.mark.parametrize(
    ("tensor", "value", "dtype"),
    [
        ("W_enc", 3.4e38, torch.bfloat16),
        ("standardisation.input_scale", 1e-9, torch.float16),
        ("nonlinearity.log_threshold", 12.0, torch.float16),
    ],
)
def test_numbers_that_become_illegal_in_another_type_are_not_loaded_in_it(
    tensor: str, value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    transcoder = make(JumpReLUConfig())
    transcoder.state_dict()[tensor][1] = value
    save_transcoder(transcoder, tmp_path)
    load_transcoder(tmp_path)
    with refuses(CheckpointError, "layer 1", tensor.partition(".")[2].removeprefix("log_") or tensor, tmp_path):
        load_transcoder(tmp_path, dtype=dtype)


@pytest.mark.parametrize("save", [save_transcoder, save_circuit_tracer])
@pytest.mark.parametrize(
    ("tensor", "value"), [("standardisation.input_scale", 1e-50), ("nonlinearity.log_threshold", 200.0)]
)
def test_numbers_of_float64_that_are_illegal_in_float32_are_not_saved(
    tensor: str, value: float, save: Callable[[Transcoder, Path], Path], tmp_path: Path
) -> None:
    transcoder = make(JumpReLUConfig()).double()
    transcoder.state_dict()[tensor][1] = value
    with refuses(CheckpointError, "layer 1"):
        save(transcoder, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_scales_that_are_not_positive_are_refused_with_layer(value: float, tmp_path: Path) -> None:
    transcoder = make(ReLUConfig())
    save_transcoder(transcoder, tmp_path)
    transcoder.standardisation.input_scale[3] = value
    save_file(transcoder.state_dict(), tmp_path / "transcoder.safetensors")
    for act in (lambda: load_transcoder(tmp_path), lambda: save_transcoder(transcoder, tmp_path / "other")):
        with refuses(CheckpointError, "input_scale", "layer 3", value):
            act()
    assert not (tmp_path / "other").exists()


def test_circuit_tracers_layout_is_not_written_with_weights_that_are_not_finite(tmp_path: Path) -> None:
    transcoder = make(JumpReLUConfig())
    transcoder.b_enc.data[2, 7] = torch.nan
    with refuses(CheckpointError, "'b_enc'", "layer 2", "nan"):
        save_circuit_tracer(transcoder, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_transcoder_that_could_not_be_loaded_is_not_written(tmp_path: Path) -> None:
    transcoder = make(JumpReLUConfig())
    with torch.no_grad():
        next(iter(transcoder.nonlinearity.parameters()))[1, 3] = 100  # the logarithm of a threshold
    with refuses(CheckpointError, "layer 1", "inf"):
        save_transcoder(transcoder, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["", "x", "cpu:nan"])
def test_a_device_that_pytorch_does_not_know_is_refused(device: str) -> None:
    with refuses(ConfigError, "device", repr(device)):
        load_transcoder("missing", device=device)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn])
def test_types_that_are_not_those_of_weights_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    save_transcoder(make(ReLUConfig()), tmp_path)
    with refuses(ConfigError, dtype):
        load_transcoder(tmp_path, dtype=dtype)
    with refuses(ConfigError, dtype):
        save_transcoder(make(ReLUConfig()), tmp_path / "new", dtype=dtype)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("source", ["a" * 5000, "~nobody-has-this-name/clt", " ", "a\nb", "*" * 300])
def test_a_source_that_no_path_can_have_is_one_sentence(source: str) -> None:
    with refuses(CheckpointError):
        load_transcoder(source)
