"""NaN and infinity are found wherever they stand in a tensor, and described by their place."""

from __future__ import annotations

import pytest
import torch

from open_clt.errors import CheckpointError, NotFiniteError
from open_clt.finite import NotFinite, check_finite, find_not_finite, is_finite, layer_axis
from tests.refusals import refuses


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_an_entry_is_found_in_any_memory_layout(value: float, dtype: torch.dtype) -> None:
    tensor = torch.zeros(5, 3, 4, dtype=dtype).transpose(0, 2)
    assert is_finite(tensor)
    assert find_not_finite(tensor) is None
    tensor[3, 1, 2] = value
    assert not is_finite(torch.zeros(2), tensor)
    found = find_not_finite(tensor)
    assert found is not None
    assert found.place == (3, 1, 2)
    assert str(found.value) == str(float(value))


def test_an_entry_is_found_in_a_later_chunk() -> None:
    tensor = torch.zeros(3, 2**19)
    tensor[2, 17] = torch.nan
    assert find_not_finite(tensor) == NotFinite(pytest.approx(torch.nan, nan_ok=True), (2, 17))


def test_empty_tensors_and_scalars() -> None:
    assert is_finite()
    assert is_finite(torch.zeros(0, 3))
    with refuses(NotFiniteError, "scale", "inf"):
        check_finite(torch.tensor(torch.inf), "scale")


def test_the_error_names_tensor_and_place() -> None:
    with refuses(CheckpointError, "W_enc", "nan", "layer 1", "[2, 0]", "train again"):
        tensor = torch.zeros(2, 3, 4)
        tensor[1, 2, 0] = torch.nan
        axes = layer_axis("W_enc", tensor, n_layers=2)
        check_finite(tensor, "W_enc", axes=axes, error=CheckpointError, advice="train again")
    assert layer_axis("W_dec.1", torch.zeros(2, 3), n_layers=2) == ()
