"""Derived tensors read what scaling or joining the whole tensors gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from open_clt.errors import CheckpointError
from open_clt.files import JoinedTensor, ScaledTensor, open_tensors
from tests.refusals import refuses


def test_rows_and_slices_of_a_scaled_tensor(tmp_path: Path) -> None:
    whole, factors = torch.randn(5, 3, 4, dtype=torch.bfloat16), torch.rand(4)
    save_file({"a": whole}, tmp_path / "a.safetensors")
    scaled = ScaledTensor(open_tensors(tmp_path / "a.safetensors")["a"], lambda: factors)
    expected = whole.float() * factors
    assert scaled.dtype == torch.bfloat16
    torch.testing.assert_close(scaled.read(), expected)
    torch.testing.assert_close(scaled[1:4, 1:].rows(torch.tensor([2, 0, 2])), expected[1:4, 1:][[2, 0, 2]])


def test_rows_are_scaled_by_factors_of_their_own(tmp_path: Path) -> None:
    whole, factors = torch.randn(5, 3, 4), torch.rand(5)
    save_file({"a": whole}, tmp_path / "a.safetensors")
    scaled = ScaledTensor(open_tensors(tmp_path / "a.safetensors")["a"], lambda: factors, of_rows=True)
    expected = whole * factors[:, None, None]
    torch.testing.assert_close(scaled.read(), expected)
    torch.testing.assert_close(scaled[1:][1:3, :2].read(), expected[2:4, :2])
    torch.testing.assert_close(scaled[1:].rows(torch.tensor([3, 0])), expected[[4, 1]])


def test_a_product_that_is_not_finite_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.full((2, 3), 1e30)}, tmp_path / "a.safetensors")
    scaled = ScaledTensor(open_tensors(tmp_path / "a.safetensors")["a"], lambda: torch.full((3,), 1e30))
    with refuses(CheckpointError, tmp_path, "'a'", "inf"):
        scaled.rows(torch.tensor([1]))


def test_rows_and_slices_of_a_joined_tensor(tmp_path: Path) -> None:
    whole = torch.randn(9, 2, 4)
    save_file({str(i): part.contiguous() for i, part in enumerate(whole.split([4, 3, 2]))}, tmp_path / "a.safetensors")
    tensors = open_tensors(tmp_path / "a.safetensors")
    joined = JoinedTensor([tensors[str(i)] for i in range(3)])
    assert joined.shape == whole.shape
    assert torch.equal(joined.read(), whole)
    for begin in range(10):
        for end in range(begin, 10):
            assert torch.equal(joined[begin:end, 1:].read(), whole[begin:end, 1:])
    index = torch.tensor([8, 0, 3, 4, 4, 6])
    assert torch.equal(joined.rows(index), whole[index])
    assert torch.equal(joined[2:8].rows(torch.tensor([5, 1])), whole[2:8][[5, 1]])
    assert joined.rows(torch.tensor([], dtype=torch.long)).shape == (0, 2, 4)


def test_joined_tensors_of_different_types_are_read_in_the_type_that_holds_both(tmp_path: Path) -> None:
    save_file({"a": torch.rand(2, 3), "b": torch.rand(2, 3).bfloat16()}, tmp_path / "a.safetensors")
    tensors = open_tensors(tmp_path / "a.safetensors")
    joined = JoinedTensor([tensors["a"], tensors["b"]])
    assert joined.dtype == torch.float32
    assert torch.equal(joined.rows(torch.arange(4)), joined.read())


def test_the_file_of_a_row_that_is_not_finite_is_named(tmp_path: Path) -> None:
    for name, value in (("a", 0.0), ("b", torch.nan)):
        save_file({"w": torch.full((2, 2), value)}, tmp_path / f"{name}.safetensors")
    joined = JoinedTensor([open_tensors(tmp_path / f"{name}.safetensors")["w"] for name in "ab"])
    with pytest.raises(CheckpointError, match=r"b\.safetensors.*nan"):
        joined.rows(torch.tensor([0, 2]))
