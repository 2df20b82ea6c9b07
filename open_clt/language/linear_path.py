"""The linear path: a language model on one prompt, with its nonlinear parts frozen.

With attention patterns and norm denominators frozen at their values on the prompt, and MLP outputs taken as given, the
residual stream is a linear function of the embeddings, the MLP outputs and the biases:

    mid^l  = pre^l + Norm_post(sum_h pattern_h (Norm_1(pre^l) W_V,h + b_V,h) W_O,h + b_O)
    pre^{l+1} = mid^l + mlp^l
    logits = Norm_final(pre^L) W_U + b_U

An encoder reads mid^l or pre^l, either directly or through a norm (``readers.py``).
``read_linear_path`` reads these weights and the activations of one forward pass as plain tensors. It verifies block by
block that they give the model's own activations. A model that the path cannot express raises an error that names the
block, and never gives a wrong graph. Every architecture whose blocks pass the check is supported: with LayerNorm or
RMSNorm, before or after attention, with learned or rotary positions, with or without grouped queries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.config import MLP_OUTPUT_HOOK, InputHook
from open_clt.errors import AttributionError, LanguageModelError
from open_clt.language.frozen_hooks import read_norm
from open_clt.language.language_model import LanguageModel
from open_clt.language.linear_block import FrozenNorm, LinearBlock
from open_clt.language.loading import TOLERANCE
from open_clt.language.readers import Reader, find_readers, read_block_norm
from open_clt.language.unembedding import Unembedding
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
    readers: tuple[Reader, ...]
    """The way from the residual stream to the encoder of each layer."""
    final_norm: FrozenNorm
    W_U: Float[Tensor, "d_model vocab"]
    b_U: Float[Tensor, "vocab"] | None
    inputs: Float[Tensor, "layer position d_model"]
    """Inputs of the encoders of a transcoder, one per layer."""
    final: Float[Tensor, "position d_model"]
    """The residual stream after the last block."""
    states: Float[Tensor, "position state"]
    """The model's own states, which its unembedding reads."""
    unembedding: Unembedding = field(repr=False)
    """The model's unembedding."""
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

    def attention_inputs(self) -> list[Float[Tensor, "position d_model"]]:
        """Return what the attention of each block reads: the residual stream before the block, through its norm."""
        stream = self.embedding if self.positional is None else self.embedding + self.positional
        inputs: list[Tensor] = []
        for block in self.blocks:
            inputs.append(stream if block.attention_norm is None else block.attention_norm.forward(stream))
            stream = stream + block.attention(stream) + block.mlp_output
        return inputs

    def logits(self, position: int) -> Float[Tensor, "vocab"]:
        """Return the model's own logits after one position, before ``logit_cap`` is applied."""
        logits, cap = self._bounded_logits(position), self.logit_cap
        return logits if cap is None else cap * torch.atanh(logits / cap)

    def probabilities(self, position: int) -> Float[Tensor, "vocab"]:
        """Return the model's probabilities of the next token after one position."""
        return self._bounded_logits(position).softmax(-1)

    def _bounded_logits(self, position: int) -> Float[Tensor, "vocab"]:
        return self.unembedding.logits(self.states[position][None])[0].float()

    __repr__ = short_repr


@torch.no_grad()
def read_linear_path(
    model: LanguageModel,
    tokens: Int[Tensor, "position"],
    input_hook: InputHook,
    target_hook: str = MLP_OUTPUT_HOOK,
) -> LinearPath:
    """Run a model once and read its linear path, for a transcoder that reads and writes at these hooks.

    Raises LanguageModelError if the path cannot express the model, and AttributionError if the input is not a linear
    function of the residual stream before the MLP once norms are frozen, or if the target is not the output of the MLP.
    """
    names = _hook_names(model, input_hook, target_hook)
    cache: dict[str, Tensor] = {}
    with model.hooks([(name, partial(cache.__setitem__, name)) for name in names]):
        states = model.states(tokens[None])[0]
    values = {name: (value[0] if value.shape[0] == 1 else value).float() for name, value in cache.items()}
    bridge = model.bridge
    cap = getattr(bridge.cfg, "output_logits_soft_cap", None)
    cap = float(cap) if cap is not None and cap > 0 else None
    _check_target(model, values, target_hook)
    streams = [values[f"blocks.{layer}.hook_in"] for layer in range(model.n_layers)] + [values["ln_final.hook_in"]]
    blocks = tuple(_read_block(model, layer, values) for layer in range(model.n_layers))
    after_attention = _after_attention(model, blocks, streams)
    path = LinearPath(
        tokens=tokens,
        embedding=values["embed.hook_out"],
        positional=values.get("pos_embed.hook_out"),
        blocks=blocks,
        readers=find_readers(model, streams[:-1], after_attention, values, input_hook),
        final_norm=read_norm(bridge.ln_final, values["ln_final.hook_scale"]),
        W_U=bridge.W_U.float(),
        b_U=_optional(bridge.b_U),
        inputs=torch.stack([values[model.hook_name(layer, input_hook)] for layer in range(model.n_layers)]),
        final=streams[-1],
        states=states,
        unembedding=model.unembedding,
        logit_cap=cap,
    )
    _verify(model, path, streams[0])
    return path


def _hook_names(model: LanguageModel, input_hook: InputHook, target_hook: str) -> list[str]:
    """Return the names of the hooks that the path reads; optional hooks are left out if the model lacks them."""
    hooks = model.bridge.hook_dict
    names = ["embed.hook_out", "ln_final.hook_in", "ln_final.hook_scale"]
    names += [name for name in ("pos_embed.hook_out",) if name in hooks]
    for layer in range(model.n_layers):
        block = f"blocks.{layer}"
        names += [f"{block}.hook_in", f"{block}.attn.hook_pattern"]
        names += [model.hook_name(layer, hook) for hook in (MLP_OUTPUT_HOOK, input_hook, target_hook)]
        norms = (f"{block}.{norm}.hook_scale" for norm in ("ln1", "ln1_post", "ln2"))
        names += [scale for scale in norms if scale in hooks]
    return list(dict.fromkeys(names))


def _check_target(model: LanguageModel, values: dict[str, Tensor], target_hook: str) -> None:
    """Raise AttributionError if a target hook does not carry what the MLPs add to the residual stream."""
    for layer in range(model.n_layers):
        output, target = (values.get(model.hook_name(layer, hook)) for hook in (MLP_OUTPUT_HOOK, target_hook))
        if output is not None and (target is None or not torch.equal(target, output)):
            raise AttributionError(
                f"{target_hook!r} of {model.name} is not what an MLP adds to the residual stream; attribution needs a "
                f"transcoder that writes {MLP_OUTPUT_HOOK}."
            )


def _read_block(model: LanguageModel, layer: int, values: dict[str, Tensor]) -> LinearBlock:
    try:
        attention = model.bridge.blocks[layer].attn
        weights = attention.W_V.float(), attention.W_O.float(), attention.b_V, attention.b_O
    except AttributeError as error:
        raise _inexpressible(model, f"the attention of block {layer}", str(error)) from error
    W_V, W_O, b_V, b_O = weights
    return LinearBlock(
        attention_norm=read_block_norm(model, layer, "ln1", values),
        pattern=values[f"blocks.{layer}.attn.hook_pattern"],
        W_V=W_V,
        b_V=_optional(b_V),
        W_O=W_O,
        b_O=_optional(b_O),
        post_norm=read_block_norm(model, layer, "ln1_post", values),
        mlp_output=values[model.hook_name(layer, MLP_OUTPUT_HOOK)],
    )


def _optional(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().float()


def _after_attention(model: LanguageModel, blocks: tuple[LinearBlock, ...], streams: list[Tensor]) -> list[Tensor]:
    """The stream of each block after attention; compares each block with the model's own residual stream."""
    after: list[Tensor] = []
    for layer, block in enumerate(blocks):
        attention = block.attention(streams[layer])
        _compare(model, f"block {layer}", attention + block.mlp_output, streams[layer + 1] - streams[layer])
        after.append(streams[layer] + attention)
    return after


def _verify(model: LanguageModel, path: LinearPath, first_stream: Tensor) -> None:
    """Compare the embedding and the unembedding of the path with the model's own stream and logits."""
    embedded = path.embedding if path.positional is None else path.embedding + path.positional
    _compare(model, "the embedding", embedded, first_stream)
    last_logits = path.final_norm.forward(path.final)[-1:] @ path.W_U
    last_logits = last_logits if path.b_U is None else last_logits + path.b_U
    _compare(model, "the unembedding", last_logits, path.logits(-1)[None])


def _compare(model: LanguageModel, part: str, computed: Tensor, expected: Tensor) -> None:
    deviation = float((computed - expected).norm() / expected.norm().clamp(min=1e-30))
    if not deviation <= TOLERANCE.get(model.dtype, 1e-3):
        raise _inexpressible(model, part, f"it deviates from the model's own activations by {deviation:.1e}")


def _inexpressible(model: LanguageModel, part: str, reason: str) -> LanguageModelError:
    return LanguageModelError(
        f"Attribution cannot express {part} of {model.name}, which is not linear with frozen attention patterns and "
        f"norms ({reason}); use another language model."
    )
