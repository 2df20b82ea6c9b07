"""Transcoders that stay in their files are saved and exported block by block, with the numbers of those in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from open_clt import files
from open_clt.config import (
    JumpReLUConfig,
    NonlinearityConfig,
)
from open_clt.errors import CheckpointError
from open_clt.files import StoredTensor
from open_clt.transcoders.formats import folded_layers
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer, save_circuit_tracer_layers
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.formats.saelens_writer import save_saelens
from open_clt.transcoders.transcoder import Transcoder
from tests.random_transcoders import architecture, random_architecture
from tests.refusals import refuses

INPUTS = torch.randn(20, 3, 8, generator=torch.Generator().manual_seed(1))


def made(kind: str = "skip", nonlinearity: NonlinearityConfig | None = None) -> Transcoder:
    return random_architecture(architecture(kind, nonlinearity=nonlinearity or JumpReLUConfig(initial_threshold=0.1)))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """The largest number of weights that may be in memory at once: less than a layer has."""
    monkeypatch.setattr(folded_layers, "_BLOCK_NUMBERS", 100)
    return 100


@pytest.mark.parametrize(
    ("save", "kind"),
    [
        (save_circuit_tracer, "reach 2"),
        (save_circuit_tracer_layers, "skip"),
        (save_saelens, "skip"),
        (save_transcoder, "clt"),
    ],
)
def test_weights_that_stay_in_their_files_are_written_as_those_in_memory(
    save: Callable[[Transcoder, Path], Path],
    kind: str,
    small_blocks: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_transcoder(made(kind), tmp_path / "source")
    save(load_transcoder(tmp_path / "source"), tmp_path / "memory")
    stored = load_transcoder(tmp_path / "source", memory_limit=1)
    read: list[int] = []
    whole = StoredTensor.read
    monkeypatch.setattr(StoredTensor, "read", lambda self: (read.append(self.shape.numel()), whole(self))[1])
    save(stored, tmp_path / "files")
    assert 0 < max(read) <= small_blocks
    names, of_files = (
        sorted(path.relative_to(tmp_path / place) for path in (tmp_path / place).rglob("*"))
        for place in ("memory", "files")
    )
    assert names == of_files
    for name in names:
        if name.suffix == ".safetensors":
            ours, theirs = load_file(tmp_path / "memory" / name), load_file(tmp_path / "files" / name)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_numbers_that_folding_does_not_change_keep_their_type(tmp_path: Path) -> None:
    save_circuit_tracer(made("clt"), tmp_path / "theirs")
    for path in (tmp_path / "theirs").glob("*.safetensors"):
        save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    stored = load_transcoder(tmp_path / "theirs", memory_limit=1)
    save_circuit_tracer(stored, tmp_path / "again")
    save_transcoder(stored, tmp_path / "ours")
    assert load_file(tmp_path / "again" / "W_dec_0.safetensors")["W_dec_0"].dtype == torch.bfloat16
    assert load_file(tmp_path / "ours" / "transcoder.safetensors")["W_enc"].dtype == torch.bfloat16
    expected = load_transcoder(tmp_path / "theirs")(INPUTS).reconstruction
    for name in ("again", "ours"):
        assert torch.equal(load_transcoder(tmp_path / name)(INPUTS).reconstruction, expected)


@pytest.mark.parametrize("save", [save_circuit_tracer, save_transcoder])
def test_a_number_in_the_files_that_is_not_finite_is_not_written(
    save: Callable[[Transcoder, Path], Path], tmp_path: Path
) -> None:
    save_transcoder(made("clt"), tmp_path)
    tensors = load_file(tmp_path / "transcoder.safetensors")
    tensors["W_dec.1"][7] = torch.nan
    save_file(tensors, tmp_path / "transcoder.safetensors")
    with refuses(CheckpointError, "W_dec", "layer 1", "nan"):
        save(load_transcoder(tmp_path, memory_limit=1), tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_tensors_of_several_types_are_written_block_by_block(tmp_path: Path) -> None:
    tensors = {
        "half": torch.arange(7).bfloat16(),
        "long": torch.arange(12).reshape(3, 4),
        "single": torch.randn(5, 2),
        "empty": torch.zeros(0, 3),
    }
    blocks = {
        name: files.TensorBlocks(tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor.split(2))
        for name, tensor in tensors.items()
    }
    files.write_blocks(tmp_path / "blocks.safetensors", blocks)
    read = load_file(tmp_path / "blocks.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())


@pytest.mark.parametrize("width", [1, 2, 7])
def test_a_tensor_is_written_in_blocks_of_its_transpose(width: int, tmp_path: Path) -> None:
    tensors = {"columns": torch.randn(7, 3), "half": torch.randn(7, 5).bfloat16(), "row": torch.randn(7, 1)}
    blocks = {
        name: files.TensorBlocks(
            (tensor.shape[1], 7), tensor.dtype, lambda tensor=tensor: tensor.split(width), transposed=True
        )
        for name, tensor in tensors.items()
    }
    last = torch.arange(5).double()
    files.write_blocks(tmp_path / "blocks.safetensors", {**blocks, "last": files.in_one_block(last)})
    read = load_file(tmp_path / "blocks.safetensors")
    assert torch.equal(read.pop("last"), last)
    assert read.keys() == tensors.keys()
    assert all(
        torch.equal(read[name], tensor.T) and read[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
