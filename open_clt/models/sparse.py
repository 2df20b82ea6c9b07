"""Sparse features, and the products of a transcoder that touch active rows only.

With ``k`` of ``F`` features active, a transcoder's decoder (forward, and both gradients) and the weight gradient of its
encoder need ``k / F`` of the dense work. What remains dense is one encoder product. Everything here is made of one
stock operation, ``embedding_bag``: a weighted sum of table rows per bag.

    decode            bags are tokens,   rows are features:  y[b] = sum_f a[b, f] W[f]
    gradient of W     bags are features, rows are tokens:    g[f] = sum_b a[b, f] gy[b]

The second is the first with the codes transposed, so no gradient is ever scattered: each row is written once.
Dense twins of every function stand in tests/reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx
from torch.nn import functional

DENSE_ABOVE = 1 / 5
"""Share of active features above which dense products are the faster ones.

Measured on one CPU core in fp32, decoding with both gradients: sparse is 20 times as fast at 0.2 %, 4 times at 3 %,
twice at 12 %, and no faster at 25 %, whatever the shape.
"""


class Transposed(NamedTuple):
    """Active entries sorted by feature: the codes as a (feature, batch) CSR matrix."""

    order: Int[Tensor, "active"]
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
        return Transposed(order, self.rows[order], functional.pad(counts.cumsum(0), (1, 0)))

    def with_values(self, values: Float[Tensor, "active"]) -> SparseFeatures:
        """Other values on the same entries; what was computed about the entries is kept."""
        other = SparseFeatures(values, self.features, self.offsets, self.n_features)
        for name in ("rows", "transposed"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        return other

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


def write(
    features: LayerFeatures, table: Float[Tensor, "feature target d_model"]
) -> Float[Tensor, "batch target d_model"]:
    """What the active features write: ``sum_f a[b, f] table[f]``, differentiable in both."""
    flat = table.flatten(1)
    if isinstance(features, SparseFeatures):
        written = cast(Tensor, _Write.apply(features.values, flat, features))
    else:
        written = features @ flat
    return written.unflatten(1, table.shape[1:])


def add_written(
    offsets: Float[Tensor, "batch layer d_model"], written: Sequence[Float[Tensor, "batch _ d_model"]]
) -> Float[Tensor, "batch layer d_model"]:
    """Add what each source layer wrote to the layers it wrote to: slice ``j`` of ``written[s]`` goes to ``s + j``.

    One autograd node: adding slice by slice would copy the whole tensor once per source on the way back.
    """
    return cast(Tensor, _AddWritten.apply(offsets, *written))


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


class _Write(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, table: Tensor, features: SparseFeatures) -> Tensor:
        ctx.save_for_backward(values, table)
        cast(Any, ctx).features = features
        return bag(table, features.features, features.offsets, values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        values, table = ctx.saved_tensors
        features: SparseFeatures = ctx.features
        gradient = grad_outputs[0].contiguous()
        to_values = to_table = None
        if ctx.needs_input_grad[0]:
            to_values = row_products(table, gradient, features)
        if ctx.needs_input_grad[1]:
            by_feature = features.transposed
            to_table = bag(gradient, by_feature.rows, by_feature.offsets, values[by_feature.order])
        return to_values, to_table, None


class _AddWritten(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, offsets: Tensor, *written: Tensor) -> Tensor:
        cast(Any, ctx).reaches = [part.shape[1] for part in written]
        total = offsets.clone()
        for source, part in enumerate(written):
            total[:, source : source + part.shape[1]] += part
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = grad_outputs
        slices = (gradient[:, source : source + reach] for source, reach in enumerate(ctx.reaches))
        return gradient, *slices


class _Preactivations(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, weight: Tensor, bias: Tensor, selected: SparseFeatures) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        cast(Any, ctx).selected = selected
        return selected.values.detach().clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        selected: SparseFeatures = ctx.selected
        gradient = grad_outputs[0].contiguous()
        to_inputs = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_inputs = bag(weight, selected.features, selected.offsets, gradient)
        if ctx.needs_input_grad[1]:
            by_feature = selected.transposed
            to_weight = bag(inputs, by_feature.rows, by_feature.offsets, gradient[by_feature.order])
        if ctx.needs_input_grad[2]:
            to_bias = gradient.new_zeros(selected.n_features).index_add(0, selected.features, gradient)
        return to_inputs, to_weight, to_bias, None


def row_products(
    table: Float[Tensor, "feature width"], gradient: Float[Tensor, "batch width"], features: SparseFeatures
) -> Float[Tensor, "active"]:
    """``table[feature] . gradient[token]`` for every active entry: the gradient of the values.

    It is the backward of ``embedding_bag`` with respect to its weights, called directly because it gathers no rows.
    """
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        gradient, table, features.features, features.offsets[:-1], features.rows, 0
    )
