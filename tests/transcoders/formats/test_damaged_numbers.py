"""Any NaN or infinity in the files of any layout is found, and the message names the tensor and its file.

Numbers are found on loading, except in encoders and decoders that stay in their files: there they are found when their
rows are read. It does not matter whether the transcoder uses the number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from open_clt.errors import CheckpointError
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.encoder.sparse_encoder import SparseEncoder
from open_clt.transcoders.formats import stored
from open_clt.transcoders.formats.load import load_transcoder, open_transcoder
from tests.refusals import refuses
from tests.transcoders.formats.every_layout import CASES, IDS
from tests.transcoders.formats.written_by_clt_training import write_clt_training
from tests.transcoders.formats.written_by_llamascope import NORM, write_llamascope
from tests.transcoders.formats.written_layouts import write_gemma_scope_2

EVERY_LAYOUT = pytest.mark.parametrize("write", [write for _, write in CASES], ids=IDS)
UNNAMED = {"factors.safetensors"}
"""Files whose tensors may have any names, because nothing in them is used."""


def read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".npz":
        return {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    return load_file(path)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        np.savez(path, **arrays)
    else:
        save_file(dict(tensors), path)


def weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".npz"))


def damaged(folder: Path, index: int, value: float) -> Iterator[tuple[Path, str]]:
    """Put a number into one tensor after the other, at its start or its end, and give the file and the name."""
    for path in weight_files(folder):
        tensors = read(path)
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                wrong = tensor.clone()
                wrong.view(-1)[index] = value
                write_tensors(path, {**tensors, name: wrong})
                yield path, name
        write_tensors(path, tensors)


def use(transcoder: CrossLayerTranscoder) -> None:
    """Encode some inputs, and read the decoders of all features."""
    config = transcoder.config
    inputs = torch.randn(3, config.n_layers, config.d_model, generator=torch.Generator().manual_seed(1))
    transcoder.encode(inputs)
    for layer in range(config.n_layers):
        transcoder.decoder_rows(layer, torch.arange(config.n_features))


@EVERY_LAYOUT
@pytest.mark.parametrize(
    ("memory_limit", "index", "value"),
    [(None, 0, torch.nan), (1, -1, -torch.inf)],
    ids=["nan, in memory", "infinity, in files"],
)
def test_every_number_that_is_not_finite_is_named(
    write: Callable[[Path], object], memory_limit: int | None, index: int, value: float, tmp_path: Path
) -> None:
    write(tmp_path)
    n_damaged = 0
    for path, name in damaged(tmp_path, index, value):
        n_damaged += 1
        with refuses(CheckpointError, name, path, value):
            transcoder = load_transcoder(tmp_path, memory_limit=memory_limit)
            assert memory_limit is not None, f"{name} of {path} was read into memory with {value}"
            assert isinstance(transcoder, CrossLayerTranscoder)
            use(transcoder)
    assert n_damaged > 5
    assert isinstance(load_transcoder(tmp_path, memory_limit=memory_limit), CrossLayerTranscoder)


@EVERY_LAYOUT
def test_an_unknown_tensor_is_refused_from_the_headers(write: Callable[[Path], object], tmp_path: Path) -> None:
    write(tmp_path)
    for path in weight_files(tmp_path):
        tensors = read(path)
        write_tensors(path, {**tensors, "gain": torch.ones(4)})
        if path.name in UNNAMED:
            open_transcoder(tmp_path)
        else:
            with refuses(CheckpointError, "gain", tmp_path):
                open_transcoder(tmp_path)
        write_tensors(path, tensors)
    open_transcoder(tmp_path)


def test_large_tensors_that_nothing_uses_are_not_read_if_tables_stay_in_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gemma_scope_2(tmp_path)
    path = tmp_path / "params_layer_2.safetensors"
    tensors = load_file(path)
    tensors["w_dec"][:, 0] = torch.nan  # what layer 2 would write to layer 0
    save_file(tensors, path)
    monkeypatch.setattr(stored, "_LARGEST_CHECKED", tensors["w_dec"].numel() - 1)
    transcoder = load_transcoder(tmp_path, memory_limit=1)
    assert isinstance(transcoder, CrossLayerTranscoder)
    use(transcoder)
    with refuses(CheckpointError, "w_dec", path):
        load_transcoder(tmp_path)


def test_norms_that_the_package_of_llama_scope_does_not_set_may_be_anything(tmp_path: Path) -> None:
    tensors = write_llamascope(tmp_path, norm_activation="inference")
    assert any(name.startswith(NORM) and bool(tensor.isnan()) for name, tensor in tensors.items())
    load_transcoder(tmp_path)


def test_an_encoder_alone_is_read_beside_decoders_that_are_damaged(tmp_path: Path) -> None:
    """The sparse encoder never reads decoders, not even to check them."""
    write_clt_training(tmp_path)
    path = tmp_path / "layers.0.mlp/sae.safetensors"
    tensors = load_file(path)
    tensors["W_dec"][0] = torch.nan
    save_file(tensors, path)
    SparseEncoder(tmp_path, top_k=2).encode_layer(0, torch.ones(1, 1, 4))
    with refuses(CheckpointError, "W_dec", path):
        load_transcoder(tmp_path)


def test_the_documentation_lists_files_whose_names_are_not_checked(repository: Path) -> None:
    text = (repository / "docs" / "layouts.md").read_text()
    assert all(f"`{name}`" in text for name in UNNAMED)


def test_a_second_copy_that_differs_is_refused(tmp_path: Path) -> None:
    write_clt_training(tmp_path)
    path = tmp_path / "layers.1.mlp/sae.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "b_dec": tensors["b_dec"] + 1}, path)
    with refuses(CheckpointError, "b_dec", "b_decs.0", path):
        load_transcoder(tmp_path)
