"""Sparse features hold the same numbers as dense ones, without the zeros."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from open_clt.transcoders.sparse.codes import SparseFeatures, active_counts, weighted


def random_codes(batch: int, n_features: int, density: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(batch, n_features, generator=generator)
    return values * (torch.rand(batch, n_features, generator=generator) < density)


@given(batch=st.integers(1, 9), n_features=st.integers(1, 40), density=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_dense_and_back_is_the_identity(batch: int, n_features: int, density: float, seed: int) -> None:
    codes = random_codes(batch, n_features, density, seed)
    assert torch.equal(SparseFeatures.from_dense(codes).dense(), codes)


def test_counts_and_weights_agree_between_the_two_forms() -> None:
    codes = random_codes(13, 17, 0.3) * torch.randn(13, 17).sign()
    sparse, weights = SparseFeatures.from_dense(codes), torch.rand(17)
    assert active_counts(codes).tolist() == [sum(value != 0 for value in column) for column in codes.T.tolist()]
    assert torch.equal(active_counts(sparse), active_counts(codes))
    torch.testing.assert_close(weighted(sparse, weights).sum(), weighted(codes, weights).sum())


def test_the_transposed_entries_are_computed_once_for_all_values() -> None:
    sparse = SparseFeatures.from_dense(random_codes(7, 9, 0.4))
    doubled = sparse.with_values(2 * sparse.values)
    assert doubled.transposed is sparse.transposed
    transposed = sparse.transposed
    assert transposed.features.tolist() == sorted(sparse.features.tolist())
    dense = torch.zeros(9, 7)
    dense[transposed.features, transposed.rows] = doubled.values[transposed.order]
    assert torch.equal(dense, 2 * sparse.dense().T)
    assert sparse.density == len(sparse.values) / 63
