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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.config import InputHook
from open_clt.errors import LanguageModelError
from open_clt.language.frozen_hooks import read_norm
from open_clt.language.language_model import LanguageModel
from open_clt.language.linear_block import FrozenNorm, LinearBlock
from open_clt.language.loading import TOLERANCE
from open_clt.short_repr import short_repr


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

    __repr__ = short_repr


@torch.no_grad()
def read_linear_path(model: LanguageModel, tokens: Int[Tensor, "position"], input_hook: InputHook) -> LinearPath:
    """Run a model once and read its linear path; raises LanguageModelError if the path cannot express the model."""
    if model.input_hooks and input_hook not in model.input_hooks:
        raise LanguageModelError(
            f"{input_hook!r} is not the input of an MLP of {model.name}; attribution needs a transcoder that reads "
            f"{' or '.join(model.input_hooks)}."
        )
    names = _hook_names(model, input_hook)
    logits, cache = model.run_with_cache(tokens[None], list(names))
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
        final_norm=read_norm(bridge.ln_final, values["ln_final.hook_scale"]),
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
    hooks = model.bridge.hook_dict
    names = ["embed.hook_out", "ln_final.hook_in", "ln_final.hook_scale"]
    names += [name for name in ("pos_embed.hook_out",) if name in hooks]
    for layer in range(model.n_layers):
        block = f"blocks.{layer}"
        names += [f"{block}.hook_in", f"{block}.attn.hook_pattern", f"{block}.hook_mlp_out"]
        names.append(model.hook_name(layer, input_hook))
        if input_hook == "ln2.hook_normalized":
            names.append(f"{block}.ln2.hook_scale")
        names += [f"{block}.{norm}.hook_scale" for norm in ("ln1", "ln1_post") if f"{block}.{norm}.hook_scale" in hooks]
    return list(dict.fromkeys(names))


def _read_block(model: LanguageModel, layer: int, values: dict[str, Tensor], input_hook: InputHook) -> LinearBlock:
    block: Any = model.bridge.blocks[layer]
    prefix = f"blocks.{layer}"

    def norm(name: str) -> FrozenNorm | None:
        scale = values.get(f"{prefix}.{name}.hook_scale")
        return None if scale is None else read_norm(getattr(block, name), scale)

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
    if not deviation <= TOLERANCE.get(model.dtype, 1e-3):
        raise _inexpressible(model, part, f"it deviates from the model's own activations by {deviation:.1e}")


def _inexpressible(model: LanguageModel, part: str, reason: str) -> LanguageModelError:
    return LanguageModelError(
        f"Attribution cannot express {part} of {model.name}, which is not linear with frozen attention patterns and "
        f"norms ({reason}); use another language model."
    )
