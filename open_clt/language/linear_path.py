"""The linear path: a language model on one prompt, with its nonlinear parts frozen.

With attention patterns and norm denominators frozen at their values on the prompt, and MLP outputs taken as given, the
residual stream is a linear function of the embeddings, the MLP outputs and the biases:

    mid^l  = pre^l + Norm_post(sum_h pattern_h (Norm_1(pre^l) W_V,h + b_V,h) W_O,h + b_O)
    pre^{l+1} = mid^l + mlp^l          (blocks with parallel attention: the MLP reads pre^l instead of mid^l)
    logits = Norm_final(pre^L) W_U + b_U

``read_linear_path`` reads these weights and the activations of one forward pass as plain tensors. It verifies block by
block that they give the model's own activations. A model that the path cannot express raises an error that names the
block, and never gives a wrong graph. Every architecture whose blocks pass the check is supported: with LayerNorm or
RMSNorm, before or after attention, with learned or rotary positions, with or without grouped queries.

An adjoint takes linear functions of an output to the same functions of the input: each row of its argument holds the
coefficients of one function, and so does each row of its result. The first ``length`` positions are those that the
functions can depend on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.config import InputHook
from open_clt.errors import LanguageModelError
from open_clt.language.language_model import LanguageModel

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest allowed deviation from the model's own activations, relative to their norm, by the dtype of the model."""


@final
@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """LayerNorm (``centred``) or RMSNorm with its denominators frozen: ``(x - mean(x)) / scale * weight + bias``."""

    scale: Float[Tensor, "position 1"]
    weight: Float[Tensor, "d_model"] | None
    bias: Float[Tensor, "d_model"] | None
    centred: bool

    def forward(self, inputs: Float[Tensor, "position d_model"]) -> Float[Tensor, "position d_model"]:
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


class AttentionFactors(NamedTuple):
    """The linear part of attention as three factors, into which the norms before and after attention are folded.

    The stream times ``values`` gives the values of each head, ``pattern`` moves the values between positions, and the
    moved values times ``outputs`` are the output of attention. The adjoint goes the same way back.
    """

    values: Float[Tensor, "d_model kv_width"]
    pattern: Float[Tensor, "head query key"]
    outputs: Float[Tensor, "head_width d_model"]


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
    reader: FrozenNorm | None
    """Norm, without weight and bias, between residual stream and encoder; None if the encoder reads the stream."""
    mlp_output: Float[Tensor, "position d_model"]
    parallel: bool
    """Whether attention and MLP run in parallel, so that the MLP reads the stream before attention."""

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

    def attention_adjoint(
        self, cotangents: Float[Tensor, "batch position d_model"]
    ) -> Float[Tensor, "batch position d_model"]:
        """Take linear functions of the output of attention to functions of the stream that it reads.

        ``Z = G W_O^T``, ``V[k] = sum_q pattern[q, k] Z[q]``, ``X = V W_V^T``, with the norms folded into the factors.
        """
        return self.values_adjoint(cotangents) @ self.factors.values.T

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
        """Return the adjoint of each head alone; the sum over heads is ``attention_adjoint``."""
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


@final
@dataclass(frozen=True, eq=False)
class LinearPath:
    """A model on one prompt, as a linear function from the embeddings and MLP outputs to the logits."""

    tokens: Int[Tensor, "position"]
    embedding: Float[Tensor, "position d_model"]
    positional: Float[Tensor, "position d_model"] | None
    """Learned positional embeddings, or None if positions enter through attention alone."""
    blocks: tuple[LinearBlock, ...]
    final_norm: FrozenNorm
    W_U: Float[Tensor, "d_model vocab"]
    b_U: Float[Tensor, "vocab"] | None
    inputs: Float[Tensor, "layer position d_model"]
    """Inputs of the encoders of a transcoder, one per layer."""
    final: Float[Tensor, "position d_model"]
    """The residual stream after the last block."""
    logits: Float[Tensor, "position vocab"]
    """The model's own logits, before ``logit_cap`` is applied."""
    logit_cap: float | None
    """Bound on the logits, which are ``cap * tanh(logits / cap)``; None for models without a bound."""

    @property
    def n_positions(self) -> int:
        """Number of tokens."""
        return self.tokens.shape[0]

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.embedding.shape[1]

    def probabilities(self, position: int) -> Float[Tensor, "vocab"]:
        """Return the model's probabilities of the next token after one position."""
        logits, cap = self.logits[position], self.logit_cap
        return (logits if cap is None else cap * torch.tanh(logits / cap)).softmax(-1)


@torch.no_grad()
def read_linear_path(model: LanguageModel, tokens: Int[Tensor, "position"], input_hook: InputHook) -> LinearPath:
    """Run a model once and read its linear path; raises LanguageModelError if the path cannot express the model."""
    names = _hook_names(model, input_hook)
    logits, cache = model.run_with_cache(tokens[None], list(names))
    # Some architectures (OPT) compute positional embeddings without a batch axis.
    values = {name: (value[0] if value.shape[0] == 1 else value).float() for name, value in cache.items()}
    bridge = model.bridge
    cap = getattr(bridge.cfg, "output_logits_soft_cap", None)
    cap = float(cap) if cap is not None and cap > 0 else None
    streams = [values[f"blocks.{layer}.hook_in"] for layer in range(model.n_layers)] + [values["ln_final.hook_in"]]
    path = LinearPath(
        tokens=tokens,
        embedding=values["embed.hook_out"],
        positional=values.get("pos_embed.hook_out"),
        blocks=tuple(_read_block(model, layer, values, input_hook) for layer in range(model.n_layers)),
        final_norm=_read_norm(bridge.ln_final, values["ln_final.hook_scale"]),
        W_U=bridge.W_U.float(),
        b_U=_optional(bridge.b_U),
        inputs=torch.stack([values[model.hook_name(layer, input_hook)] for layer in range(model.n_layers)]),
        final=streams[-1],
        logits=logits[0].float() if cap is None else cap * torch.atanh(logits[0].float() / cap),
        logit_cap=cap,
    )
    _verify(model, path, streams)
    return path


def _hook_names(model: LanguageModel, input_hook: InputHook) -> list[str]:
    """Return the names of the hooks that the path reads; optional hooks are left out if the model lacks them."""
    known = model.bridge.hook_dict
    names = ["embed.hook_out", "ln_final.hook_in", "ln_final.hook_scale"]
    names += [name for name in ("pos_embed.hook_out",) if name in known]
    for layer in range(model.n_layers):
        block = f"blocks.{layer}"
        names += [f"{block}.hook_in", f"{block}.attn.hook_pattern", f"{block}.hook_mlp_out"]
        names.append(model.hook_name(layer, input_hook))
        if input_hook == "ln2.hook_normalized":
            names.append(f"{block}.ln2.hook_scale")
        names += [f"{block}.{norm}.hook_scale" for norm in ("ln1", "ln1_post") if f"{block}.{norm}.hook_scale" in known]
    return list(dict.fromkeys(names))


def _read_block(model: LanguageModel, layer: int, values: dict[str, Tensor], input_hook: InputHook) -> LinearBlock:
    block: Any = model.bridge.blocks[layer]
    prefix = f"blocks.{layer}"

    def norm(name: str) -> FrozenNorm | None:
        scale = values.get(f"{prefix}.{name}.hook_scale")
        return None if scale is None else _read_norm(getattr(block, name), scale)

    try:
        attention = block.attn
        weights = attention.W_V.float(), attention.W_O.float(), attention.b_V, attention.b_O
    except AttributeError as error:
        raise _inexpressible(model, f"the attention of block {layer}", str(error)) from error
    W_V, W_O, b_V, b_O = weights
    reader = None
    if input_hook == "ln2.hook_normalized":
        reader = FrozenNorm(values[f"{prefix}.ln2.hook_scale"], None, None, centred=not block.ln2.uses_rms_norm)
    return LinearBlock(
        attention_norm=norm("ln1"),
        pattern=values[f"{prefix}.attn.hook_pattern"],
        W_V=W_V,
        b_V=_optional(b_V),
        W_O=W_O,
        b_O=_optional(b_O),
        post_norm=norm("ln1_post"),
        reader=reader,
        mlp_output=values[f"{prefix}.hook_mlp_out"],
        parallel=bool(getattr(model.bridge.cfg, "parallel_attn_mlp", False)),
    )


def _read_norm(norm: Any, scale: Float[Tensor, "position 1"]) -> FrozenNorm:
    weight = norm.weight.float()
    if norm.uses_weight_offset:
        weight = weight + 1
    bias = None if norm.uses_rms_norm else _optional(getattr(norm.original_component, "bias", None))
    return FrozenNorm(scale, weight, bias, centred=not norm.uses_rms_norm)


def _optional(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().float()


def _verify(model: LanguageModel, path: LinearPath, streams: list[Tensor]) -> None:
    """Compare the path with the model's own residual stream and logits, part by part."""
    embedded = path.embedding if path.positional is None else path.embedding + path.positional
    _compare(model, "the embedding", embedded, streams[0])
    for layer, block in enumerate(path.blocks):
        attention = block.attention(streams[layer])
        mlp_input = streams[layer] if block.parallel else streams[layer] + attention
        mlp_input = mlp_input if block.reader is None else block.reader.forward(mlp_input)
        _compare(model, f"block {layer}", attention + block.mlp_output, streams[layer + 1] - streams[layer])
        _compare(model, f"the MLP input of block {layer}", mlp_input, path.inputs[layer])
    last_logits = path.final_norm.forward(path.final)[-1:] @ path.W_U
    last_logits = last_logits if path.b_U is None else last_logits + path.b_U
    _compare(model, "the unembedding", last_logits, path.logits[-1:])


def _compare(model: LanguageModel, part: str, computed: Tensor, expected: Tensor) -> None:
    deviation = float((computed - expected).norm() / expected.norm().clamp(min=1e-30))
    if not deviation <= _TOLERANCE.get(model.dtype, 1e-3):
        raise _inexpressible(model, part, f"it deviates from the model's own activations by {deviation:.1e}")


def _inexpressible(model: LanguageModel, part: str, reason: str) -> LanguageModelError:
    return LanguageModelError(
        f"Attribution cannot express {part} of {model.name}, which is not linear with frozen attention patterns and "
        f"norms ({reason}); use another language model."
    )
