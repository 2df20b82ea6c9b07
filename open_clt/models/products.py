"""The products of a transcoder that touch active rows only, with their gradients.

With ``k`` of ``F`` features active, a transcoder's decoder (forward, and both gradients) and the weight gradient of its
encoder need ``k / F`` of the dense work; what remains dense is one encoder product. It is made of two stock operations,
``embedding_bag``, a weighted sum of table rows per bag, and ``sampled_addmm``, some entries of a product:

    decode            bags are tokens,   rows are features:  y[b] = sum_f a[b, f] W[f]
    gradient of W     bags are features, rows are tokens:    g[f] = sum_b a[b, f] gy[b]
    gradient of a     entries are those of the codes:        g[b, f] = W[f] . gy[b]

The second is the first with the codes transposed, so no gradient is ever scattered: each row is written once.

What limits these sums is where their rows lie. A batch's gradient, or a table, is much larger than a processor's cache,
and every row is read many times; so both are taken a few columns at a time, as many as the cache holds, and what is
summed lies in memory as such *blocks*: (layer x block, batch, columns). A pass over memory is as dear as many products:
what a layer writes is added where it belongs, its gradient is made where it stays, and large gradients come before
small ones, which then fit where those were. Dense twins of every function stand in tests/reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx
from torch.nn import functional

from open_clt.models.sparse import LayerFeatures, SparseFeatures, Transposed

_CACHED_COLUMNS = 192
"""Columns of a table, or of a gradient, taken at a time on a CPU: 1,024 rows of so many fit a core's cache of 1 MB."""


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
    return sum_written([Product(features, table)], nothing.shape).added_to(nothing)


def sum_written(
    written: Sequence[Product | Float[Tensor, "batch _ d_model"]], shape: Sequence[int], *, norms: bool = False
) -> Written:
    """Add up what each source layer wrote; slice ``j`` of ``written[s]`` goes to layer ``s + j``.

    ``shape`` is that of the sum, (batch, layer, d_model). One autograd node a source, which adds in place: adding
    slices would copy the whole sum once per source. The last source comes first, since its gradient then is the last
    and smallest one. With ``norms``, the gradient of a table's norms is added to its other one where that is.
    """
    batch, layers, d_model = shape
    tensor = written[0].table if isinstance(written[0], Product) else written[0]
    width = _columns(tensor)
    each = d_model // width
    total = tensor.new_zeros(layers * each, batch, width)
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
    return _entry_products(table, _to_blocks(gradient[:, None], _columns(gradient)), features)


def bag(table: Tensor, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of table rows, one per bag ``indices[offsets[i]:offsets[i + 1]]``."""
    return functional.embedding_bag(
        indices, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


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
            to_values = _entry_products(table.flatten(1), blocks, features)
        if ctx.needs_input_grad[2]:
            to_table = torch.empty_like(table, memory_format=torch.contiguous_format)
            shares = None if norms is None else _shares(to_norms, norms)
            _write_gradient(to_table.flatten(1), blocks, values, features, table.flatten(1), shares)
        return gradient, to_values, to_table, None


class _AddDense(Function):
    """``total[block + j] += written[:, j]`` for the blocks of ``written``, in place."""

    @staticmethod
    def forward(ctx: FunctionCtx, total: Tensor, written: Tensor, block: int) -> Tensor:
        ctx.mark_dirty(total)
        targets, width = written.shape[1], total.shape[2]
        cast(Any, ctx).place, cast(Any, ctx).targets = (
            slice(block, block + targets * written.shape[2] // width),
            targets,
        )
        _split(total[cast(Any, ctx).place], targets).add_(_apart(written, width))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = grad_outputs
        joined = _split(gradient[ctx.place], ctx.targets).permute(2, 0, 1, 3).flatten(2)
        return gradient, joined, None


class _Join(Function):
    """``start + sign * blocks``, in place: (batch, layer, d_model) again."""

    @staticmethod
    def forward(ctx: FunctionCtx, start: Tensor, blocks: Tensor, sign: int) -> Tensor:
        ctx.mark_dirty(start)
        cast(Any, ctx).width, cast(Any, ctx).sign = blocks.shape[2], sign
        _apart(start, blocks.shape[2]).add_(_split(blocks, start.shape[1]), alpha=sign)
        return start

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = grad_outputs
        return gradient, _to_blocks(gradient, ctx.width, ctx.sign), None


class _RowNorms(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(table.flatten(1), dim=1)
        ctx.save_for_backward(table, norms)
        return norms

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        table, norms = ctx.saved_tensors
        return table * _shares(grad_outputs[0], norms)[..., None]


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
        layers = [
            (layer, selected, gradient.contiguous())
            for layer, (selected, gradient) in enumerate(zip(ctx.selected, grad_outputs, strict=True))
            if selected is not None
        ]
        make = torch.empty_like if len(layers) == len(ctx.selected) else torch.zeros_like
        to_inputs = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_inputs = make(inputs)
            for layer, selected, gradient in layers:
                to_inputs[:, layer] = bag(weight[layer], selected.features, selected.offsets, gradient)
        if ctx.needs_input_grad[1]:
            to_weight = make(weight, memory_format=torch.contiguous_format)
            for layer, selected, gradient in layers:
                blocks = _to_blocks(inputs[:, layer : layer + 1], _columns(inputs))
                _write_gradient(to_weight[layer], blocks, gradient, selected, weight[layer], None)
        if ctx.needs_input_grad[2]:
            to_bias = weight.new_zeros(weight.shape[:2])
            for layer, selected, gradient in layers:
                to_bias[layer].index_add_(0, selected.features, gradient)
        return to_inputs, to_weight, to_bias, None


def _entry_products(
    table: Float[Tensor, "feature columns"],
    blocks: Float[Tensor, "block batch width"],
    features: SparseFeatures,
) -> Float[Tensor, "active"]:
    """``sum_j table[feature, block j] . blocks[j, token]`` for every active entry: the gradient of the values.

    Feature by feature, so that the table, the larger of the two, is read once.
    """
    by_feature = features.transposed
    columns = table.split(blocks.shape[2], dim=1)
    products = table.new_zeros(by_feature.rows.shape[0])
    if table.device.type == "cpu" and table.dtype in (torch.float32, torch.float64):
        sums = _csr(by_feature, products, features.batch)
        for own, block in zip(columns, blocks, strict=True):
            torch.sparse.sampled_addmm(sums, own, block.T, out=sums)
        products = sums.values()
    else:
        # The backward of embedding_bag with respect to its weights, called directly because it gathers no rows.
        for own, block in zip(columns, blocks, strict=True):
            products += torch.ops.aten._embedding_bag_per_sample_weights_backward(
                block, own, by_feature.features, features.offsets[:-1], by_feature.rows, 0
            )
    return torch.empty_like(products).index_copy_(0, by_feature.order, products)


def _csr(entries: Transposed, values: Float[Tensor, "active"], batch: int) -> Tensor:
    """A (feature, batch) sparse tensor of PyTorch's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are in beta, it says, and we check nothing
        size = (entries.offsets.shape[0] - 1, batch)
        return torch.sparse_csr_tensor(entries.offsets, entries.rows, values, size, check_invariants=False)


def _write_gradient(
    result: Float[Tensor, "feature columns"],
    blocks: Float[Tensor, "block batch width"],
    values: Float[Tensor, "active"],
    features: SparseFeatures,
    table: Float[Tensor, "feature columns"],
    shares: Float[Tensor, "feature 1"] | None,
) -> None:
    """``result[f] = sum_b a[b, f] blocks[:, b] + shares[f] table[f]``, block after block."""
    by_feature = features.transposed
    weights = values[by_feature.order]
    width = blocks.shape[2]
    for block, place, own in zip(blocks, result.split(width, dim=1), table.split(width, dim=1), strict=True):
        sums = bag(block, by_feature.rows, by_feature.offsets, weights)
        place.copy_(sums if shares is None else sums.addcmul_(own, shares))


def _shares(gradient: Float[Tensor, "feature"], norms: Float[Tensor, "feature"]) -> Float[Tensor, "feature 1"]:
    """How much of each row is in the gradient of the rows, through their norms; nothing of silent rows."""
    return torch.where(norms > 0, gradient / norms, 0.0)[:, None]


def _columns(tensor: Float[Tensor, "*any d_model"]) -> int:
    """How many columns to take at a time: a divisor of d_model."""
    d_model = tensor.shape[-1]
    if tensor.device.type != "cpu":
        return d_model
    fitting = range(min(_CACHED_COLUMNS, d_model), _CACHED_COLUMNS // 4, -1)
    return next((width for width in fitting if d_model % width == 0), d_model)


def _to_blocks(
    tensor: Float[Tensor, "batch layer d_model"], width: int, factor: int = 1
) -> Float[Tensor, "block batch columns"]:
    """A copy in blocks, times a factor."""
    batch, layers, d_model = tensor.shape
    blocks = tensor.new_empty(layers * (d_model // width), batch, width)
    torch.mul(_apart(tensor, width), factor, out=_split(blocks, layers))
    return blocks


def _split(blocks: Float[Tensor, "block batch columns"], layers: int) -> Float[Tensor, "layer blocks batch columns"]:
    """A view of blocks, the blocks of each layer for themselves."""
    return blocks.unflatten(0, (layers, -1))


def _apart(tensor: Float[Tensor, "batch layer d_model"], width: int) -> Float[Tensor, "layer blocks batch columns"]:
    """A view as such blocks of what is not in blocks."""
    return tensor.unflatten(2, (-1, width)).permute(1, 2, 0, 3)
