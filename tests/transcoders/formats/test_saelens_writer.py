"""Export to SAELens: what is written computes what the transcoder computes; what SAELens cannot express is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from open_clt.cli import main
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
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.formats.saelens_writer import save_saelens
from open_clt.transcoders.make import make_transcoder
from open_clt.transcoders.transcoder import Transcoder
from tests.commands.mistakes import assert_mistake
from tests.random_transcoders import architecture, random_architecture
from tests.refusals import refuses
from tests.transcoders.formats.test_circuit_tracer_writer import assert_same
from tests.transcoders.formats.written_by_saelens import of_saelens

WRITTEN = (ReLUConfig(), JumpReLUConfig(initial_threshold=0.4), FixedJumpReLUConfig(), BatchTopKConfig(k=5))


def made(name: str, nonlinearity: NonlinearityConfig, **settings: Any) -> Transcoder:
    """A random transcoder; thresholds that may be negative are at least 0."""
    transcoder: Any = random_architecture(architecture(name, nonlinearity=nonlinearity, **settings))
    if isinstance(nonlinearity, FixedJumpReLUConfig):
        transcoder.nonlinearity.thresholds.abs_()
    return transcoder


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "in files"])
@pytest.mark.parametrize("nonlinearity", WRITTEN, ids=str)
@pytest.mark.parametrize("name", ["per layer", "skip", "matryoshka skip"])
def test_transcoders_round_trip(name: str, nonlinearity: NonlinearityConfig, stored: bool, tmp_path: Path) -> None:
    transcoder = made(name, nonlinearity)
    source = transcoder
    if stored:
        source = load_transcoder(save_transcoder(transcoder, tmp_path / "native"), memory_limit=1)
        assert source.stored is not None
    found = load_transcoder(save_saelens(source, tmp_path / "exported"), memory_limit=1 if stored else None)
    assert isinstance(found.config, CrossLayerConfig)
    assert (found.config.reach, found.config.skip) == (1, "skip" in name)
    hooks = (found.config.input_hook, found.config.target_hook, found.config.language_model)
    config = transcoder.config
    assert hooks == (config.input_hook, config.target_hook, config.language_model)
    assert_same(found, transcoder)


@torch.no_grad()
def test_the_files_compute_what_the_equations_say(tmp_path: Path) -> None:
    transcoder = made("skip", JumpReLUConfig(initial_threshold=0.4))
    save_saelens(transcoder, tmp_path)
    layers = [load_file(tmp_path / f"layer_{layer}" / "sae_weights.safetensors") for layer in range(3)]
    inputs = torch.randn(30, 3, transcoder.config.d_model, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(of_saelens(layers, inputs), transcoder(inputs).reconstruction, atol=1e-4, rtol=1e-4)


def test_the_language_model_and_other_hooks_round_trip(tmp_path: Path) -> None:
    config = CrossLayerConfig(
        n_layers=2, d_model=4, n_features=6, reach=1, input_hook="mlp.hook_in", target_hook="mlp.hook_out",
        language_model="org/name", nonlinearity=ReLUConfig(),
    )  # fmt: skip
    found = load_transcoder(save_saelens(make_transcoder(config), tmp_path)).config
    assert (found.input_hook, found.target_hook, found.language_model) == ("mlp.hook_in", "mlp.hook_out", "org/name")


def test_stored_types_are_kept_where_nothing_is_scaled(tmp_path: Path) -> None:
    transcoder = made("per layer", ReLUConfig()).folded()
    save_saelens(transcoder.bfloat16(), tmp_path / "first")
    save_transcoder(load_transcoder(tmp_path / "first", memory_limit=1), tmp_path / "native")
    save_saelens(load_transcoder(tmp_path / "native", memory_limit=1), tmp_path / "second")
    for layer in range(3):
        first, second = (
            load_file(tmp_path / name / f"layer_{layer}" / "sae_weights.safetensors") for name in ("first", "second")
        )
        for name in ("W_enc", "W_dec"):
            assert second[name].dtype == torch.bfloat16
            assert torch.equal(first[name], second[name])


def test_a_later_save_with_fewer_layers_removes_the_folders_of_the_others(tmp_path: Path) -> None:
    save_saelens(made("per layer", ReLUConfig()), tmp_path)
    (tmp_path / "layer_2" / "notes.txt").write_text("mine")
    fewer = made("per layer", ReLUConfig(), n_layers=1)
    assert_same(load_transcoder(save_saelens(fewer, tmp_path)), fewer)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    files = {"layer_0/cfg.json", "layer_0/sae_weights.safetensors", "layer_2/notes.txt"}
    assert left == files | {"layer_0", "layer_2"}


@pytest.mark.parametrize(
    "name",
    [
        "layer_0/cfg.json",
        "layer_7/sae_weights.safetensors",
        "blocks.0.hook_mlp_out/cfg.json",
        "sae_weights.safetensors",
        "layer_1",
    ],
)
def test_files_of_others_are_not_replaced_or_mixed_in(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"architecture": "transcoder"}')
    with refuses(ConfigError, path):
        save_saelens(made("per layer", ReLUConfig()), tmp_path)
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]


def test_a_folder_that_others_put_in_place_of_ours_is_not_replaced(tmp_path: Path) -> None:
    save_saelens(made("per layer", ReLUConfig()), tmp_path)
    path = tmp_path / "layer_1" / "cfg.json"
    path.write_text('{"architecture": "transcoder"}')
    with refuses(ConfigError, path):
        save_saelens(made("per layer", ReLUConfig()), tmp_path)


@pytest.mark.parametrize(
    ("name", "nonlinearity", "named"),
    [
        ("clt", ReLUConfig(), ("3", "reach 1", "saelens")),
        ("reach 2", ReLUConfig(), ("2", "reach 1", "saelens")),
        ("per layer", TopKConfig(k=3), ("TopK", "saelens", "JumpReLU")),
        ("per layer", TopKConfig(k=3, across_layers=True), ("TopK", "saelens", "JumpReLU")),
        ("molt", ReLUConfig(), ("Molt", "saelens")),
    ],
    ids=str,
)
def test_what_the_layout_cannot_hold_is_refused(
    name: str, nonlinearity: NonlinearityConfig, named: tuple[str, ...], tmp_path: Path
) -> None:
    with refuses(CheckpointError, *named):
        save_saelens(made(name, nonlinearity), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("nonlinearity", [FixedJumpReLUConfig(), BatchTopKConfig(k=5)], ids=str)
def test_negative_thresholds_are_refused(nonlinearity: NonlinearityConfig, tmp_path: Path) -> None:
    transcoder: Any = made("per layer", nonlinearity)
    transcoder.nonlinearity.thresholds[1, 3] = -0.5
    with refuses(CheckpointError, "Feature 3", "layer 1", -0.5, "saelens"):
        save_saelens(transcoder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_argument_of_a_wrong_type_is_refused(tmp_path: Path) -> None:
    with refuses(ConfigError, "directory", 3):
        save_saelens(made("per layer", ReLUConfig()), cast(Any, 3))
    with refuses(ConfigError, "transcoder", "save_saelens"):
        save_saelens(cast(Any, "transcoder"), tmp_path)


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    transcoder: Any = made("per layer", ReLUConfig())
    with torch.no_grad():
        transcoder.W_dec[0][3, 0, 2] = torch.inf
    with refuses(CheckpointError, "W_dec", "layer 0"):
        save_saelens(transcoder, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_the_command_converts_to_the_layout_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transcoder = made("skip", ReLUConfig())
    save_transcoder(transcoder, tmp_path / "native")

    def convert(source: str, target: str, layout: str, *options: str) -> list[str]:
        places = ["--transcoder", str(tmp_path / source), "--output", str(tmp_path / target), "--to", layout]
        return ["convert", "--model", str(tmp_path / "absent"), *places, *options]

    assert main(convert("native", "saelens", "saelens")) == 0
    assert main(convert("saelens", "back", "native", "--from", "saelens")) == 0
    assert_same(load_transcoder(tmp_path / "back"), transcoder)
    assert_mistake(capsys, convert("native", "saelens", "saelens"), tmp_path / "saelens", "--overwrite")
    assert main(convert("native", "saelens", "saelens", "--overwrite")) == 0
    assert_same(load_transcoder(tmp_path / "saelens"), transcoder)
