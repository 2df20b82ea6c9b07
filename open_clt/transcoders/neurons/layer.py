"""Neurons of one layer: the weights of an MLP, and its neurons frozen at their values on a prompt.

A neuron's value is ``act(pre)``, or ``act(gate) * up`` in a gated MLP. Neither is a linear function of the input, so
each is frozen:

    ungated    g * pre                              with the gate g = act(pre) / pre
    gated      1/2 (g * up * gate + act(gate) * up)     with g = act(gate) / gate; the factors in front are frozen

In the gated case each factor of the product gets half of it (the half rule of Jafari et al., 2024, "MambaLRP").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.short_repr import short_repr

_NEAR_ZERO = 1e-6
"""Size of pre-activations below which a gate is the slope of the activation function at zero."""


@final
@dataclass(frozen=True, eq=False)
class OutputNorm:
    """A norm between an MLP and the residual stream: LayerNorm (``centred``) or RMSNorm."""

    weight: Float[Tensor, "d_model"]
    bias: Float[Tensor, "d_model"] | None
    eps: float
    centred: bool

    def denominators(self, outputs: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch 1"]:
        """The denominator of each token."""
        outputs = outputs - outputs.mean(-1, keepdim=True) if self.centred else outputs
        return (outputs.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def linear(
        self, vectors: Float[Tensor, "row d_model"], denominators: Float[Tensor, "row 1"] | float
    ) -> Float[Tensor, "row d_model"]:
        """What becomes of vectors that are part of the norm's input, with frozen denominators and without the bias."""
        centred = vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors
        return centred / denominators * self.weight

    __repr__ = short_repr


class _Parts(NamedTuple):
    """The factors of some neurons at some tokens: the value is ``gate(pre) * pre * up``, or without ``up``."""

    pre: Tensor
    activated: Tensor
    up: Tensor | None

    @property
    def value(self) -> Tensor:
        return self.activated if self.up is None else self.activated * self.up


@final
@dataclass(frozen=True, eq=False)
class NeuronLayer:
    """The MLP of one layer, as tensors that the language model owns."""

    W_in: Float[Tensor, "feature d_model"]
    """Weights of the pre-activations, or of the factor without an activation function (up) in a gated MLP."""
    b_in: Float[Tensor, "feature"] | None
    W_gate: Float[Tensor, "feature d_model"] | None
    """Weights of the factor that the activation function is applied to; None for an MLP without gates."""
    b_gate: Float[Tensor, "feature"] | None
    W_out: Float[Tensor, "feature d_model"]
    b_out: Float[Tensor, "d_model"] | None
    activation: Callable[[Tensor], Tensor]
    """The activation function, which is zero at zero."""
    factor: float
    """Constant that the output is multiplied by before it is added to the residual stream."""
    norm: OutputNorm | None
    """Norm between the output and the residual stream."""

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """All weights."""
        candidates = (self.W_in, self.b_in, self.W_gate, self.b_gate, self.W_out, self.b_out)
        return tuple(weight for weight in candidates if weight is not None)

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """The weights that have one row for each neuron."""
        return tuple(weight for weight in (self.W_in, self.W_gate, self.W_out) if weight is not None)

    @property
    def read(self) -> tuple[Tensor, Tensor | None]:
        """Weights and bias of what the activation function is applied to."""
        return (self.W_in, self.b_in) if self.W_gate is None else (self.W_gate, self.b_gate)

    def parts(self, inputs: Float[Tensor, "batch d_model"], chosen: Tensor | slice = slice(None)) -> _Parts:
        """The factors of all neurons, or of the chosen ones, at some tokens: (batch, neuron) each."""
        pre = functional.linear(inputs, *_rows(*self.read, chosen))
        up = None if self.W_gate is None else functional.linear(inputs, *_rows(self.W_in, self.b_in, chosen))
        return _Parts(pre, self.activation(pre), up)

    def parts_at(self, inputs: Float[Tensor, "chosen d_model"], chosen: Int[Tensor, "chosen"]) -> _Parts:
        """The factors of the chosen neurons, each at a token of its own: (chosen,) each."""

        def at(weight: Tensor, bias: Tensor | None) -> Tensor:
            rows, biases = _rows(weight, bias, chosen)
            products = (rows * inputs).sum(-1)
            return products if biases is None else products + biases

        pre = at(*self.read)
        return _Parts(pre, self.activation(pre), None if self.W_gate is None else at(self.W_in, self.b_in))

    def slopes(self, parts: _Parts) -> tuple[Tensor, Tensor | None]:
        """The coefficients of the pre-activation and of ``up`` in the frozen neuron; without gates, of the first only.

        The neuron's value is the sum of the coefficients times these factors.
        """
        near_zero = parts.pre.abs() < _NEAR_ZERO
        gate = torch.where(near_zero, self._slope.to(parts.pre), parts.activated / parts.pre.masked_fill(near_zero, 1))
        return (gate, None) if parts.up is None else (gate * parts.up / 2, parts.activated / 2)

    @cached_property
    def _slope(self) -> Tensor:
        """The derivative of the activation function at zero."""
        with torch.enable_grad():
            zero = self.W_in.new_zeros(1, 1, dtype=torch.float32, requires_grad=True)
            (slope,) = torch.autograd.grad(self.activation(zero).sum(), zero)
        return slope[0, 0]

    def denominators(self, inputs: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch 1"] | None:
        """The denominators of the norm after the MLP; None without one."""
        if self.norm is None:
            return None
        return self.norm.denominators(functional.linear(self.parts(inputs).value, self.W_out.T, self.b_out))

    def through_norm(self, vectors: Float[Tensor, "row d_model"], denominators: Tensor | None) -> Tensor:
        """What becomes of a part of the MLP's output on its way to the residual stream."""
        scaled = vectors if self.factor == 1 else vectors * self.factor
        if self.norm is None:
            return scaled
        assert denominators is not None
        return self.norm.linear(scaled, denominators)

    __repr__ = short_repr


def _rows(weight: Tensor, bias: Tensor | None, chosen: Tensor | slice) -> tuple[Tensor, Tensor | None]:
    return weight[chosen], None if bias is None else bias[chosen]
