"""One forward pass of a ReplacementModel, and what is kept of it: what interventions start from."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.errors import ConfigError
from open_clt.language.frozen_hooks import frozen_hooks
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.generation import Prompt, prompt_tokens
from open_clt.replacement.model import ReplacedPass, ReplacementModel, unused_positions
from open_clt.transcoders.sparse.codes import SparseFeatures


@final
@dataclass(frozen=True, eq=False)
class Observed:
    """What one forward pass computed for one text, or for its newest tokens."""

    tokens: Int[Tensor, "position"]
    start: int
    """Position of the first of these tokens in the text."""
    logits: Float[Tensor, "any_position vocab"]
    """After each token; while generating, after the last one only."""
    inputs: Float[Tensor, "layer position d_model"]
    """What encoders read."""
    outputs: Float[Tensor, "layer position d_model"]
    """What MLPs, or what stands for them, wrote."""
    streams: Float[Tensor, "layer position d_model"]
    """The residual stream after each block."""
    features: tuple[SparseFeatures, ...]
    """Features of each layer, one row per position; none where they are not used."""
    frozen: dict[str, Tensor]
    """Attention patterns and norm denominators, by the name of their hook."""


@torch.no_grad()
def observe(replacement: ReplacementModel, prompt: Prompt) -> Observed:
    """Run a model on a prompt as it is: what many interventions on that prompt can share."""
    tokens = prompt_tokens(replacement.model, prompt)
    with inference(replacement), running(replacement), recording(replacement) as found:
        logits = replacement.model.logits(tokens[None])[0]
        return observed(replacement, tokens, 0, logits, found)


def running(replacement: ReplacementModel) -> AbstractContextManager[ReplacedPass | None]:
    """The model as it is; with its errors corrected it is the language model, to the last bit."""
    return nullcontext() if replacement.error_correction else replacement.replacing()


@contextmanager
def inference(replacement: ReplacementModel) -> Generator[None, None, None]:
    """A transcoder in training may let a token's features depend on the others of its batch."""
    was_training = replacement.transcoder.training
    replacement.transcoder.eval()
    try:
        yield
    finally:
        replacement.transcoder.train(was_training)


@contextmanager
def recording(replacement: ReplacementModel) -> Generator[dict[str, Tensor], None, None]:
    """While this is open, what a forward pass reads, writes and could be frozen at is kept by the hook's name."""
    model, config = replacement.model, replacement.transcoder.config
    if config.input_hook == config.target_hook:
        # One hook cannot show both what encoders read and what stands in its place.
        raise ConfigError(
            "Interventions need a transcoder that writes elsewhere than it reads; this is an autoencoder."
        )
    names = [
        model.hook_name(layer, hook)
        for layer in range(model.n_layers)
        for hook in (config.input_hook, config.target_hook)
    ]
    names += _streams(model)
    names += frozen_hooks(model)
    found: dict[str, Tensor] = {}
    with model.hooks([(name, partial(found.__setitem__, name)) for name in dict.fromkeys(names)]):
        yield found


def _streams(model: LanguageModel) -> list[str]:
    """Hooks where the residual stream goes on after each block."""
    return [*(model.hook_name(layer, "hook_in") for layer in range(1, model.n_layers)), "ln_final.hook_in"]


def observed(
    replacement: ReplacementModel,
    tokens: Int[Tensor, "position"],
    start: int,
    logits: Float[Tensor, "any_position vocab"],
    found: dict[str, Tensor],
) -> Observed:
    """The record of a pass, from what ``recording`` found."""
    model, config = replacement.model, replacement.transcoder.config

    def stacked(names: list[str]) -> Tensor:
        return torch.stack([found[name][0] for name in names])

    inputs, outputs = (
        stacked([model.hook_name(layer, hook) for layer in range(model.n_layers)])
        for hook in (config.input_hook, config.target_hook)
    )
    unused = unused_positions(replacement.transcoder, start)
    features = tuple(_encoded(replacement, inputs[layer], layer, unused) for layer in range(model.n_layers))
    frozen = {name: found[name] for name in frozen_hooks(model) if name in found}
    return Observed(tokens, start, logits, inputs, outputs, stacked(_streams(model)), features, frozen)


def _encoded(
    replacement: ReplacementModel, inputs: Float[Tensor, "position d_model"], layer: int, unused: int
) -> SparseFeatures:
    """Features of one layer, with rows that hold none for the positions where they are not used."""
    transcoder = replacement.transcoder
    part = transcoder.encode_layer(inputs[unused:].to(transcoder.device, transcoder.dtype), layer)
    return SparseFeatures(part.values, part.features, functional.pad(part.offsets, (unused, 0)), part.n_features)
