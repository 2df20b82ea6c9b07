"""Linear blocks: the norms and the attention of the linear path, with their adjoints.

An adjoint takes linear functions of an output to the same functions of the input: each row of its argument holds the
coefficients of one function, and so does each row of its result. The first ``length`` positions are those that the
functions can depend on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.short_repr import short_repr


@final
@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """LayerNorm (``centred``) or RMSNorm with its denominators frozen: ``(x - mean(x)) / scale * weight + bias``."""

    scale: Float[Tensor, "*batch position 1"]
    weight: Float[Tensor, "d_model"] | None
    bias: Float[Tensor, "d_model"] | None
    centred: bool

    def forward(self, inputs: Float[Tensor, "*batch position d_model"]) -> Float[Tensor, "*batch position d_model"]:
        """Normalise a residual stream with the denominators of the prompt."""
        centred = inputs - inputs.mean(-1, keepdim=True) if self.centred else inputs
        weighted = centred / self.scale if self.weight is None else centred / self.scale * self.weight
        return weighted if self.bias is None else weighted + self.bias

    def adjoint(self, cotangents: Float[Tensor, "*batch position d_model"]) -> Float[Tensor, "*batch position d_model"]:
        """Take linear functions of the output to functions of the input; the last positions may be missing."""
        return self._adjoint(cotangents, self.scale[: cotangents.shape[-2]])

    def adjoint_at(
        self, cotangents: Float[Tensor, "target d_model"], positions: Int[Tensor, "target"]
    ) -> Float[Tensor, "target d_model"]:
        """Take linear functions of the output at one position each to functions of the input at that position."""
        return self._adjoint(cotangents, self.scale[positions])

    def unscaled(self, inputs: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Apply the part of the norm that is the same at every position: the linear part without denominators."""
        centred = inputs - inputs.mean(-1, keepdim=True) if self.centred else inputs
        return centred if self.weight is None else centred * self.weight

    def unscaled_adjoint(self, cotangents: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Apply the adjoint of ``unscaled``."""
        weighted = cotangents if self.weight is None else cotangents * self.weight
        return weighted - weighted.mean(-1, keepdim=True) if self.centred else weighted

    def _adjoint(self, cotangents: Tensor, scale: Tensor) -> Tensor:
        scaled = cotangents / scale if self.weight is None else cotangents * (self.weight / scale)
        return scaled - scaled.mean(-1, keepdim=True) if self.centred else scaled

    __repr__ = short_repr


class AttentionFactors(NamedTuple):
    """The linear part of attention as three factors, into which the norms before and after attention are folded.

    The stream times ``values`` gives the values of each head, ``pattern`` moves the values between positions, and the
    moved values times ``outputs`` are the output of attention. The adjoint goes the same way back.
    """

    values: Float[Tensor, "d_model kv_width"]
    pattern: Float[Tensor, "head query key"]
    outputs: Float[Tensor, "head_width d_model"]

    __repr__ = short_repr


@final
@dataclass(frozen=True, eq=False)
class LinearBlock:
    """One block of the path: attention with frozen patterns, norms with frozen denominators, and a given MLP output."""

    attention_norm: FrozenNorm | None
    pattern: Float[Tensor, "head query key"]
    W_V: Float[Tensor, "kv_head d_model d_head"]
    b_V: Float[Tensor, "kv_head d_head"] | None
    W_O: Float[Tensor, "head d_head d_model"]
    b_O: Float[Tensor, "d_model"] | None
    post_norm: FrozenNorm | None
    """Norm of the output of attention, or None for models without one."""
    mlp_output: Float[Tensor, "position d_model"]

    def attention(self, inputs: Float[Tensor, "position d_model"]) -> Float[Tensor, "position d_model"]:
        """Return the output of attention on a residual stream, with the patterns and denominators of the prompt."""
        normed = inputs if self.attention_norm is None else self.attention_norm.forward(inputs)
        return self._attend(torch.einsum("pd,gde->gpe", normed, self.W_V))

    def attention_bias(self) -> Float[Tensor, "position d_model"]:
        """Return the output of attention on a stream of zeros: the effect of its biases."""
        constant = self.W_V.new_zeros(self.mlp_output.shape)
        norm = self.attention_norm
        if norm is not None and norm.bias is not None:
            constant = constant + norm.bias
        return self._attend(torch.einsum("pd,gde->gpe", constant, self.W_V))

    @cached_property
    def factors(self) -> AttentionFactors:
        """The factors by which the adjoint multiplies; the norms are folded in once, and then cost nothing."""
        values, outputs, pattern = self.W_V.transpose(1, 2).flatten(0, 1), self.W_O.flatten(0, 1), self.pattern
        if self.attention_norm is not None:
            values = self.attention_norm.unscaled_adjoint(values)
            pattern = pattern / self.attention_norm.scale.T
        if self.post_norm is not None:
            outputs = self.post_norm.unscaled(outputs)
            pattern = pattern / self.post_norm.scale
        return AttentionFactors(values.T.contiguous(), pattern, outputs)

    def values_of(self, inputs: Float[Tensor, "position d_model"]) -> Float[Tensor, "position kv_width"]:
        """Return the values of each head for a stream, without biases and denominators, to match ``values_adjoint``."""
        return inputs @ self.factors.values

    def values_adjoint(
        self, cotangents: Float[Tensor, "batch position d_model"]
    ) -> Float[Tensor, "batch position kv_width"]:
        """Take linear functions of the output of attention to functions of the values of its heads."""
        return self._add_shared(self._values_adjoint_by_head(cotangents))

    def values_adjoint_at(
        self, cotangents: Float[Tensor, "target d_model"], positions: Int[Tensor, "target"], length: int
    ) -> Float[Tensor, "target position kv_width"]:
        """Take functions of the output at one position each to functions of the values at ``length`` positions."""
        outputs = self._split_heads(cotangents @ self.factors.outputs.T)
        return self._add_shared(torch.einsum("hbk,bhe->bkhe", self.factors.pattern[:, positions, :length], outputs))

    def add_attention_adjoint(self, cotangents: Float[Tensor, "batch position d_model"]) -> None:
        """Add, to linear functions of the stream after attention, what they read of the stream before it.

        ``Z = G W_O^T``, ``V[k] = sum_q pattern[q, k] Z[q]``, ``X = V W_V^T``, with the norms folded into the factors.
        """
        values = self.values_adjoint(cotangents)
        cotangents.view(-1, cotangents.shape[-1]).addmm_(values.flatten(0, 1), self.factors.values.T)

    def attention_adjoint_at(
        self, cotangents: Float[Tensor, "target d_model"], positions: Int[Tensor, "target"], length: int
    ) -> Float[Tensor, "target position d_model"]:
        """Take functions of the output at one position each to functions of the stream at ``length`` positions.

        Each head then moves a single vector to the other positions, in the shares of its pattern, so ``Z W_V^T`` is
        computed once and not at every position.
        """
        outputs = self._split_heads(cotangents @ self.factors.outputs.T)
        vectors = torch.einsum("bhe,hed->bhd", outputs, self._values_by_head())
        return torch.einsum("hbk,bhd->bkd", self.factors.pattern[:, positions, :length], vectors)

    def head_adjoints(self, cotangents: Float[Tensor, "position d_model"]) -> Float[Tensor, "head position d_model"]:
        """Return the adjoint of each head alone; ``add_attention_adjoint`` adds the sum over heads."""
        return torch.einsum("khe,hed->hkd", self._values_adjoint_by_head(cotangents[None])[0], self._values_by_head())

    def _values_adjoint_by_head(
        self, cotangents: Float[Tensor, "batch position d_model"]
    ) -> Float[Tensor, "batch position head d_head"]:
        """Take linear functions of the output of attention to functions of the values of each query head."""
        positions, factors = cotangents.shape[1], self.factors
        outputs = self._split_heads(cotangents @ factors.outputs.T)
        return torch.einsum("hqk,bqhe->bkhe", factors.pattern[:, :positions, :positions], outputs)

    def _split_heads(self, outputs: Float[Tensor, "*batch head_width"]) -> Float[Tensor, "*batch head d_head"]:
        return outputs.unflatten(-1, self.W_O.shape[:2])

    def _add_shared(
        self, values: Float[Tensor, "batch position head d_head"]
    ) -> Float[Tensor, "batch position kv_width"]:
        """Add up the heads that share one set of values (grouped queries)."""
        kv_heads = self.W_V.shape[0]
        grouped = values if values.shape[2] == kv_heads else values.unflatten(2, (kv_heads, -1)).sum(3)
        return grouped.flatten(2)

    def _values_by_head(self) -> Float[Tensor, "head d_head d_model"]:
        """Return ``factors.values``, transposed, for each query head."""
        kv_heads, heads = self.W_V.shape[0], self.W_O.shape[0]
        return self.factors.values.T.unflatten(0, (kv_heads, -1)).repeat_interleave(heads // kv_heads, dim=0)

    def _attend(self, values: Float[Tensor, "kv_head position d_head"]) -> Float[Tensor, "position d_model"]:
        values = values if self.b_V is None else values + self.b_V[:, None]
        values = values.repeat_interleave(self.W_O.shape[0] // values.shape[0], dim=0)
        output = torch.einsum("hqk,hke,hed->qd", self.pattern, values, self.W_O)
        output = output if self.b_O is None else output + self.b_O
        return output if self.post_norm is None else self.post_norm.forward(output)

    __repr__ = short_repr
