"""Save, load: identical bits. Anything else: one clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from open_clt.config import (
    BatchTopKConfig,
    CrossLayerConfig,
    JumpReLUConfig,
    NonlinearityConfig,
    ReLUConfig,
    TopKConfig,
)
from open_clt.errors import CheckpointError, ConfigError
from open_clt.models.architectures import OwnArchitecture, make_transcoder
from open_clt.models.checkpoint import load_transcoder, read_record, save_transcoder
from open_clt.models.circuit_tracer import load_circuit_tracer, save_circuit_tracer
from open_clt.models.conversion import convert_to_jumprelu
from open_clt.models.cross_layer import CrossLayerTranscoder
from tests.architectures import architecture, random_architecture
from tests.models.test_cross_layer import NONLINEARITIES, make, warm
from tests.training.own import Muffled


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
    with pytest.raises(CheckpointError, match="convert"):
        save_circuit_tracer(make(TopKConfig(k=5)), tmp_path)


def test_transforms_cannot_be_written_in_circuit_tracers_layout(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="MOLT"):
        save_circuit_tracer(random_architecture(architecture("molt")), tmp_path)


def _truncate(directory: Path) -> None:
    path = directory / "transcoder.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _rewrite(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _reshape(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())["transcoder"]
    _rewrite(directory, transcoder={**config, "n_features": 61})


def _misspell(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())["transcoder"]
    _rewrite(directory, transcoder={**config, "n_feature": 60})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "truncated"),
        (_reshape, "shape"),
        (_misspell, "did you mean 'n_features'"),
        (lambda d: _rewrite(d, format="other"), "another program"),
        (lambda d: _rewrite(d, format_version=99), "update OpenCLT"),
        (lambda d: (d / "config.json").write_text("{"), "JSON"),
        (lambda d: (d / "config.json").unlink(), r"no config\.json"),
        (lambda d: (d / "transcoder.safetensors").unlink(), "missing"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_one_clear_error(damage, message: str, tmp_path: Path) -> None:
    save_transcoder(make(TopKConfig(k=5)), tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_transcoder(tmp_path)


def test_a_directory_of_another_program_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="circuit-tracer"):
        load_circuit_tracer(tmp_path)


def test_a_config_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="reach is 9"):
        CrossLayerConfig(n_layers=4, n_features=8, d_model=2, reach=9)
    with pytest.raises(ValueError, match="k is 16"):
        CrossLayerTranscoder(CrossLayerConfig(n_layers=4, n_features=8, d_model=2))


MUFFLED = OwnArchitecture("tests.training.own.Muffled", {"share": 0.25})


def muffled() -> tuple[Muffled, CrossLayerTranscoder]:
    """A transcoder of a user's own class, and one of ours with the same tensors, which computes something else."""
    ours = make(TopKConfig(k=5))
    own = make_transcoder(ours.config, own=MUFFLED)
    assert isinstance(own, Muffled)
    own.load_state_dict(ours.state_dict())
    return own.eval(), ours


def test_a_class_of_ones_own_is_the_class_that_is_loaded_again(tmp_path: Path) -> None:
    (own, ours), inputs = muffled(), torch.randn(9, 4, 8)
    converted = convert_to_jumprelu(own, inputs, inputs).transcoder
    assert isinstance(converted, Muffled)
    for name, saved in {"as it is": own, "folded": own.folded(), "converted": converted}.items():
        loaded = load_transcoder(save_transcoder(saved, tmp_path / name))
        assert type(loaded) is Muffled
        assert torch.equal(loaded(inputs).reconstruction, saved(inputs).reconstruction), name
    assert (own(inputs).reconstruction - ours(inputs).reconstruction).abs().max() > 0.1


def test_what_is_no_class_of_ones_own_is_read_by_older_versions(tmp_path: Path) -> None:
    content = json.loads((save_transcoder(make(TopKConfig(k=5)), tmp_path) / "config.json").read_text())
    assert content["format_version"] == 2
    assert "architecture" not in content
    own = json.loads((save_transcoder(muffled()[0], tmp_path) / "config.json").read_text())
    assert own["format_version"] == 3  # an older one would take it for a class of ours


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"class_path": "gone.Mine", "init_args": {}}, r"'gone\.Mine' cannot be imported: No module named 'gone'"),
        ({"class_path": "tests.training.own.Gone", "init_args": {}}, "'tests.training.own.Gone' cannot be imported"),
        ({"class_path": "Mine", "init_args": {}}, "'Mine' cannot be imported"),
        ({"class_path": "os.system", "init_args": {}}, r"'os\.system' is no class of Transcoders"),
        ({"class_path": "pathlib.Path", "init_args": {}}, r"'pathlib\.Path' is no class of Transcoders"),
        ({"class_path": MUFFLED.class_path, "init_args": {"colour": 1}}, "Muffled cannot be made with init_args"),
        ({"class_path": MUFFLED.class_path}, "names no class of its architecture"),
        ("Mine", "names no class of its architecture"),
    ],
)
def test_a_class_that_cannot_be_had_is_one_clear_error(said: object, message: str, tmp_path: Path) -> None:
    path = save_transcoder(muffled()[0], tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architecture": said}))
    with pytest.raises(CheckpointError, match=message) as raised:
        load_transcoder(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_class_of_ones_own_cannot_be_written_in_circuit_tracers_layout(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Muffled"):
        save_circuit_tracer(muffled()[0], tmp_path)


def test_what_no_checkpoint_could_say_is_refused_before_it_is_trained() -> None:
    config = make(TopKConfig(k=5)).config
    with pytest.raises(ConfigError, match="not JSON serializable"):
        make_transcoder(config, own=OwnArchitecture(MUFFLED.class_path, {"share": torch.ones(())}))
