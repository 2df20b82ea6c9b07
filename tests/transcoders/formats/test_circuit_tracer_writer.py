"""Export: what is written in circuit-tracer's layouts computes what the transcoder computes, also one in its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from open_clt.commands import convert
from open_clt.config import (
    BatchTopKConfig,
    CrossLayerConfig,
    FixedJumpReLUConfig,
    JumpReLUConfig,
    NonlinearityConfig,
    ReLUConfig,
    TopKConfig,
)
from open_clt.errors import CheckpointError, ConfigError
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer, save_circuit_tracer_layers
from open_clt.transcoders.formats.load import LAYOUTS, load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.transcoder import Transcoder
from tests.random_transcoders import architecture, random_architecture
from tests.refusals import refuses

THRESHOLDS = (ReLUConfig(), JumpReLUConfig(initial_threshold=0.4), FixedJumpReLUConfig(), BatchTopKConfig(k=5))
PER_LAYER = (*THRESHOLDS, TopKConfig(k=5), TopKConfig(k=30), TopKConfig(k=30, keep_negative=True))


def made(name: str, nonlinearity: NonlinearityConfig) -> Transcoder:
    return random_architecture(architecture(name, nonlinearity=nonlinearity))


def inputs(transcoder: Transcoder) -> Tensor:
    shape = (30, transcoder.config.n_layers, transcoder.config.d_model)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same(found: Transcoder, expected: Transcoder) -> None:
    """Outputs and active features are the same; rounding may decide on a feature at its threshold."""
    states = inputs(expected)
    torch.testing.assert_close(found(states).reconstruction, expected(states).reconstruction, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(found.encode(states), expected.encode(states), strict=True):
        torch.testing.assert_close(ours.dense(), theirs.dense(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "in files"])
@pytest.mark.parametrize("nonlinearity", PER_LAYER, ids=str)
@pytest.mark.parametrize("name", ["per layer", "skip", "matryoshka skip"])
def test_one_transcoder_per_layer_round_trips(
    name: str, nonlinearity: NonlinearityConfig, stored: bool, tmp_path: Path
) -> None:
    transcoder = made(name, nonlinearity)
    source = transcoder
    if stored:
        source = load_transcoder(save_transcoder(transcoder, tmp_path / "native"), memory_limit=1)
        assert source.stored is not None
    found = load_transcoder(save_circuit_tracer_layers(source, tmp_path / "exported"))
    assert isinstance(found.config, CrossLayerConfig)
    assert found.config.reach == 1
    assert_same(found, transcoder)


@pytest.mark.parametrize("nonlinearity", THRESHOLDS, ids=str)
@pytest.mark.parametrize("name", ["clt", "reach 2"])
def test_a_cross_layer_transcoder_in_its_files_is_exported(
    name: str, nonlinearity: NonlinearityConfig, tmp_path: Path
) -> None:
    transcoder = made(name, nonlinearity)
    stored = load_transcoder(save_transcoder(transcoder, tmp_path / "native"), memory_limit=1)
    save_circuit_tracer(transcoder, tmp_path / "of memory")
    assert_same(load_transcoder(save_circuit_tracer(stored, tmp_path / "of files")), transcoder)
    for path in (tmp_path / "of memory").glob("*.safetensors"):
        ours, theirs = (load_file(tmp_path / folder / path.name) for folder in ("of files", "of memory"))
        assert all(torch.allclose(ours[name], theirs[name]) for name in theirs)


def test_stored_types_are_kept_where_nothing_is_scaled(tmp_path: Path) -> None:
    transcoder = made("per layer", ReLUConfig()).folded()
    save_circuit_tracer_layers(transcoder.bfloat16(), tmp_path / "first")
    save_circuit_tracer_layers(load_transcoder(tmp_path / "first", memory_limit=1), tmp_path / "second")
    for layer in range(3):
        first, second = (load_file(tmp_path / name / f"layer_{layer}.safetensors") for name in ("first", "second"))
        for name in ("W_enc", "W_dec"):
            assert second[name].dtype == torch.bfloat16
            assert torch.equal(first[name], second[name])


def test_a_later_save_with_fewer_layers_replaces_the_former(tmp_path: Path) -> None:
    save_circuit_tracer_layers(made("per layer", ReLUConfig()), tmp_path)
    fewer = random_architecture(architecture("per layer", n_layers=2, nonlinearity=ReLUConfig()))
    assert_same(load_transcoder(save_circuit_tracer_layers(fewer, tmp_path)), fewer)
    assert sorted(path.name for path in tmp_path.glob("layer_*")) == ["layer_0.safetensors", "layer_1.safetensors"]


@pytest.mark.parametrize("name", ["config.yaml", "layer_0.safetensors", "layer_7.safetensors", "W_enc_0.safetensors"])
def test_files_of_others_are_not_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("model_kind: transcoder_set")
    with refuses(ConfigError, tmp_path / name):
        save_circuit_tracer_layers(made("per layer", ReLUConfig()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_one_layout_does_not_replace_the_other(tmp_path: Path) -> None:
    save_circuit_tracer_layers(made("per layer", ReLUConfig()), tmp_path / "layers")
    save_circuit_tracer(made("clt", ReLUConfig()), tmp_path / "cross")
    with refuses(ConfigError, tmp_path / "layers" / "config.yaml"):
        save_circuit_tracer(made("clt", ReLUConfig()), tmp_path / "layers")
    with refuses(ConfigError, tmp_path / "cross" / "config.yaml"):
        save_circuit_tracer_layers(made("per layer", ReLUConfig()), tmp_path / "cross")


@pytest.mark.parametrize(
    ("name", "nonlinearity", "named"),
    [
        ("clt", ReLUConfig(), "3"),
        ("per layer", TopKConfig(k=3, across_layers=True), "circuit-tracer-layers"),
        ("molt", ReLUConfig(), "Molt"),
    ],
    ids=str,
)
def test_what_the_layout_cannot_hold_is_refused(
    name: str, nonlinearity: NonlinearityConfig, named: str, tmp_path: Path
) -> None:
    with refuses(CheckpointError, named):
        save_circuit_tracer_layers(made(name, nonlinearity), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_threshold_that_a_reader_would_take_for_another_nonlinearity_is_not_written(tmp_path: Path) -> None:
    transcoder: Any = made("per layer", BatchTopKConfig(k=5))
    transcoder.nonlinearity.thresholds[1, 3] = -1
    with refuses(CheckpointError, "Feature 3", "layer 1", -1.0):
        save_circuit_tracer_layers(transcoder, tmp_path / "new")


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    transcoder: Any = made("per layer", ReLUConfig())
    with torch.no_grad():
        transcoder.W_dec[1][3, 0, 2] = torch.inf
    with refuses(CheckpointError, "W_dec", "layer 1"):
        save_circuit_tracer_layers(transcoder, tmp_path / "new")
    assert not list((tmp_path / "new").glob("*.safetensors"))


def test_the_command_offers_the_layouts_that_can_be_written() -> None:
    assert set(convert._LAYOUTS) == {layout.key for layout in LAYOUTS if layout.writer is not None}


@pytest.mark.parametrize("save", [save_circuit_tracer, save_circuit_tracer_layers])
def test_a_language_model_that_is_not_stated_stays_so(save: Callable[..., Path], tmp_path: Path) -> None:
    transcoder = made("per layer", ReLUConfig())
    assert transcoder.config.language_model is None
    assert load_transcoder(save(transcoder, tmp_path)).config.language_model is None
