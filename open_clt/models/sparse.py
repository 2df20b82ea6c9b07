"""Sparse features, and the products of a transcoder that touch active rows only.

With ``k`` of ``F`` features active, a transcoder's decoder (forward, and both gradients) and the weight gradient of its
encoder need ``k / F`` of the dense work; what remains dense is one encoder product. It is made of two stock operations,
``embedding_bag``, a weighted sum of table rows per bag, and ``sampled_addmm``, some entries of a product:

    decode            bags are tokens,   rows are features:  y[b] = sum_f a[b, f] W[f]
    gradient of W     bags are features, rows are tokens:    g[f] = sum_b a[b, f] gy[b]
    gradient of a     entries are those of the codes:        g[b, f] = W[f] . gy[b]

The second is the first with the codes transposed, so no gradient is ever scattered: each row is written once.

What limits these sums is where their rows lie. A batch's gradient, or a table, is much larger than a processor's cache,
and every row is read many times; so both are taken a few columns at a time, as many as the cache holds. In memory of a
CPU even a fresh page is dear: what a layer writes is added where it belongs, and never stored by itself.
Dense twins of every function stand in tests/reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx
from torch.nn import functional

DENSE_ABOVE = 1 / 5
"""Share of active features above which dense products are the faster ones.

Measured on one CPU core in fp32, decoding with both gradients: sparse is 20 times as fast at 0.2 %, 4 times at 3 %,
twice at 12 %, and no faster at 25 %, whatever the shape.
"""


_CACHED_COLUMNS = 192
"""Columns of a table, or of a gradient, taken at a time on a CPU: 1,024 rows of so many fit a core's cache of 1 MB."""


class Transposed(NamedTuple):
    """Active entries sorted by feature: the codes as a (feature, batch) CSR matrix."""

    order: Int[Tensor, "active"]
    features: Int[Tensor, "active"]
    rows: Int[Tensor, "active"]
    offsets: Int[Tensor, "features_plus_1"]


@final
@dataclass(frozen=True, eq=False)
class SparseFeatures:
    """One layer's features for a batch of tokens, as CSR: token ``b`` owns entries ``offsets[b]:offsets[b + 1]``.

    Values may be zero (a TopK slot whose pre-activation is negative, a JumpReLU entry just under its threshold that
    needs a gradient); a zero is no active feature.
    """

    values: Float[Tensor, "active"]
    features: Int[Tensor, "active"]
    offsets: Int[Tensor, "batch_plus_1"]
    n_features: int

    @property
    def batch(self) -> int:
        """Number of tokens."""
        return self.offsets.shape[0] - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the dense tensor this stands for: (batch, feature)."""
        return self.batch, self.n_features

    @cached_property
    def rows(self) -> Int[Tensor, "active"]:
        """Token of each entry."""
        tokens = torch.arange(self.batch, device=self.features.device)
        return torch.repeat_interleave(tokens, self.offsets.diff(), output_size=self.features.shape[0])

    @cached_property
    def transposed(self) -> Transposed:
        """The same entries sorted by feature; computed once, used by every weight gradient."""
        order = torch.argsort(self.features, stable=True)
        counts = torch.bincount(self.features, minlength=self.n_features)
        return Transposed(order, self.features[order], self.rows[order], functional.pad(counts.cumsum(0), (1, 0)))

    def with_values(self, values: Float[Tensor, "active"]) -> SparseFeatures:
        """Other values on the same entries; what was computed about the entries is kept."""
        other = SparseFeatures(values, self.features, self.offsets, self.n_features)
        for name in ("rows", "transposed"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        return other

    def kept(self, mask: Bool[Tensor, "active"]) -> SparseFeatures:
        """Only the entries where ``mask`` holds."""
        counts = torch.bincount(self.rows[mask], minlength=self.batch)
        offsets = functional.pad(counts.cumsum(0), (1, 0))
        return SparseFeatures(self.values[mask], self.features[mask], offsets, self.n_features)

    def dense(self) -> Float[Tensor, "batch feature"]:
        """The dense tensor, differentiable in the values."""
        flat = self.values.new_zeros(self.batch * self.n_features)
        return flat.index_add(0, self.rows * self.n_features + self.features, self.values).view(self.shape)

    @staticmethod
    def from_dense(dense: Float[Tensor, "batch feature"]) -> SparseFeatures:
        """Keep the non-zero entries of a dense tensor."""
        return SparseFeatures.from_mask(dense, dense != 0)

    @staticmethod
    def from_mask(dense: Float[Tensor, "batch feature"], mask: Tensor) -> SparseFeatures:
        """Keep the entries of a dense tensor where ``mask`` holds."""
        rows, features = mask.nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=dense.shape[0])
        return SparseFeatures(dense[rows, features], features, functional.pad(counts.cumsum(0), (1, 0)), dense.shape[1])


LayerFeatures: TypeAlias = SparseFeatures | Tensor
"""One layer's features: sparse, or a dense (batch, feature) tensor where sparsity would not pay."""


def dense(features: LayerFeatures) -> Float[Tensor, "batch feature"]:
    """The dense tensor of either form."""
    return features.dense() if isinstance(features, SparseFeatures) else features


def active_counts(features: LayerFeatures) -> Int[Tensor, "feature"]:
    """On how many tokens of the batch each feature is active (> 0)."""
    if isinstance(features, SparseFeatures):
        return torch.bincount(features.features[features.values > 0], minlength=features.n_features)
    return (features > 0).sum(0)


def weighted(features: LayerFeatures, weights: Float[Tensor, "feature"]) -> Tensor:
    """Each entry times its feature's weight: ``(active,)`` if sparse, ``(batch, feature)`` if dense."""
    if isinstance(features, SparseFeatures):
        return features.values * weights[features.features]
    return features * weights


class Product(NamedTuple):
    """What features write through a table, not multiplied out yet."""

    features: SparseFeatures
    table: Float[Tensor, "feature target d_model"]


def write(
    features: LayerFeatures, table: Float[Tensor, "feature target d_model"]
) -> Float[Tensor, "batch target d_model"]:
    """What the active features write: ``sum_f a[b, f] table[f]``, differentiable in both."""
    if not isinstance(features, SparseFeatures):
        return (features @ table.flatten(1)).unflatten(1, table.shape[1:])
    nothing = table.new_zeros(features.batch, *table.shape[1:])
    return add_written(nothing, [Product(features, table)])


def add_written(
    offsets: Float[Tensor, "batch layer d_model"], written: Sequence[Product | Float[Tensor, "batch _ d_model"]]
) -> Float[Tensor, "batch layer d_model"]:
    """Add what each source layer wrote to the layers it wrote to: slice ``j`` of ``written[s]`` goes to ``s + j``.

    One autograd node a source, which adds in place: adding slices would copy the whole tensor once per source.
    """
    total = offsets.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    for source, part in enumerate(written):
        if isinstance(part, Product):
            values = part.features.values.to(part.table.dtype)
            total = cast(Tensor, _AddProduct.apply(total, values, part.table, part.features, source))
        else:
            total = cast(Tensor, _Add.apply(total, part, source))
    return total.transpose(0, 1)


def row_norms(table: Float[Tensor, "feature target d_model"]) -> Float[Tensor, "feature"]:
    """Norm of each feature's rows together; its gradient is made in one pass over the table, not in five."""
    return cast(Tensor, _RowNorms.apply(table))


def preactivations(
    inputs: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "feature d_model"],
    bias: Float[Tensor, "feature"],
    selected: SparseFeatures,
) -> Float[Tensor, "active"]:
    """``inputs @ weight.T + bias`` at the selected entries, differentiable there and nowhere else.

    ``selected.values`` already holds those numbers, without a gradient: the caller needed the dense product to select.
    """
    return cast(Tensor, _Preactivations.apply(inputs, weight, bias, selected))


def bag(table: Tensor, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of table rows, one per bag ``indices[offsets[i]:offsets[i + 1]]``."""
    return functional.embedding_bag(
        indices, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


class _AddProduct(Function):
    """``total[source + j] += sum_f a[b, f] table[f, j]``, in place; ``total`` is (layer, batch, d_model)."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, total: Tensor, values: Tensor, table: Tensor, features: SparseFeatures, source: int
    ) -> Tensor:
        ctx.mark_dirty(total)
        ctx.save_for_backward(values, table)
        cast(Any, ctx).features, cast(Any, ctx).source = features, source
        width = _columns(table)
        rows, rows_each = table.reshape(-1, width), table[0].numel() // width
        indices = features.features * rows_each
        for part, block in enumerate(_blocks(total[source : source + table.shape[1]], width)):
            block += bag(rows[part:], indices, features.offsets, values)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        values, table = ctx.saved_tensors
        (gradient,) = grad_outputs
        here = gradient[ctx.source : ctx.source + table.shape[1]]
        to_values = to_table = None
        if ctx.needs_input_grad[1]:
            products = [row_products(table[:, target], part, ctx.features) for target, part in enumerate(here)]
            to_values = torch.stack(products).sum(0)
        if ctx.needs_input_grad[2]:
            to_table = _table_gradient(here, values, ctx.features)
        return gradient, to_values, to_table, None, None


class _Add(Function):
    """``total[source + j] += written[:, j]``, in place; ``total`` is (layer, batch, d_model)."""

    @staticmethod
    def forward(ctx: FunctionCtx, total: Tensor, written: Tensor, source: int) -> Tensor:
        ctx.mark_dirty(total)
        cast(Any, ctx).slice = slice(source, source + written.shape[1])
        total[cast(Any, ctx).slice] += written.transpose(0, 1)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = grad_outputs
        return gradient, gradient[ctx.slice].transpose(0, 1), None


class _RowNorms(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor) -> Tensor:
        norms = table.flatten(1).norm(dim=1)
        ctx.save_for_backward(table, norms)
        return norms

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        table, norms = ctx.saved_tensors
        return table * torch.where(norms > 0, grad_outputs[0] / norms, 0.0)[:, None, None]


class _Preactivations(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, weight: Tensor, bias: Tensor, selected: SparseFeatures) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        cast(Any, ctx).selected = selected
        return selected.values.detach().to(weight.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        selected: SparseFeatures = ctx.selected
        gradient = grad_outputs[0].contiguous()
        to_inputs = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_inputs = bag(weight, selected.features, selected.offsets, gradient)
        if ctx.needs_input_grad[1]:
            to_weight = _table_gradient(inputs[None], gradient, selected)[:, 0]
        if ctx.needs_input_grad[2]:
            to_bias = gradient.new_zeros(selected.n_features).index_add(0, selected.features, gradient)
        return to_inputs, to_weight, to_bias, None


def row_products(
    table: Float[Tensor, "feature width"], gradient: Float[Tensor, "batch width"], features: SparseFeatures
) -> Float[Tensor, "active"]:
    """``table[feature] . gradient[token]`` for every active entry: the gradient of the values.

    Feature by feature, so that the table, the larger of the two, is read once.
    """
    by_feature = features.transposed
    if table.device.type != "cpu" or table.dtype not in (torch.float32, torch.float64):
        # The backward of embedding_bag with respect to its weights, called directly because it gathers no rows.
        products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            gradient, table, by_feature.features, features.offsets[:-1], by_feature.rows, 0
        )
    else:
        sums = _csr(by_feature, table.new_zeros(by_feature.rows.shape[0]), features.batch)
        width = _columns(table)
        for columns, part in zip(table.split(width, dim=1), gradient.split(width, dim=1), strict=True):
            sums = torch.sparse.sampled_addmm(sums, columns, part.T)
        products = sums.values()
    return torch.empty_like(products).index_copy_(0, by_feature.order, products)


def _csr(entries: Transposed, values: Float[Tensor, "active"], batch: int) -> Tensor:
    """A (feature, batch) sparse tensor of PyTorch's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are in beta, it says, and we check nothing
        size = (entries.offsets.shape[0] - 1, batch)
        return torch.sparse_csr_tensor(entries.offsets, entries.rows, values, size, check_invariants=False)


def _table_gradient(
    gradient: Float[Tensor, "target batch d_model"], values: Float[Tensor, "active"], features: SparseFeatures
) -> Float[Tensor, "feature target d_model"]:
    """``sum_b a[b, f] gradient[:, b]`` for every feature."""
    by_feature = features.transposed
    weights = values[by_feature.order]
    width = _columns(gradient)
    result = gradient.new_empty(features.n_features, gradient.shape[0], gradient.shape[2])
    columns = result.flatten(1).split(width, dim=1)
    for block, place in zip(_blocks(gradient, width), columns, strict=True):
        place.copy_(bag(block.contiguous(), by_feature.rows, by_feature.offsets, weights))
    return result


def _columns(tensor: Float[Tensor, "*any d_model"]) -> int:
    """How many columns to take at a time: a divisor of d_model."""
    d_model = tensor.shape[-1]
    if tensor.device.type != "cpu":
        return d_model
    fitting = range(min(_CACHED_COLUMNS, d_model), _CACHED_COLUMNS // 4, -1)
    return next((width for width in fitting if d_model % width == 0), d_model)


def _blocks(tensor: Float[Tensor, "target batch d_model"], width: int) -> Iterator[Float[Tensor, "batch width"]]:
    """Views of so many columns, in the order in which a row of a table holds them."""
    for target in tensor:
        yield from target.split(width, dim=1)
