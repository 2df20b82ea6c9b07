"""Sparse products with gradients: what active features write, and the pre-activations of active features.

``kernels.py`` computes the sums, and this module makes them differentiable. A pass over memory takes as long as many
products. So each layer's contribution is added in place, gradients are computed where they stay, and large gradients
are computed before small ones, which then reuse their memory. Dense equivalents are in tests/reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx

from open_clt.short_repr import short_repr
from open_clt.transcoders.sparse.codes import LayerFeatures, SparseFeatures
from open_clt.transcoders.sparse.kernels import (
    NormGradient,
    apart,
    bag,
    block_width,
    by_layer,
    entry_products,
    sum_by_feature,
    to_blocks,
)


@final
@dataclass(frozen=True, eq=False)
class Product:
    """What features write through a table, as two factors, which a sum over layers multiplies as it adds."""

    features: SparseFeatures
    table: Float[Tensor, "feature target d_model"]

    def __mul__(self, factor: float | Tensor) -> Product | Float[Tensor, "batch target d_model"]:
        """The product times a factor; it stays a product if the factor is a single number."""
        if isinstance(factor, Tensor):
            if factor.numel() != 1:
                return multiplied(self) * factor
            factor = factor.reshape(())
        return Product(self.features.with_values(self.features.values * factor), self.table)

    __rmul__ = __mul__
    __repr__ = short_repr


class Written(NamedTuple):
    """The sum of what all source layers write, and the decoder norms of their features."""

    blocks: Float[Tensor, "block batch columns"]
    layers: int
    norms: list[Float[Tensor, "feature"] | None]
    """Decoder norms of each source layer's features, or None if ``sum_written`` did not compute them."""

    def added_to(self, start: Float[Tensor, "batch layer d_model"]) -> Float[Tensor, "batch layer d_model"]:
        """The sum ``start + written``, in the memory of ``start``."""
        return cast(Tensor, _Join.apply(start, self.blocks, 1))

    def taken_from(self, start: Float[Tensor, "batch layer d_model"]) -> Float[Tensor, "batch layer d_model"]:
        """The difference ``start - written``, in the memory of ``start``."""
        return cast(Tensor, _Join.apply(start, self.blocks, -1))

    __repr__ = short_repr


def write(
    features: LayerFeatures, table: Float[Tensor, "feature target d_model"]
) -> Float[Tensor, "batch target d_model"]:
    """What the active features write: ``sum_f a[b, f] table[f]``, differentiable in values and table."""
    if not isinstance(features, SparseFeatures):
        return (features @ table.flatten(1)).unflatten(1, table.shape[1:])
    zeros = table.new_zeros(features.batch, *table.shape[1:])
    return sum_written([Product(features, table)], zeros).added_to(zeros)


def multiplied(
    written: Product | Float[Tensor, "batch target d_model"],
) -> Float[Tensor, "batch target d_model"]:
    """What features write as one tensor, whether it is given as two factors or as a tensor."""
    return write(written.features, written.table) if isinstance(written, Product) else written


def sum_written(
    written: Sequence[Product | Float[Tensor, "batch _ d_model"]],
    like: Float[Tensor, "batch layer d_model"],
    *,
    norms: bool = False,
) -> Written:
    """Sum what each source layer writes: slice ``j`` of ``written[s]`` is added to layer ``s + j``.

    The sum has the shape and type of ``like``. Each source is one autograd node that adds in place, because adding
    slices would copy the whole sum once per source. The last source is added first, so that in the backward pass its
    gradient, the smallest one, is computed last. ``norms`` also computes decoder norms; their gradient is added to the
    gradient of the table in place.
    """
    batch, layers, d_model = like.shape
    width = block_width(like)
    blocks_per_layer = d_model // width
    total = like.new_zeros(layers * blocks_per_layer, batch, width)
    norms_by_source: list[Tensor | None] = [None] * len(written)
    for source, contribution in reversed(list(enumerate(written))):
        first_block = source * blocks_per_layer
        if isinstance(contribution, Product):
            features, table = contribution.features, contribution.table
            blocks = slice(first_block, first_block + table.shape[1] * blocks_per_layer)
            added = _Add.apply(total, features.values.to(table.dtype), table, _AddSettings(features, blocks, norms))
            total, norms_by_source[source] = cast(tuple[Tensor, Tensor | None], added)
        else:
            total = cast(Tensor, _AddDense.apply(total, contribution, first_block))
    return Written(total, layers, norms_by_source)


def row_norms(table: Float[Tensor, "feature target d_model"]) -> Float[Tensor, "feature"]:
    """Norm of all rows of each feature together; its gradient takes one pass over the table, autograd's takes five."""
    return cast(Tensor, _RowNorms.apply(table))


def preactivations(
    inputs: Float[Tensor, "batch layer d_model"],
    weight: Float[Tensor, "layer feature d_model"],
    bias: Float[Tensor, "layer feature"],
    selected: Sequence[SparseFeatures | None],
) -> list[Float[Tensor, "_"]]:
    """The pre-activations ``inputs @ weight.T + bias`` of each layer's selected entries, differentiable.

    The values of ``selected`` must be these numbers already, without gradients, because a caller computes the dense
    product to select from it. A layer for which ``selected`` is None has no entries in the result.
    """
    return list(cast(tuple[Tensor, ...], _Preactivations.apply(inputs, weight, bias, list(selected))))


def row_products(
    table: Float[Tensor, "feature width"], gradient: Float[Tensor, "batch width"], features: SparseFeatures
) -> Float[Tensor, "active"]:
    """The product ``table[feature] . gradient[token]`` for every active entry."""
    return entry_products(table, to_blocks(gradient[:, None], block_width(gradient)), features)


class _AddSettings(NamedTuple):
    """The features of one source, the blocks of the sum to which they write, and whether to compute their norms."""

    features: SparseFeatures
    blocks: slice
    norms: bool


class _Add(Function):
    """Add ``sum_f a[b, f] table[f]`` to ``total[blocks]`` in place, and compute the norms of the table's rows."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, total: Tensor, values: Tensor, table: Tensor, settings: _AddSettings
    ) -> tuple[Tensor, Tensor | None]:
        ctx.mark_dirty(total)
        features, width = settings.features, total.shape[2]
        rows, rows_per_feature = table.reshape(-1, width), table[0].numel() // width
        indices = features.features * rows_per_feature
        for index, block in enumerate(total[settings.blocks]):
            block += bag(rows[index:], indices, features.offsets, values)
        norms = torch.linalg.vector_norm(table.flatten(1), dim=1) if settings.norms else None
        ctx.save_for_backward(values, table, cast(Tensor, norms))
        cast(Any, ctx).settings = settings
        return total, norms

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        values, table, norms = ctx.saved_tensors
        gradient, to_norms = cast(tuple[Tensor, Tensor], grad_outputs)  # the second is None without norms
        features = ctx.settings.features
        blocks = gradient[ctx.settings.blocks]
        to_values = to_table = None
        if ctx.needs_input_grad[1]:
            to_values = entry_products(table.flatten(1), blocks, features)
        if ctx.needs_input_grad[2]:
            to_table = torch.empty_like(table, memory_format=torch.contiguous_format)
            through_norms = None if norms is None else NormGradient.of(table.flatten(1), norms, to_norms)
            sum_by_feature(to_table.flatten(1), blocks, values, features, through_norms)
        return gradient, to_values, to_table, None


class _AddDense(Function):
    """Add a dense ``written`` to the blocks of ``total`` from ``first_block`` on, in place."""

    @staticmethod
    def forward(ctx: FunctionCtx, total: Tensor, written: Tensor, first_block: int) -> Tensor:
        ctx.mark_dirty(total)
        targets, width = written.shape[1], total.shape[2]
        blocks = slice(first_block, first_block + targets * (written.shape[2] // width))
        by_layer(total[blocks], targets).add_(apart(written, width))
        cast(Any, ctx).blocks, cast(Any, ctx).targets = blocks, targets
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = grad_outputs
        to_written = by_layer(gradient[ctx.blocks], ctx.targets).permute(2, 0, 1, 3).flatten(2)
        return gradient, to_written, None


class _Join(Function):
    """Add ``sign * blocks`` to ``start`` (batch, layer, d_model) in place."""

    @staticmethod
    def forward(ctx: FunctionCtx, start: Tensor, blocks: Tensor, sign: int) -> Tensor:
        ctx.mark_dirty(start)
        cast(Any, ctx).width, cast(Any, ctx).sign = blocks.shape[2], sign
        apart(start, blocks.shape[2]).add_(by_layer(blocks, start.shape[1]), alpha=sign)
        return start

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = grad_outputs
        return gradient, to_blocks(gradient, ctx.width, ctx.sign), None


class _RowNorms(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(table.flatten(1), dim=1)
        ctx.save_for_backward(table, norms)
        return norms

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        table, norms = ctx.saved_tensors
        return table * NormGradient.of(table.flatten(1), norms, grad_outputs[0]).shares[..., None]


class _Preactivations(Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, inputs: Tensor, weight: Tensor, bias: Tensor, selected: list[SparseFeatures | None]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(inputs, weight)
        cast(Any, ctx).selected = selected
        empty = weight.new_empty(0)
        return tuple(
            empty if layer is None else layer.values.detach().to(weight.dtype, copy=True) for layer in selected
        )

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        complete = all(selected is not None for selected in ctx.selected)
        new_like = torch.empty_like if complete else torch.zeros_like
        to_inputs = new_like(inputs) if ctx.needs_input_grad[0] else None
        to_weight = new_like(weight, memory_format=torch.contiguous_format) if ctx.needs_input_grad[1] else None
        to_bias = weight.new_zeros(weight.shape[:2]) if ctx.needs_input_grad[2] else None
        for layer, (selected, gradient) in enumerate(zip(ctx.selected, grad_outputs, strict=True)):
            if selected is None:
                continue
            if to_inputs is not None:
                to_inputs[:, layer] = bag(weight[layer], selected.features, selected.offsets, gradient.contiguous())
            if to_weight is not None:
                blocks = to_blocks(inputs[:, layer : layer + 1], block_width(inputs))
                sum_by_feature(to_weight[layer], blocks, gradient, selected)
            if to_bias is not None:
                to_bias[layer].index_add_(0, selected.features, gradient)
        return to_inputs, to_weight, to_bias, None
