"""Arrays of npz files are read as numpy reads them, and what cannot be mapped is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from open_clt.errors import CheckpointError
from open_clt.files import open_npz
from tests.refusals import refuses

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_equal_those_that_numpy_reads(tmp_path: Path, dtype: str, order: str) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, table=np.asarray(RANDOM.normal(size=(7, 3)), dtype, order=order), row=np.ones(5, dtype))  # type: ignore[call-overload]
    tensors, expected = open_npz(path), np.load(path)
    assert tensors.keys() == set(expected.files)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.read().numpy(), expected[name])
    np.testing.assert_array_equal(tensors["table"].rows(torch.tensor([5, 0])).numpy(), expected["table"][[5, 0]])


def test_compressed_arrays_and_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    np.savez_compressed(path, table=np.ones(3))
    with refuses(CheckpointError, path, "table.npy"):
        open_npz(path)
    np.savez(path, table=np.array([{}], dtype=object))
    with refuses(CheckpointError, path, "table.npy"):
        open_npz(path)


@pytest.mark.parametrize("kept", [0, 10, 300, -1])
def test_cut_files_are_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, table=np.ones((4, 4)))
    path.write_bytes(path.read_bytes()[:kept])
    with refuses(CheckpointError, path):
        open_npz(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with refuses(CheckpointError, tmp_path / "arrays.npz"):
        open_npz(tmp_path / "arrays.npz")
