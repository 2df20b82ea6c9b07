"""What active features write, and their pre-activations: sums over active rows only, with their gradients.

The sums themselves stand in ``kernels.py``; here is what autograd needs to know of them. A pass over memory is as dear
as many products, so what a layer writes is added where it belongs, a gradient is made where it stays, and large
gradients come before small ones, which then fit where those were. Dense twins stand in tests/reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx

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


class Product(NamedTuple):
    """What features write through a table, not multiplied out yet."""

    features: SparseFeatures
    table: Float[Tensor, "feature target d_model"]


class Written(NamedTuple):
    """What all source layers wrote, added up; and how much a unit of each of their features writes."""

    blocks: Float[Tensor, "block batch columns"]
    layers: int
    norms: list[Float[Tensor, "feature"] | None]
    """Norm of each feature's rows of a ``Product``'s table, by source layer; None unless it was asked for."""

    def added_to(self, start: Float[Tensor, "batch layer d_model"]) -> Float[Tensor, "batch layer d_model"]:
        """``start + written``, in the memory of ``start``."""
        return cast(Tensor, _Join.apply(start, self.blocks, 1))

    def taken_from(self, start: Float[Tensor, "batch layer d_model"]) -> Float[Tensor, "batch layer d_model"]:
        """``start - written``, in the memory of ``start``."""
        return cast(Tensor, _Join.apply(start, self.blocks, -1))


def write(
    features: LayerFeatures, table: Float[Tensor, "feature target d_model"]
) -> Float[Tensor, "batch target d_model"]:
    """What the active features write: ``sum_f a[b, f] table[f]``, differentiable in both."""
    if not isinstance(features, SparseFeatures):
        return (features @ table.flatten(1)).unflatten(1, table.shape[1:])
    nothing = table.new_zeros(features.batch, *table.shape[1:])
    return sum_written([Product(features, table)], nothing).added_to(nothing)


def sum_written(
    written: Sequence[Product | Float[Tensor, "batch _ d_model"]],
    like: Float[Tensor, "batch layer d_model"],
    *,
    norms: bool = False,
) -> Written:
    """Add up what each source layer wrote; slice ``j`` of ``written[s]`` goes to layer ``s + j``.

    The sum is ``like`` another tensor. One autograd node a source, which adds in place: adding slices would copy the
    whole sum once per source. The last source comes first, since its gradient then is the last and smallest one. With
    ``norms``, the gradient of a table's norms is added to its other one where that is.
    """
    batch, layers, d_model = like.shape
    width = block_width(like)
    each = d_model // width
    total = like.new_zeros(layers * each, batch, width)
    found: list[Tensor | None] = [None] * len(written)
    for source, part in reversed(list(enumerate(written))):
        if isinstance(part, Product):
            place = _Place(part.features, slice(source * each, (source + part.table.shape[1]) * each), norms)
            values = part.features.values.to(part.table.dtype)
            total, found[source] = cast(tuple[Tensor, Tensor | None], _Add.apply(total, values, part.table, place))
        else:
            total = cast(Tensor, _AddDense.apply(total, part, source * each))
    return Written(total, layers, found)


def row_norms(table: Float[Tensor, "feature target d_model"]) -> Float[Tensor, "feature"]:
    """Norm of each feature's rows together; its gradient is made in one pass over the table, not in five."""
    return cast(Tensor, _RowNorms.apply(table))


def preactivations(
    inputs: Float[Tensor, "batch layer d_model"],
    weight: Float[Tensor, "layer feature d_model"],
    bias: Float[Tensor, "layer feature"],
    selected: Sequence[SparseFeatures | None],
) -> list[Float[Tensor, "_"]]:
    """``inputs @ weight.T + bias`` of each layer at its selected entries, differentiable there and nowhere else.

    The values of what is selected already are those numbers, without a gradient: the caller needed the dense product to
    select. A layer with None has no entries.
    """
    return list(cast(tuple[Tensor, ...], _Preactivations.apply(inputs, weight, bias, list(selected))))


def row_products(
    table: Float[Tensor, "feature width"], gradient: Float[Tensor, "batch width"], features: SparseFeatures
) -> Float[Tensor, "active"]:
    """``table[feature] . gradient[token]`` for every active entry."""
    return entry_products(table, to_blocks(gradient[:, None], block_width(gradient)), features)


class _Place(NamedTuple):
    """Where one source's features write to, and whether their norms are wanted."""

    features: SparseFeatures
    blocks: slice
    norms: bool


class _Add(Function):
    """``total[blocks] += sum_f a[b, f] table[f]``, in place; also the norms of the table's rows, if wanted."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, total: Tensor, values: Tensor, table: Tensor, place: _Place
    ) -> tuple[Tensor, Tensor | None]:
        ctx.mark_dirty(total)
        features, width = place.features, total.shape[2]
        rows, rows_each = table.reshape(-1, width), table[0].numel() // width
        indices = features.features * rows_each
        for part, block in enumerate(total[place.blocks]):
            block += bag(rows[part:], indices, features.offsets, values)
        norms = torch.linalg.vector_norm(table.flatten(1), dim=1) if place.norms else None
        ctx.save_for_backward(values, table, cast(Tensor, norms))
        cast(Any, ctx).place = place
        return total, norms

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        values, table, norms = ctx.saved_tensors
        gradient, to_norms = cast(tuple[Tensor, Tensor], grad_outputs)  # none for norms that nobody asked for
        features = ctx.place.features
        blocks = gradient[ctx.place.blocks]
        to_values = to_table = None
        if ctx.needs_input_grad[1]:
            to_values = entry_products(table.flatten(1), blocks, features)
        if ctx.needs_input_grad[2]:
            to_table = torch.empty_like(table, memory_format=torch.contiguous_format)
            through_norms = None if norms is None else NormGradient.of(table.flatten(1), norms, to_norms)
            sum_by_feature(to_table.flatten(1), blocks, values, features, through_norms)
        return gradient, to_values, to_table, None


class _AddDense(Function):
    """``total[block + j] += written[:, j]`` for the blocks of ``written``, in place."""

    @staticmethod
    def forward(ctx: FunctionCtx, total: Tensor, written: Tensor, block: int) -> Tensor:
        ctx.mark_dirty(total)
        targets, width = written.shape[1], total.shape[2]
        place = slice(block, block + targets * (written.shape[2] // width))
        by_layer(total[place], targets).add_(apart(written, width))
        cast(Any, ctx).place, cast(Any, ctx).targets = place, targets
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = grad_outputs
        joined = by_layer(gradient[ctx.place], ctx.targets).permute(2, 0, 1, 3).flatten(2)
        return gradient, joined, None


class _Join(Function):
    """``start + sign * blocks``, in place: (batch, layer, d_model) again."""

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
        none = weight.new_empty(0)
        return tuple(none if one is None else one.values.detach().to(weight.dtype, copy=True) for one in selected)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        complete = all(selected is not None for selected in ctx.selected)
        make = torch.empty_like if complete else torch.zeros_like
        to_inputs = make(inputs) if ctx.needs_input_grad[0] else None
        to_weight = make(weight, memory_format=torch.contiguous_format) if ctx.needs_input_grad[1] else None
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
