"""Bounds of tokens: what replaces ranking where the features of all layers of a token compete (TopK across layers).

A replacement model computes the features of a layer before it knows those of later layers, so it cannot rank them. A
feature is active there if its score reaches the bound of its token, which one more pass of the original model on the
same tokens sets (``score_bounds``). On the original model's activations, as with error correction, the bound selects
what the ranking selects. Other nonlinearities need neither bounds nor that pass.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.language.language_model import KeyValues, LanguageModel
from open_clt.transcoders.neurons.transcoder import NeuronTranscoder
from open_clt.transcoders.transcoder import Transcoder, score_bounds


def needs_bounds(transcoder: Transcoder) -> bool:
    """Whether features of all layers of a token compete at inference."""
    if isinstance(transcoder, NeuronTranscoder):
        return False
    with inference_mode(transcoder):
        return transcoder.nonlinearity.couples_layers


@torch.no_grad()
def token_bounds(
    model: LanguageModel, transcoder: Transcoder, tokens: Int[Tensor, "batch position"]
) -> Float[Tensor, "token"] | None:
    """The bounds of the tokens of whole texts, text by text; None if the transcoder needs none."""
    config = transcoder.config
    if not needs_bounds(transcoder):
        return None
    return bounds_on(
        transcoder, model.capture(tokens, config.input_hook, config.input_hook, layers=config.layers).inputs
    )


@torch.no_grad()
def bounds_on(
    transcoder: Transcoder, inputs: Float[Tensor, "batch position layer d_model"]
) -> Float[Tensor, "token"] | None:
    """The bounds of the tokens of whole texts, from the original model's activations; None if there are none."""
    if not needs_bounds(transcoder):
        return None
    with inference_mode(transcoder):
        return score_bounds(transcoder, inputs.flatten(0, 1).to(transcoder.device, transcoder.dtype))


@final
class GrowingBounds:
    """The bounds of a text's tokens while the text grows; the original model keeps a KV cache of its own."""

    def __init__(self, model: LanguageModel, transcoder: Transcoder) -> None:
        self._model, self._transcoder = model, transcoder
        self._key_values: KeyValues | None = None

    @torch.no_grad()
    def of_next(self, tokens: Int[Tensor, "1 position"]) -> Float[Tensor, "token"] | None:
        """The bounds of the tokens that follow those of earlier calls; None if the transcoder needs none."""
        model, transcoder, inputs = self._model, self._transcoder, list[Tensor]()
        config = transcoder.config
        if not needs_bounds(transcoder):
            return None
        names = [model.hook_name(layer, config.input_hook) for layer in config.model_layers]
        with model.hooks([(name, inputs.append) for name in names]):
            self._key_values = model.advance(tokens, self._key_values).key_values
        return bounds_on(transcoder, torch.stack(inputs, dim=2))


@contextmanager
def inference_mode(transcoder: Transcoder) -> Generator[None, None, None]:
    """While this is open, the transcoder is not in training mode.

    In training mode, a token's features may depend on the other tokens of its batch.
    """
    was_training = transcoder.training
    transcoder.eval()
    try:
        yield
    finally:
        transcoder.train(was_training)
