"""The linear path: a language model on one prompt, with everything frozen that is not linear.

With attention patterns and norm denominators held at the prompt's values, and MLP outputs taken as given, the residual
stream is a linear function of the embeddings, the MLP outputs and the biases:

    mid^l  = pre^l + Norm_post(sum_h pattern_h (Norm_1(pre^l) W_V,h + b_V,h) W_O,h + b_O)
    pre^{l+1} = mid^l + mlp^l          (blocks with parallel attention: the MLP reads pre^l instead of mid^l)
    logits = Norm_final(pre^L) W_U + b_U

``read_linear_path`` takes those weights and one forward pass from a model as plain tensors, and verifies block by block
that they give the model's own activations: what this path cannot express is an error that names the block, never a
wrong graph. Any architecture whose blocks pass is supported: LayerNorm or RMSNorm, before or after attention, learned
or rotary positions, grouped queries.
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
"""Largest deviation from the model's own activations, relative to their norm; rounding stays far below it."""


@final
@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """LayerNorm (``centred``) or RMSNorm with its denominators frozen: ``(x - mean(x)) / scale * weight + bias``."""

    scale: Float[Tensor, "position 1"]
    weight: Float[Tensor, "d_model"] | None
    bias: Float[Tensor, "d_model"] | None
    centred: bool

    def forward(self, inputs: Float[Tensor, "position d_model"]) -> Float[Tensor, "position d_model"]:
        """The norm of a stream that has the prompt's denominators."""
        centred = inputs - inputs.mean(-1, keepdim=True) if self.centred else inputs
        weighted = centred / self.scale if self.weight is None else centred / self.scale * self.weight
        return weighted if self.bias is None else weighted + self.bias

    def adjoint(self, cotangents: Float[Tensor, "*batch position d_model"]) -> Float[Tensor, "*batch position d_model"]:
        """From linear functions of the output to the same functions of the input; the last positions may be missing."""
        return self._adjoint(cotangents, self.scale[: cotangents.shape[-2]])

    def adjoint_at(
        self, cotangents: Float[Tensor, "target d_model"], positions: Int[Tensor, "target"]
    ) -> Float[Tensor, "target d_model"]:
        """The same for functions that each look at one position."""
        return self._adjoint(cotangents, self.scale[positions])

    def unscaled(self, inputs: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """The norm's linear part, not divided by denominators: what is the same at every position."""
        centred = inputs - inputs.mean(-1, keepdim=True) if self.centred else inputs
        return centred if self.weight is None else centred * self.weight

    def unscaled_adjoint(self, cotangents: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """The adjoint of ``unscaled``."""
        weighted = cotangents if self.weight is None else cotangents * self.weight
        return weighted - weighted.mean(-1, keepdim=True) if self.centred else weighted

    def _adjoint(self, cotangents: Tensor, scale: Tensor) -> Tensor:
        scaled = cotangents / scale if self.weight is None else cotangents * (self.weight / scale)
        return scaled - scaled.mean(-1, keepdim=True) if self.centred else scaled


class AttentionFactors(NamedTuple):
    """The linear part of attention as three factors, the norms before and after it folded in.

    A position's input times ``values`` gives each head's values; ``pattern`` moves them; times ``outputs`` they are
    what attention adds. The adjoint goes the same way back.
    """

    values: Float[Tensor, "d_model kv_width"]
    pattern: Float[Tensor, "head query key"]
    outputs: Float[Tensor, "head_width d_model"]


@final
@dataclass(frozen=True, eq=False)
class LinearBlock:
    """One block of the path: its attention with frozen patterns, its norms, and its MLP output as given."""

    attention_norm: FrozenNorm | None
    pattern: Float[Tensor, "head query key"]
    W_V: Float[Tensor, "kv_head d_model d_head"]
    b_V: Float[Tensor, "kv_head d_head"] | None
    W_O: Float[Tensor, "head d_head d_model"]
    b_O: Float[Tensor, "d_model"] | None
    post_norm: FrozenNorm | None
    """Norm of the attention's output, for models that have one."""
    reader: FrozenNorm | None
    """Norm between the residual stream and the encoder, without weight and bias; None if it reads the stream itself."""
    mlp_output: Float[Tensor, "position d_model"]
    parallel: bool
    """Whether the MLP reads the stream before attention."""

    def attention(self, inputs: Float[Tensor, "position d_model"]) -> Float[Tensor, "position d_model"]:
        """What attention adds to a stream that has the prompt's patterns and denominators."""
        normed = inputs if self.attention_norm is None else self.attention_norm.forward(inputs)
        return self._attend(torch.einsum("pd,gde->gpe", normed, self.W_V))

    def attention_bias(self) -> Float[Tensor, "position d_model"]:
        """What attention adds whatever it reads: the biases of its norms, values and outputs."""
        constant = self.W_V.new_zeros(self.mlp_output.shape)
        norm = self.attention_norm
        if norm is not None and norm.bias is not None:
            constant = constant + norm.bias
        return self._attend(torch.einsum("pd,gde->gpe", constant, self.W_V))

    @cached_property
    def factors(self) -> AttentionFactors:
        """What the adjoint multiplies by; norms cost it nothing, as they are folded once."""
        values, outputs, pattern = self.W_V.transpose(1, 2).flatten(0, 1), self.W_O.flatten(0, 1), self.pattern
        if self.attention_norm is not None:
            values = self.attention_norm.unscaled_adjoint(values)
            pattern = pattern / self.attention_norm.scale.T
        if self.post_norm is not None:
            outputs = self.post_norm.unscaled(outputs)
            pattern = pattern / self.post_norm.scale
        return AttentionFactors(values.T.contiguous(), pattern, outputs)

    def values_of(self, inputs: Float[Tensor, "position d_model"]) -> Float[Tensor, "position kv_width"]:
        """Each head's values of a stream, as ``values_adjoint`` counts them: without biases and denominators."""
        return inputs @ self.factors.values

    def values_adjoint(
        self, cotangents: Float[Tensor, "batch position d_model"]
    ) -> Float[Tensor, "batch position kv_width"]:
        """From linear functions of what attention adds to the same functions of the heads' values."""
        return self._shared(self._moved(cotangents))

    def values_adjoint_at(
        self, cotangents: Float[Tensor, "target d_model"], positions: Int[Tensor, "target"], length: int
    ) -> Float[Tensor, "target position kv_width"]:
        """The same for functions that each look at one position, at the first ``length`` positions."""
        outputs = self._heads(cotangents @ self.factors.outputs.T)
        return self._shared(torch.einsum("hbk,bhe->bkhe", self.factors.pattern[:, positions, :length], outputs))

    def attention_adjoint(
        self, cotangents: Float[Tensor, "batch position d_model"]
    ) -> Float[Tensor, "batch position d_model"]:
        """From linear functions of what attention adds to the same functions of the stream it reads.

        ``Z = G W_O^T``, ``V[k] = sum_q pattern[q, k] Z[q]``, ``X = V W_V^T``, with the norms folded into the factors.
        """
        return self.values_adjoint(cotangents) @ self.factors.values.T

    def attention_adjoint_at(
        self, cotangents: Float[Tensor, "target d_model"], positions: Int[Tensor, "target"], length: int
    ) -> Float[Tensor, "target position d_model"]:
        """The same for functions that each look at one position.

        Each head then hands on one vector, in shares that the pattern says: ``Z W_V^T`` is computed once, not at every
        position.
        """
        outputs = self._heads(cotangents @ self.factors.outputs.T)
        handed = torch.einsum("bhe,hed->bhd", outputs, self._values_by_head())
        return torch.einsum("hbk,bhd->bkd", self.factors.pattern[:, positions, :length], handed)

    def head_adjoints(self, cotangents: Float[Tensor, "position d_model"]) -> Float[Tensor, "head position d_model"]:
        """The adjoint of each head by itself; they add up to ``attention_adjoint``."""
        return torch.einsum("khe,hed->hkd", self._moved(cotangents[None])[0], self._values_by_head())

    def _moved(
        self, cotangents: Float[Tensor, "batch position d_model"]
    ) -> Float[Tensor, "batch position head d_head"]:
        """Functions of what attention adds, as functions of each head's values."""
        positions, factors = cotangents.shape[1], self.factors
        outputs = self._heads(cotangents @ factors.outputs.T)
        return torch.einsum("hqk,bqhe->bkhe", factors.pattern[:, :positions, :positions], outputs)

    def _heads(self, outputs: Float[Tensor, "*batch head_width"]) -> Float[Tensor, "*batch head d_head"]:
        return outputs.unflatten(-1, self.W_O.shape[:2])

    def _shared(self, values: Float[Tensor, "batch position head d_head"]) -> Float[Tensor, "batch position kv_width"]:
        """Heads that share one set of values (grouped queries) add up before its matrix."""
        shared = self.W_V.shape[0]
        grouped = values if values.shape[2] == shared else values.unflatten(2, (shared, -1)).sum(3)
        return grouped.flatten(2)

    def _values_by_head(self) -> Float[Tensor, "head d_head d_model"]:
        """``factors.values``, transposed, for each head."""
        shared, heads = self.W_V.shape[0], self.W_O.shape[0]
        return self.factors.values.T.unflatten(0, (shared, -1)).repeat_interleave(heads // shared, dim=0)

    def _attend(self, values: Float[Tensor, "kv_head position d_head"]) -> Float[Tensor, "position d_model"]:
        values = values if self.b_V is None else values + self.b_V[:, None]
        values = values.repeat_interleave(self.W_O.shape[0] // values.shape[0], dim=0)
        added = torch.einsum("hqk,hke,hed->qd", self.pattern, values, self.W_O)
        added = added if self.b_O is None else added + self.b_O
        return added if self.post_norm is None else self.post_norm.forward(added)


@final
@dataclass(frozen=True, eq=False)
class LinearPath:
    """A model on one prompt, linear from the embeddings and MLP outputs to the logits."""

    tokens: Int[Tensor, "position"]
    embedding: Float[Tensor, "position d_model"]
    positional: Float[Tensor, "position d_model"] | None
    """Learned positional embeddings; None where positions enter through attention alone."""
    blocks: tuple[LinearBlock, ...]
    final_norm: FrozenNorm
    W_U: Float[Tensor, "d_model vocab"]
    b_U: Float[Tensor, "vocab"] | None
    inputs: Float[Tensor, "layer position d_model"]
    """What the encoders read."""
    final: Float[Tensor, "position d_model"]
    """The residual stream after the last block."""
    logits: Float[Tensor, "position vocab"]
    """The model's own logits, before they are capped."""
    logit_cap: float | None
    """Bound that the model bends its logits under (``cap * tanh(logits / cap)``); None for most."""

    @property
    def n_positions(self) -> int:
        """Number of tokens."""
        return self.tokens.shape[0]

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.embedding.shape[1]

    def probabilities(self, position: int) -> Float[Tensor, "vocab"]:
        """The model's prediction after one token."""
        logits, cap = self.logits[position], self.logit_cap
        return (logits if cap is None else cap * torch.tanh(logits / cap)).softmax(-1)


@torch.no_grad()
def read_linear_path(model: LanguageModel, tokens: Int[Tensor, "position"], input_hook: InputHook) -> LinearPath:
    """Run a model once and take its linear path; raises LanguageModelError if the path does not express a block."""
    names = _hook_names(model, input_hook)
    logits, cache = model.run_with_cache(tokens[None], list(names))
    # Some architectures (OPT) hand positions to a norm without a batch axis.
    found = {name: (value[0] if value.shape[0] == 1 else value).float() for name, value in cache.items()}
    bridge = model.bridge
    cap = getattr(bridge.cfg, "output_logits_soft_cap", None)
    cap = float(cap) if cap is not None and cap > 0 else None
    streams = [found[f"blocks.{layer}.hook_in"] for layer in range(model.n_layers)] + [found["ln_final.hook_in"]]
    path = LinearPath(
        tokens=tokens,
        embedding=found["embed.hook_out"],
        positional=found.get("pos_embed.hook_out"),
        blocks=tuple(_read_block(model, layer, found, input_hook) for layer in range(model.n_layers)),
        final_norm=_read_norm(bridge.ln_final, found["ln_final.hook_scale"]),
        W_U=bridge.W_U.float(),
        b_U=_optional(bridge.b_U),
        inputs=torch.stack([found[model.hook_name(layer, input_hook)] for layer in range(model.n_layers)]),
        final=streams[-1],
        logits=logits[0].float() if cap is None else cap * torch.atanh(logits[0].float() / cap),
        logit_cap=cap,
    )
    _verify(model, path, streams)
    return path


def _hook_names(model: LanguageModel, input_hook: InputHook) -> list[str]:
    """The hooks whose values the path is made of; a model that lacks an optional one does without."""
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


def _read_block(model: LanguageModel, layer: int, found: dict[str, Tensor], input_hook: InputHook) -> LinearBlock:
    block: Any = model.bridge.blocks[layer]
    where = f"blocks.{layer}"

    def norm(name: str) -> FrozenNorm | None:
        scale = found.get(f"{where}.{name}.hook_scale")
        return None if scale is None else _read_norm(getattr(block, name), scale)

    try:
        attention = block.attn
        weights = attention.W_V.float(), attention.W_O.float(), attention.b_V, attention.b_O
    except AttributeError as error:
        raise _inexpressible(model, f"the attention of block {layer}", str(error)) from error
    W_V, W_O, b_V, b_O = weights
    reader = None
    if input_hook == "ln2.hook_normalized":
        reader = FrozenNorm(found[f"{where}.ln2.hook_scale"], None, None, centred=not block.ln2.uses_rms_norm)
    return LinearBlock(
        attention_norm=norm("ln1"),
        pattern=found[f"{where}.attn.hook_pattern"],
        W_V=W_V,
        b_V=_optional(b_V),
        W_O=W_O,
        b_O=_optional(b_O),
        post_norm=norm("ln1_post"),
        reader=reader,
        mlp_output=found[f"{where}.hook_mlp_out"],
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
        attended = block.attention(streams[layer])
        read = streams[layer] if block.parallel else streams[layer] + attended
        read = read if block.reader is None else block.reader.forward(read)
        _compare(model, f"block {layer}", attended + block.mlp_output, streams[layer + 1] - streams[layer])
        _compare(model, f"the MLP input of block {layer}", read, path.inputs[layer])
    last = path.final_norm.forward(path.final)[-1:] @ path.W_U
    last = last if path.b_U is None else last + path.b_U
    _compare(model, "the unembedding", last, path.logits[-1:])


def _compare(model: LanguageModel, part: str, found: Tensor, expected: Tensor) -> None:
    deviation = float((found - expected).norm() / expected.norm().clamp(min=1e-30))
    if not deviation <= _TOLERANCE.get(model.dtype, 1e-3):
        raise _inexpressible(model, part, f"it deviates from the model's own activations by {deviation:.1e}")


def _inexpressible(model: LanguageModel, part: str, reason: str) -> LanguageModelError:
    return LanguageModelError(
        f"Attribution cannot express {part} of {model.name}, which is not linear once attention patterns and norms are "
        f"frozen: {reason}. Use a transformer whose blocks are."
    )
