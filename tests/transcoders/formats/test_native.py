"""Stored transcoders: a loaded one is bit-identical to the saved one, and a damaged one is one clear error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

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
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.circuit_tracer import load_circuit_tracer
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer
from open_clt.transcoders.formats.load import holds_transcoder, load_transcoder
from open_clt.transcoders.formats.native import read_record, save_transcoder
from open_clt.transcoders.make import OwnArchitecture, make_transcoder
from open_clt.transcoders.sparse.codes import SparseFeatures
from open_clt.transcoders.to_jumprelu import convert_to_jumprelu
from tests.random_transcoders import architecture, random_architecture
from tests.refusals import refuses
from tests.training.own import Muffled
from tests.transcoders.test_cross_layer import NONLINEARITIES, make, warm


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["W_enc", "b_dec", "W_dec.0", "nonlinearity.log_threshold"])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(name: str, value: float, tmp_path: Path) -> None:
    transcoder = make(JumpReLUConfig())
    save_transcoder(transcoder, tmp_path)
    transcoder.state_dict()[name].view(-1)[3] = value
    with refuses(CheckpointError, repr(name), value):
        save_transcoder(transcoder, tmp_path)
    load_transcoder(tmp_path)
    save_file(transcoder.state_dict(), tmp_path / "transcoder.safetensors")
    with refuses(CheckpointError, repr(name), tmp_path / "transcoder.safetensors", value):
        load_transcoder(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn, torch.bool])
def test_weights_of_another_type_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    transcoder = make(ReLUConfig())
    save_transcoder(transcoder, tmp_path)
    save_file(
        {**transcoder.state_dict(), "b_enc": transcoder.b_enc.data.to(dtype)}, tmp_path / "transcoder.safetensors"
    )
    with refuses(CheckpointError, "'b_enc'", dtype):
        load_transcoder(tmp_path)


def test_negative_thresholds_of_batchtopk_are_refused_with_layer_and_feature(tmp_path: Path) -> None:
    transcoder = make(BatchTopKConfig(k=2))
    save_transcoder(transcoder, tmp_path / "ours")
    state = transcoder.state_dict()
    state["nonlinearity.thresholds"][2, 5] = -1.5
    save_file(state, tmp_path / "ours" / "transcoder.safetensors")
    with refuses(CheckpointError, 2, 5, -1.5, tmp_path / "ours" / "transcoder.safetensors"):
        load_transcoder(tmp_path / "ours")


@pytest.mark.parametrize("memory_limit", [None, 1])
def test_thresholds_of_any_sign_in_circuit_tracers_layout_stay_what_they_are(
    memory_limit: int | None, tmp_path: Path
) -> None:
    transcoder, inputs = make(FixedJumpReLUConfig()), torch.randn(30, 4, 8)
    assert (stack(transcoder.encode(inputs)) < 0).sum() > 20
    save_circuit_tracer(transcoder, tmp_path / "theirs")
    loaded = load_transcoder(tmp_path / "theirs", memory_limit=memory_limit)
    assert loaded.config.nonlinearity == FixedJumpReLUConfig()
    torch.testing.assert_close(stack(loaded.encode(inputs)), stack(transcoder.encode(inputs)))
    torch.testing.assert_close(loaded(inputs).reconstruction, transcoder(inputs).reconstruction)
    assert torch.equal(loaded.nonlinearity.thresholds, transcoder.nonlinearity.thresholds)


def stack(features: list[SparseFeatures]) -> torch.Tensor:
    return torch.stack([layer.dense() for layer in features], dim=1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_thresholds_that_are_not_finite_are_refused_with_file_tensor_and_feature(value: float, tmp_path: Path) -> None:
    save_circuit_tracer(make(FixedJumpReLUConfig()), tmp_path)
    path = tmp_path / "W_enc_2.safetensors"
    tensors = load_file(path)
    tensors["threshold_2"][5] = value
    save_file(tensors, path)
    with refuses(CheckpointError, "threshold_2", 5, value, path):
        load_transcoder(tmp_path)


def test_a_threshold_of_zero_in_circuit_tracers_layout_is_read_and_saved(tmp_path: Path) -> None:
    save_circuit_tracer(make(JumpReLUConfig()), tmp_path / "theirs")
    path = tmp_path / "theirs" / "W_enc_2.safetensors"
    tensors = load_file(path)
    tensors["threshold_2"].zero_()
    save_file(tensors, path)
    transcoder = load_transcoder(tmp_path / "theirs")
    thresholds = transcoder.nonlinearity.threshold(2)
    assert thresholds is not None
    assert 0 < thresholds.max() < 1e-37
    loaded = load_transcoder(save_transcoder(transcoder, tmp_path / "ours"))
    inputs = torch.randn(5, 4, 8)
    assert torch.equal(loaded(inputs).reconstruction, transcoder(inputs).reconstruction)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=str)
def test_a_loaded_transcoder_gives_identical_outputs(nonlinearity: NonlinearityConfig, tmp_path: Path) -> None:
    transcoder, inputs = make(nonlinearity, reach=2, skip=True), torch.randn(9, 4, 8)
    warm(transcoder, inputs)
    save_transcoder(transcoder, tmp_path, record={"fvu": 0.1})
    loaded = load_transcoder(tmp_path)
    assert loaded.config == transcoder.config
    assert torch.equal(loaded(inputs).reconstruction, transcoder(inputs).reconstruction)
    assert read_record(tmp_path) == {"fvu": 0.1}


def test_thresholds_and_statistics_are_kept(tmp_path: Path) -> None:
    transcoder = make(JumpReLUConfig(initial_threshold=0.7))
    save_transcoder(transcoder, tmp_path, dtype=torch.float16)
    loaded = load_transcoder(tmp_path)
    for name, tensor in transcoder.state_dict().items():
        if not name.startswith("W_"):
            assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("nonlinearity", [ReLUConfig(), JumpReLUConfig(), BatchTopKConfig(k=5)], ids=str)
def test_circuit_tracers_layout_round_trips_with_the_standardisation_folded(
    nonlinearity: NonlinearityConfig, tmp_path: Path
) -> None:
    transcoder, inputs = make(nonlinearity, reach=2), torch.randn(30, 4, 8)
    warm(transcoder, inputs)
    loaded = load_circuit_tracer(save_circuit_tracer(transcoder, tmp_path))
    torch.testing.assert_close(loaded(inputs).reconstruction, transcoder(inputs).reconstruction, atol=1e-4, rtol=1e-4)


def test_topk_cannot_be_written_in_circuit_tracers_layout(tmp_path: Path) -> None:
    with refuses(CheckpointError, "TopK", "JumpReLU"):
        save_circuit_tracer(make(TopKConfig(k=5)), tmp_path)


def test_a_molt_cannot_be_written_in_circuit_tracers_layout(tmp_path: Path) -> None:
    with refuses(CheckpointError, "Molt"):
        save_circuit_tracer(random_architecture(architecture("molt")), tmp_path)


def test_a_skip_path_cannot_be_written_in_circuit_tracers_layout(tmp_path: Path) -> None:
    with refuses(CheckpointError, "skip"):
        save_circuit_tracer(make(ReLUConfig(), skip=True), tmp_path)


def _truncate(directory: Path) -> None:
    path = directory / "transcoder.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _rewrite(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _reshape(directory: Path) -> None:
    _resize(directory, 61)


def _resize(directory: Path, n_features: int) -> None:
    config = json.loads((directory / "config.json").read_text())["transcoder"]
    _rewrite(directory, transcoder={**config, "n_features": n_features})


def _misspell(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())["transcoder"]
    _rewrite(directory, transcoder={**config, "n_feature": 60})


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_truncate, "transcoder.safetensors"),
        (_reshape, "61"),
        (_misspell, "'n_features'"),
        (lambda d: _rewrite(d, format="other"), "config.json"),
        (lambda d: _rewrite(d, format_version=99), "99"),
        (lambda d: _rewrite(d, transcoder=[1]), "[1]"),
        (lambda d: _resize(d, 2**62), str(2**62)),
        (lambda d: (d / "config.json").write_text("{"), "config.json"),
        (lambda d: (d / "config.json").unlink(), "config.json"),
        (lambda d: (d / "transcoder.safetensors").unlink(), "transcoder.safetensors"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_one_clear_error(damage: Callable[[Path], None], named: str, tmp_path: Path) -> None:
    save_transcoder(make(TopKConfig(k=5)), tmp_path)
    damage(tmp_path)
    with refuses(CheckpointError, named, tmp_path):
        load_transcoder(tmp_path)


def test_a_directory_of_an_unknown_layout_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    for directory in (tmp_path, tmp_path / "none"):
        assert not holds_transcoder(directory)
        with refuses(CheckpointError, directory):
            load_transcoder(directory)


@pytest.mark.parametrize("save", [save_transcoder, save_circuit_tracer])
def test_every_layout_is_loaded_by_the_same_function(save: Callable[..., Path], tmp_path: Path) -> None:
    transcoder, inputs = make(JumpReLUConfig(), reach=2), torch.randn(9, 4, 8)
    save(transcoder, tmp_path)
    assert holds_transcoder(tmp_path)
    loaded = load_transcoder(tmp_path, dtype=torch.float64)
    assert loaded.dtype == torch.float64
    assert not loaded.training
    torch.testing.assert_close(
        loaded(inputs.double()).reconstruction.float(), transcoder(inputs).reconstruction, atol=1e-4, rtol=1e-4
    )


def _break_settings(directory: Path) -> None:
    (directory / "config.yaml").write_text("[" * 3000)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda d: (d / "config.yaml").unlink(), "docs/layouts.md"),
        (lambda d: (d / "config.yaml").write_text("- a"), "config.yaml"),
        (lambda d: (d / "config.yaml").write_text("model_kind: other"), "other"),
        (_break_settings, "config.yaml"),
        (lambda d: (d / "W_enc_2.safetensors").unlink(), "W_enc_2.safetensors"),
        (lambda d: [(d / f"{name}_2.safetensors").unlink() for name in ("W_enc", "W_dec")], "W_enc_2.safetensors"),
        (lambda d: (d / "W_dec_1.safetensors").write_bytes(b"12"), "W_dec_1.safetensors"),
        (lambda d: save_file({"other": torch.ones(2)}, d / "W_enc_0.safetensors"), "W_enc_0"),
    ],
)
def test_a_damaged_directory_in_circuit_tracers_layout_is_one_clear_error(
    damage: Callable[[Path], None], named: str, tmp_path: Path
) -> None:
    save_circuit_tracer(make(ReLUConfig()), tmp_path)
    damage(tmp_path)
    with refuses(CheckpointError, named, tmp_path):
        load_transcoder(tmp_path)


def test_a_config_that_contradicts_itself_is_refused() -> None:
    with refuses(ValueError, "reach", 9):
        CrossLayerConfig(n_layers=4, n_features=8, d_model=2, reach=9)
    with refuses(ValueError, "k", 16):
        CrossLayerTranscoder(CrossLayerConfig(n_layers=4, n_features=8, d_model=2))


MUFFLED = OwnArchitecture("tests.training.own.Muffled", {"share": 0.25})


def muffled() -> tuple[Muffled, CrossLayerTranscoder]:
    """A transcoder of a user's own class, and one of ours with the same tensors and other outputs."""
    ours = make(TopKConfig(k=5))
    own = make_transcoder(ours.config, own=MUFFLED)
    assert isinstance(own, Muffled)
    own.load_state_dict(ours.state_dict())
    return own.eval(), ours


def test_a_transcoder_of_a_users_own_class_is_loaded_as_that_class(tmp_path: Path) -> None:
    (own, ours), inputs = muffled(), torch.randn(9, 4, 8)
    converted = convert_to_jumprelu(own, inputs, inputs).transcoder
    assert isinstance(converted, Muffled)
    for name, saved in {"unchanged": own, "folded": own.folded(), "converted": converted}.items():
        loaded = load_transcoder(save_transcoder(saved, tmp_path / name), own_class=Muffled)
        assert type(loaded) is Muffled
        assert torch.equal(loaded(inputs).reconstruction, saved(inputs).reconstruction), name
    assert (own(inputs).reconstruction - ours(inputs).reconstruction).abs().max() > 0.1


def test_our_kinds_are_written_in_version_2_which_older_releases_read(tmp_path: Path) -> None:
    content = json.loads((save_transcoder(make(TopKConfig(k=5)), tmp_path) / "config.json").read_text())
    assert content["format_version"] == 2
    assert "architecture" not in content
    content = json.loads((save_transcoder(muffled()[0], tmp_path) / "config.json").read_text())
    assert content["format_version"] == 3  # an older release would load it as one of our kinds


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ({"class_path": "gone.Mine", "init_args": {}}, "'gone.Mine'"),
        ({"class_path": "tests.training.own.Gone", "init_args": {}}, "'tests.training.own.Gone'"),
        ({"class_path": "Mine", "init_args": {}}, "'Mine'"),
        ({"class_path": "os.system", "init_args": {}}, "'os.system'"),
        ({"class_path": "pathlib.Path", "init_args": {}}, "'pathlib.Path'"),
        ({"class_path": MUFFLED.class_path, "init_args": {"colour": 1}}, "colour"),
        ({"class_path": MUFFLED.class_path}, MUFFLED.class_path),
        ("Mine", "'Mine'"),
    ],
)
def test_a_class_that_cannot_be_imported_or_made_is_one_clear_error(stored: object, named: str, tmp_path: Path) -> None:
    path = save_transcoder(muffled()[0], tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architecture": stored}))
    with refuses(CheckpointError, named) as raised:
        load_transcoder(tmp_path, trust_code=True)
    assert "\n" not in str(raised.value)


def test_a_checkpoint_imports_a_class_only_if_its_code_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger.py").write_text("from tests.training.own import Muffled as Fancy\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = save_transcoder(muffled()[0], tmp_path) / "config.json"
    stored = {"class_path": "stranger.Fancy", "init_args": {"share": 0.75}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "architecture": stored}))
    with refuses(CheckpointError, path, "'stranger.Fancy'"):
        load_transcoder(tmp_path)
    with refuses(ConfigError, "own_class", "Path"):
        load_transcoder(tmp_path, own_class=cast(Any, Path))
    given = load_transcoder(tmp_path, own_class=Muffled)
    assert "stranger" not in sys.modules
    imported = load_transcoder(tmp_path, trust_code=True)
    assert "stranger" in sys.modules
    monkeypatch.delitem(sys.modules, "stranger")
    assert isinstance(given, Muffled)
    assert isinstance(imported, Muffled)
    assert given.share == imported.share == 0.75


def test_a_class_that_cannot_be_imported_is_loaded_if_it_is_given(tmp_path: Path) -> None:
    class Local(CrossLayerTranscoder):
        pass

    inputs = torch.randn(9, 4, 8)
    own = Local(make(TopKConfig(k=5)).config).eval()
    converted = convert_to_jumprelu(own, inputs, inputs).transcoder
    assert type(converted) is Local
    loaded = load_transcoder(save_transcoder(converted, tmp_path), own_class=Local)
    assert type(loaded) is Local
    assert torch.equal(loaded(inputs).reconstruction, converted(inputs).reconstruction)


def test_a_class_that_a_transcoder_does_not_need_is_refused(tmp_path: Path) -> None:
    save_transcoder(make(TopKConfig(k=5)), tmp_path / "native")
    save_circuit_tracer(make(ReLUConfig()), tmp_path / "circuit-tracer")
    for directory in tmp_path.iterdir():
        with refuses(ConfigError, directory, "own_class"):
            load_transcoder(directory, own_class=Muffled)
        load_transcoder(directory, trust_code=True)


def test_a_users_own_class_cannot_be_written_in_circuit_tracers_layout(tmp_path: Path) -> None:
    with refuses(CheckpointError, MUFFLED.class_path):
        save_circuit_tracer(muffled()[0], tmp_path)


def test_arguments_that_a_checkpoint_cannot_hold_are_refused_before_training() -> None:
    config = make(TopKConfig(k=5)).config
    with refuses(ConfigError, MUFFLED.class_path, "share"):
        make_transcoder(config, own=OwnArchitecture(MUFFLED.class_path, {"share": torch.ones(())}))
