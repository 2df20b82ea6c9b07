"""Kernels: the three sparse products of a transcoder's training step, without gradients.

With ``k`` of ``F`` features active, the decoder (forward, and both gradients) and the weight gradient of the encoder
need ``k / F`` of the dense work. Only the encoder's forward product remains dense. Two operations of PyTorch are
enough: ``embedding_bag``, a weighted sum of table rows per bag, and ``sampled_addmm``, chosen entries of a product.

    decode            bags are tokens,   rows are features:  y[b] = sum_f a[b, f] W[f]
    gradient of W     bags are features, rows are tokens:    g[f] = sum_b a[b, f] gy[b]
    gradient of a     entries are the active ones:           g[b, f] = W[f] . gy[b]

The second product is the first with the features transposed, so that each row of the gradient is written once.

The speed of these sums depends on where their rows are. A table, or the gradient of a batch, is much larger than a
processor's cache, and each of its rows is read many times. So both are read a few columns at a time, as many as fit the
cache, and sums are stored in such *blocks* of columns: (layer x block, batch, columns).
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from open_clt.short_repr import short_repr
from open_clt.transcoders.sparse.codes import SparseFeatures, Transposed

_CACHED_COLUMNS = 192
"""Number of columns read at a time on a CPU: 1,024 rows of 192 float32 numbers fit a core's cache of 1 MB."""


class NormGradient(NamedTuple):
    """The gradient of a table through the norms of its rows: ``shares[f] table[f]``."""

    table: Float[Tensor, "feature columns"]
    shares: Float[Tensor, "feature 1"]

    @staticmethod
    def of(table: Float[Tensor, "feature columns"], norms: Tensor, gradient: Tensor) -> NormGradient:
        """Compute the gradient from norms and their gradient, both (feature,); it is zero for rows of norm zero."""
        return NormGradient(table, torch.where(norms > 0, gradient / norms, 0.0)[:, None])

    __repr__ = short_repr


def bag(table: Tensor, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of table rows, one per bag ``indices[offsets[i]:offsets[i + 1]]``."""
    return functional.embedding_bag(
        indices, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def entry_products(
    table: Float[Tensor, "feature columns"],
    blocks: Float[Tensor, "block batch width"],
    features: SparseFeatures,
) -> Float[Tensor, "active"]:
    """The gradient of the values: ``sum_j table[feature, block j] . blocks[j, token]`` for every active entry.

    Entries are computed feature by feature, so that the table, the larger of the two factors, is read once.
    """
    by_feature = features.transposed
    columns = table.split(blocks.shape[2], dim=1)
    products = table.new_zeros(by_feature.rows.shape[0])
    if table.device.type == "cpu" and table.dtype in (torch.float32, torch.float64):
        sums = _csr(by_feature, products, features.batch)
        for table_block, block in zip(columns, blocks, strict=True):
            torch.sparse.sampled_addmm(sums, table_block, block.T, out=sums)
        products = sums.values()
    else:
        # The gradient of embedding_bag in its weights, called directly because it does not copy the rows.
        for table_block, block in zip(columns, blocks, strict=True):
            products += torch.ops.aten._embedding_bag_per_sample_weights_backward(
                block, table_block, by_feature.features, features.offsets[:-1], by_feature.rows, 0
            )
    return torch.empty_like(products).index_copy_(0, by_feature.order, products)


def _csr(entries: Transposed, values: Float[Tensor, "active"], batch: int) -> Tensor:
    """The entries as a (feature, batch) sparse tensor of PyTorch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # CSR tensors are in beta, and invariants are not checked
        size = (entries.offsets.shape[0] - 1, batch)
        return torch.sparse_csr_tensor(entries.offsets, entries.rows, values, size, check_invariants=False)


def sum_by_feature(
    result: Float[Tensor, "feature columns"],
    blocks: Float[Tensor, "block batch width"],
    values: Float[Tensor, "active"],
    features: SparseFeatures,
    norms: NormGradient | None = None,
) -> None:
    """Write the gradient of a table, ``result[f] = sum_b a[b, f] blocks[:, b]``, plus that through its norms."""
    by_feature = features.transposed
    weights = values[by_feature.order]
    width = blocks.shape[2]
    tables = None if norms is None else norms.table.split(width, dim=1)
    for index, (block, result_block) in enumerate(zip(blocks, result.split(width, dim=1), strict=True)):
        sums = bag(block, by_feature.rows, by_feature.offsets, weights)
        if norms is not None and tables is not None:
            sums.addcmul_(tables[index], norms.shares)  # done here because the sums are still in the cache
        result_block.copy_(sums)


def block_width(tensor: Float[Tensor, "*any d_model"]) -> int:
    """Number of columns in a block, which divides d_model."""
    d_model = tensor.shape[-1]
    if tensor.device.type != "cpu":
        return d_model
    widths = range(min(_CACHED_COLUMNS, d_model), _CACHED_COLUMNS // 4, -1)
    return next((width for width in widths if d_model % width == 0), d_model)


def to_blocks(
    tensor: Float[Tensor, "batch layer d_model"], width: int, factor: int = 1
) -> Float[Tensor, "block batch columns"]:
    """A copy of a tensor in blocks, times a factor."""
    batch, layers, d_model = tensor.shape
    blocks = tensor.new_empty(layers * (d_model // width), batch, width)
    torch.mul(apart(tensor, width), factor, out=by_layer(blocks, layers))
    return blocks


def by_layer(blocks: Float[Tensor, "block batch columns"], layers: int) -> Float[Tensor, "layer blocks batch columns"]:
    """A view of blocks with an axis for the layers."""
    return blocks.unflatten(0, (layers, -1))


def apart(tensor: Float[Tensor, "batch layer d_model"], width: int) -> Float[Tensor, "layer blocks batch columns"]:
    """A view of a tensor that is not stored in blocks, with the axes that ``by_layer`` gives to blocks."""
    return tensor.unflatten(2, (-1, width)).permute(1, 2, 0, 3)
