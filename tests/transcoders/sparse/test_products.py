"""The sparse products equal dense ones: outputs, and gradients with respect to everything."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from open_clt.transcoders.sparse.codes import SparseFeatures
from open_clt.transcoders.sparse.products import Product, preactivations, row_norms, row_products, sum_written, write
from tests.transcoders.sparse.test_codes import random_codes


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
    (sparse,) = preactivations(inputs[:, None], weight[None], bias[None], [selected])
    torch.testing.assert_close(sparse, dense[selected.rows, selected.features])
    direction = torch.randn_like(sparse)
    actual = torch.autograd.grad((sparse * direction).sum(), [inputs, weight, bias])
    expected = torch.autograd.grad((dense[selected.rows, selected.features] * direction).sum(), [inputs, weight, bias])
    torch.testing.assert_close(actual, expected)


def test_a_silent_layer_writes_nothing_and_keeps_its_shape() -> None:
    silent = SparseFeatures.from_dense(torch.zeros(4, 7))
    assert torch.equal(write(silent, torch.randn(7, 2, 3)), torch.zeros(4, 2, 3))


@pytest.mark.parametrize("d_model", [5, 96, 512])
def test_sums_of_products_and_tensors_equal_dense_sums_with_their_gradients(d_model: int) -> None:
    """A table of 512 columns per target is read in several blocks of columns, a narrower one in one block."""
    offsets, dense_written = torch.randn(9, 3, d_model).double(), torch.randn(9, 2, d_model).double()
    table, second = (torch.randn(20, reach, d_model).double().requires_grad_() for reach in (3, 1))
    codes = [random_codes(9, 20, 0.2, seed=seed).double().requires_grad_() for seed in range(2)]
    leaves = [offsets.requires_grad_(), dense_written.requires_grad_(), table, second, *codes]

    first, last = (SparseFeatures.from_mask(code, code != 0) for code in codes)
    written = sum_written([Product(first, table), dense_written, Product(last, second)], offsets)
    actual = written.added_to(offsets.clone())
    expected = offsets + torch.einsum("bf,ftd->btd", codes[0], table)
    expected = expected + functional.pad(dense_written, (0, 0, 1, 0))
    expected = expected + functional.pad(torch.einsum("bf,ftd->btd", codes[1], second), (0, 0, 2, 0))
    torch.testing.assert_close(actual, expected)

    direction = torch.randn_like(expected)
    sparse_gradients, dense_gradients = (
        torch.autograd.grad((total * direction).sum(), leaves) for total in (actual, expected)
    )
    for sparse, dense, leaf in zip(sparse_gradients, dense_gradients, leaves, strict=True):
        active = leaf != 0 if leaf is codes[0] or leaf is codes[1] else torch.ones_like(leaf, dtype=torch.bool)
        torch.testing.assert_close(sparse[active], dense[active])


def test_the_sum_is_added_or_subtracted_in_place() -> None:
    start, contribution = torch.zeros(1, 2, 3), torch.rand(1, 2, 3)
    written = sum_written([contribution], start)
    assert written.taken_from(start) is start
    assert torch.equal(start, -contribution)
    assert torch.equal(written.added_to(start), torch.zeros(1, 2, 3))


def test_gradients_of_a_product_are_those_of_finite_differences() -> None:
    sparse = SparseFeatures.from_dense(random_codes(4, 6, 0.5).double())
    table = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    values = sparse.values.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v, t: write(sparse.with_values(v), t), (values, table))
    assert torch.autograd.gradcheck(row_norms, (table,))


def test_rows_of_norm_zero_get_no_gradient_through_their_norms() -> None:
    table = torch.zeros(2, 1, 3, requires_grad=True)
    row_norms(table).sum().backward()
    assert table.grad is not None
    assert torch.equal(table.grad, torch.zeros(2, 1, 3))


def test_row_products_are_entries_of_the_dense_product() -> None:
    sparse = SparseFeatures.from_dense(random_codes(8, 12, 0.4))
    table, gradient = torch.randn(12, 2, 7), torch.randn(8, 7)
    expected = (gradient @ table[:, 1].T)[sparse.rows, sparse.features]
    torch.testing.assert_close(row_products(table[:, 1], gradient, sparse), expected)


def test_low_precision_codes_are_written_in_the_precision_of_the_table() -> None:
    codes = random_codes(5, 9, 0.5).bfloat16()
    table = torch.randn(9, 2, 4)
    written = write(SparseFeatures.from_dense(codes), table)
    torch.testing.assert_close(written, torch.einsum("bf,ftd->btd", codes.float(), table))


def test_gradients_in_bfloat16_which_another_operation_computes_agree_with_float32() -> None:
    codes = random_codes(12, 9, 0.5)
    table, direction = torch.randn(9, 2, 512), torch.randn(12, 2, 512)

    def gradients(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        sparse = SparseFeatures.from_dense(codes)
        leaves = sparse.values.to(dtype).requires_grad_(), table.to(dtype).requires_grad_()
        written = write(sparse.with_values(leaves[0]), leaves[1])
        return torch.autograd.grad((written * direction.to(dtype)).sum(), leaves)

    for low_precision, exact in zip(gradients(torch.bfloat16), gradients(torch.float32), strict=True):
        assert low_precision.dtype == torch.bfloat16
        assert (low_precision - exact).norm() < 0.01 * exact.norm()
