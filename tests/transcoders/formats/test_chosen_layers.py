"""Files of transcoders of some layers: read back as they were, described, and refused by layouts of all layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.config import JumpReLUConfig
from open_clt.errors import CheckpointError, NotFiniteError
from open_clt.transcoders.encoder.sparse_encoder import SparseEncoder
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer, save_circuit_tracer_layers
from open_clt.transcoders.formats.info import transcoder_info
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.formats.saelens_writer import save_saelens
from open_clt.transcoders.transcoder import Transcoder
from tests.random_transcoders import architecture, random_architecture
from tests.refusals import refuses

LAYERS = (2, 5, 8)


def chosen(name: str = "clt", **settings: Any) -> Transcoder:
    return random_architecture(architecture(name, layers=LAYERS, **settings))


@pytest.mark.parametrize("name", ["clt", "matryoshka skip", "molt"])
def test_a_saved_transcoder_has_the_same_layers_and_outputs(tmp_path: Path, name: str) -> None:
    transcoder = chosen(name)
    save_transcoder(transcoder, tmp_path)
    loaded = load_transcoder(tmp_path)
    assert loaded.config == transcoder.config
    inputs = torch.randn(20, 3, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded(inputs).reconstruction, transcoder(inputs).reconstruction)
    assert dict(transcoder_info(tmp_path).rows())["layers"] == "3, which are 2, 5 and 8 of the language model"


def test_weights_that_stay_in_their_files_have_the_same_layers(tmp_path: Path) -> None:
    transcoder = chosen(nonlinearity=JumpReLUConfig(initial_threshold=0.2))
    save_transcoder(transcoder, tmp_path)
    stored = load_transcoder(tmp_path, memory_limit=1)
    assert stored.stored is not None
    inputs = torch.randn(20, 3, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(stored(inputs).reconstruction, transcoder(inputs).reconstruction)


@pytest.mark.parametrize("layers", [[2, 5], [5, 2, 8], [], "all", [2, 5, 8.5], [-1, 5, 8]])
def test_layers_in_a_file_that_do_not_fit_its_tensors_are_refused(tmp_path: Path, layers: Any) -> None:
    save_transcoder(chosen(), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["transcoder"]["layers"] = layers
    (tmp_path / "config.json").write_text(json.dumps(content))
    with refuses(CheckpointError, "layers", "config.json"):
        load_transcoder(tmp_path)


def test_a_transcoder_of_all_layers_is_written_as_before(tmp_path: Path) -> None:
    save_transcoder(random_architecture(architecture("clt")), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["format_version"] == 2
    assert "layers" not in content["transcoder"]


@pytest.mark.parametrize("save", [save_circuit_tracer, save_circuit_tracer_layers, save_saelens])
def test_layouts_of_all_layers_refuse_it(tmp_path: Path, save: Any) -> None:
    transcoder = chosen("per layer", nonlinearity=JumpReLUConfig(initial_threshold=0.2))
    with refuses(CheckpointError, "2, 5 and 8"):
        save(transcoder, tmp_path / "exported")


def test_encoders_are_those_of_layers_of_the_model() -> None:
    transcoder = chosen()
    encoder = SparseEncoder(transcoder, top_k=5)
    assert encoder.layers == LAYERS
    states = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1))
    encoded = encoder.encode_layer(5, states)
    expected = transcoder.encode_layer(states[0], 1).dense()
    torch.testing.assert_close(encoded.activations[0].sum(1), expected.sum(1))
    assert encoder.extract_attribution_features({8: states})[0].feature.layer == 8


def test_errors_name_the_layer_of_the_model() -> None:
    transcoder = chosen()
    inputs = torch.zeros(4, 3, 8)
    inputs[2, 1, 0] = torch.inf
    with refuses(NotFiniteError, "token 2", "layer 5"):
        transcoder(inputs)
