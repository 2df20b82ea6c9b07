"""A transcoder that the package of a layout wrote or reads computes here what it computes there, also one of ours.

``--peer-python`` names the Python of an environment with one of these packages; the tests of the others are skipped.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from open_clt.config import JumpReLUConfig, NonlinearityConfig, ReLUConfig
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.saelens_writer import save_saelens
from tests.random_transcoders import architecture, random_architecture
from tests.transcoders.formats.written_by_bluelight import D_MODEL, N_LAYERS, write_bluelight

pytestmark = pytest.mark.peer
SCRIPTS = Path(__file__).parent / "peers"


def assert_same_outputs(peer_python: str, package: str, script: str, folder: Path, settings: dict[str, Any]) -> None:
    """Let the package write its outputs, perhaps with the transcoder, and compare with ours, in memory and in files."""
    if subprocess.run([peer_python, "-c", f"import {package}"], capture_output=True).returncode:
        pytest.skip(f"{peer_python} has no package {package}")
    command = [peer_python, str(SCRIPTS / script), str(folder), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = load_file(folder / "results")
    for memory_limit in (None, 1):
        with torch.no_grad():
            found = load_transcoder(folder, memory_limit=memory_limit)(results["inputs"]).reconstruction
        torch.testing.assert_close(found, results["outputs"], atol=1e-5, rtol=1e-5)
    assert results["outputs"].abs().max() > 1


@pytest.mark.parametrize(
    "settings",
    [
        {"act_fn": "jumprelu"},
        {"act_fn": "jumprelu", "sparsity_include_decoder_norm": False, "norm_activation": "inference"},
        {"act_fn": "relu"},
        {"act_fn": "topk"},
        {"act_fn": "topk", "sparsity_include_decoder_norm": False},
        {"act_fn": "layertopk"},
    ],
    ids=str,
)
def test_llamascope(peer_python: str, tmp_path: Path, settings: dict[str, Any]) -> None:
    assert_same_outputs(peer_python, "llamascopium", "writes_llamascope.py", tmp_path, settings)


@pytest.mark.parametrize(
    "settings", [{"act_fn": "jumprelu"}, {"act_fn": "topk"}, {"act_fn": "relu", "use_decoder_bias": False}], ids=str
)
def test_llamascope_layers(peer_python: str, tmp_path: Path, settings: dict[str, Any]) -> None:
    assert_same_outputs(peer_python, "llamascopium", "writes_llamascope_layers.py", tmp_path, settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation_fn": "relu"},
        {"decoder_tying": "per_source", "enable_feature_scale": True, "skip_connection": True},
        {"decoder_tying": "per_target", "enable_feature_scale": True, "enable_feature_offset": True},
    ],
    ids=str,
)
def test_decode_clt(peer_python: str, tmp_path: Path, settings: dict[str, Any]) -> None:
    assert_same_outputs(peer_python, "clt", "writes_decode_clt.py", tmp_path, settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": "relu", "decoder_layout": "output_layer", "bias": False},
        {"activation": "topk", "version": 2, "in_parts": True},
        {"decoder_layout": "output_layer", "version": 2, "in_parts": True},
    ],
    ids=str,
)
def test_bluelight(peer_python: str, tmp_path: Path, settings: dict[str, Any]) -> None:
    write_bluelight(tmp_path, **settings)
    shape = {"n_layers": N_LAYERS, "d_model": D_MODEL}
    assert_same_outputs(peer_python, "inference_clt", "computes_bluelight.py", tmp_path, shape)


@pytest.mark.parametrize("settings", [{"transcode": True}, {"transcode": True, "skip_connection": True}, {}], ids=str)
def test_sparsify(peer_python: str, tmp_path: Path, settings: dict[str, Any]) -> None:
    assert_same_outputs(peer_python, "sparsify", "writes_sparsify.py", tmp_path, settings)


@pytest.mark.parametrize(
    "architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_saelens(peer_python: str, tmp_path: Path, architecture: str) -> None:
    assert_same_outputs(peer_python, "sae_lens", "writes_saelens.py", tmp_path, {"architecture": architecture})


@pytest.mark.parametrize("nonlinearity", [ReLUConfig(), JumpReLUConfig(initial_threshold=0.4)], ids=str)
@pytest.mark.parametrize("kind", ["per layer", "skip"])
def test_what_is_written_for_saelens(
    peer_python: str, tmp_path: Path, kind: str, nonlinearity: NonlinearityConfig
) -> None:
    """The package loads what is written, and computes what the transcoder computes that is not written yet."""
    transcoder = random_architecture(architecture(kind, nonlinearity=nonlinearity))
    config = transcoder.config
    save_saelens(transcoder, tmp_path)
    name = ("" if isinstance(nonlinearity, ReLUConfig) else "jumprelu_") + ("skip_" if kind == "skip" else "")
    settings = {"n_layers": config.n_layers, "d_model": config.d_model, "input_hook": config.input_hook}
    settings["architecture"] = f"{name}transcoder"
    assert_same_outputs(peer_python, "sae_lens", "reads_saelens.py", tmp_path, settings)
    results = load_file(tmp_path / "results")
    with torch.no_grad():
        expected = transcoder(results["inputs"]).reconstruction
    torch.testing.assert_close(results["outputs"], expected, atol=1e-5, rtol=1e-5)
