"""The sparse products equal dense ones: outputs, and gradients with respect to everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from open_clt.models.sparse import SparseFeatures, active_counts, preactivations, weighted, write


def random_codes(batch: int, n_features: int, density: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(batch, n_features, generator=generator)
    return values * (torch.rand(batch, n_features, generator=generator) < density)


@given(batch=st.integers(1, 9), n_features=st.integers(1, 40), density=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_dense_and_back_is_the_identity(batch: int, n_features: int, density: float, seed: int) -> None:
    codes = random_codes(batch, n_features, density, seed)
    assert torch.equal(SparseFeatures.from_dense(codes).dense(), codes)


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_write_equals_the_dense_product_with_its_gradients(density: float) -> None:
    codes = random_codes(11, 30, density).double()
    table = torch.randn(30, 3, 5, dtype=torch.float64, requires_grad=True)
    sparse = SparseFeatures.from_dense(codes)
    sparse = sparse.with_values(sparse.values.clone().requires_grad_())
    written = write(sparse, table)
    direction = torch.randn_like(written)
    to_values, to_table = torch.autograd.grad((written * direction).sum(), [sparse.values, table])

    dense = codes.clone().requires_grad_()
    expected = torch.einsum("bf,ftd->btd", dense, table)
    dense_to_codes, dense_to_table = torch.autograd.grad((expected * direction).sum(), [dense, table])
    torch.testing.assert_close(written, expected)
    torch.testing.assert_close(to_values, dense_to_codes[sparse.rows, sparse.features])
    torch.testing.assert_close(to_table, dense_to_table)


def test_preactivations_have_the_gradients_of_the_dense_product_at_the_selected_entries() -> None:
    inputs, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((9, 4), (20, 4), (20,))
    )
    dense = inputs @ weight.T + bias
    selected = SparseFeatures.from_mask(dense.detach(), dense.detach() > 0.5)
    sparse = preactivations(inputs, weight, bias, selected)
    torch.testing.assert_close(sparse, dense[selected.rows, selected.features])
    direction = torch.randn_like(sparse)
    found = torch.autograd.grad((sparse * direction).sum(), [inputs, weight, bias])
    expected = torch.autograd.grad((dense[selected.rows, selected.features] * direction).sum(), [inputs, weight, bias])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_silent_layer_writes_nothing_and_keeps_its_shape() -> None:
    silent = SparseFeatures.from_dense(torch.zeros(4, 7))
    assert torch.equal(write(silent, torch.randn(7, 2, 3)), torch.zeros(4, 2, 3))


def test_counts_and_weights_agree_between_the_two_forms() -> None:
    codes = random_codes(13, 17, 0.3)
    sparse, weights = SparseFeatures.from_dense(codes), torch.rand(17)
    assert torch.equal(active_counts(sparse), active_counts(codes))
    torch.testing.assert_close(weighted(sparse, weights).sum(), weighted(codes, weights).sum())
