"""Observations: records of one forward pass of a ReplacementModel, which interventions start from."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.errors import ConfigError
from open_clt.language.frozen_hooks import frozen_hooks
from open_clt.language.language_model import LanguageModel
from open_clt.language.prompts import Prompt, prompt_tokens
from open_clt.language.unembedding import Unembedding
from open_clt.replacement.bounds import inference_mode
from open_clt.replacement.model import ReplacedPass, ReplacementModel, unused_positions
from open_clt.short_repr import short_repr
from open_clt.transcoders.sparse.codes import SparseFeatures
from open_clt.transcoders.transcoder import Transcoder


@final
@dataclass(frozen=True, eq=False)
class Observed:
    """The values that one forward pass computed for a text or, while text is generated, for its newest tokens."""

    tokens: Int[Tensor, "position"]
    """Tokens that the pass read."""
    start: int
    """Position in the text of the first token that the pass read."""
    states: Float[Tensor, "position state"]
    """What the unembedding reads after each token."""
    inputs: Float[Tensor, "layer position d_model"]
    """Activations that encoders read, at every layer of the language model."""
    outputs: Float[Tensor, "layer position d_model"]
    """Outputs of the MLPs, or of the transcoder in their place."""
    streams: Float[Tensor, "layer position d_model"]
    """The residual stream after each block."""
    features: tuple[SparseFeatures, ...]
    """Features of each layer of the language model, one row per position.

    Rows are empty at positions where features are not used, and at layers where the transcoder has none."""
    frozen: dict[str, Tensor]
    """Attention patterns and norm denominators, which patching may freeze, by the name of their hook."""
    bounds: Float[Tensor, "position"] | None = None
    """Score that the features of each token must reach, if features of all layers compete; otherwise None."""
    unembedding: Unembedding = field(repr=False, kw_only=True)
    """The unembedding of the language model."""

    @property
    def logits(self) -> Float[Tensor, "position vocab"]:
        """Logits after each token, which are computed anew each time."""
        return self.unembedding.logits(self.states)

    def logits_at(self, positions: Int[Tensor, "some"]) -> Float[Tensor, "some vocab"]:
        """Return the logits after some tokens of the pass; negative positions count from its end."""
        return self.unembedding.logits(self.states[positions.to(self.states.device)])

    __repr__ = short_repr


@torch.no_grad()
def observe(replacement: ReplacementModel, prompt: Prompt, *, chat: bool = False) -> Observed:
    """Run a model on a prompt without interventions; many interventions on that prompt can share the result.

    ``chat`` applies the chat template of the model to a text or to messages (``open_clt.language.prompts``).
    """
    tokens = prompt_tokens(replacement.model, prompt, chat=chat)
    bounds = replacement.token_bounds(tokens[None])
    with (
        inference_mode(replacement.transcoder),
        running(replacement, bounds),
        recording(replacement) as activations,
    ):
        states = replacement.model.states(tokens[None])[0]
        return observed(replacement, tokens, 0, states, activations, bounds=bounds)


def running(
    replacement: ReplacementModel, bounds: Float[Tensor, "position"] | None
) -> AbstractContextManager[ReplacedPass | None]:
    """While this is open, forward passes are those of the replacement model without interventions.

    With error correction they are those of the language model itself, without any hook and so without rounding.
    """
    return nullcontext() if replacement.error_correction else replacement.replacing(bounds=bounds)


@contextmanager
def recording(replacement: ReplacementModel) -> Generator[dict[str, Tensor], None, None]:
    """While this is open, a forward pass keeps the activations that ``observed`` needs; yields them by hook name."""
    model, config = replacement.model, replacement.transcoder.config
    if config.input_hook == config.target_hook:
        # One hook cannot show both what the encoders read and what replaces it.
        raise ConfigError(
            f"input_hook and target_hook are both {config.input_hook!r}, so this transcoder is an autoencoder; "
            "interventions need a transcoder whose two hooks differ."
        )
    names = [
        model.hook_name(layer, hook)
        for layer in range(model.n_layers)
        for hook in (config.input_hook, config.target_hook)
    ]
    names += _streams(model)
    names += frozen_hooks(model)
    activations: dict[str, Tensor] = {}
    with model.hooks([(name, partial(activations.__setitem__, name)) for name in dict.fromkeys(names)]):
        yield activations


def _streams(model: LanguageModel) -> list[str]:
    """Names of the hooks that carry the residual stream after each block."""
    return [*(model.hook_name(layer, "hook_in") for layer in range(1, model.n_layers)), "ln_final.hook_in"]


def observed(
    replacement: ReplacementModel,
    tokens: Int[Tensor, "position"],
    start: int,
    states: Float[Tensor, "position state"],
    activations: dict[str, Tensor],
    *,
    bounds: Float[Tensor, "position"] | None,
) -> Observed:
    """Make the record of a forward pass from the activations that ``recording`` kept."""
    model, config = replacement.model, replacement.transcoder.config

    def stacked(names: list[str]) -> Tensor:
        return torch.stack([activations[name][0] for name in names])

    inputs, outputs = (
        stacked([model.hook_name(layer, hook) for layer in range(model.n_layers)])
        for hook in (config.input_hook, config.target_hook)
    )
    unused = unused_positions(replacement.transcoder, start)
    used_bounds = None if bounds is None else bounds[unused:]
    places = {layer: place for place, layer in enumerate(config.model_layers)}
    features = tuple(
        _encoded(replacement.transcoder, inputs[layer, unused:], places[layer], unused, used_bounds)
        if layer in places
        else _no_features(inputs, config.n_features)
        for layer in range(model.n_layers)
    )
    frozen = {name: activations[name] for name in frozen_hooks(model) if name in activations}
    streams, unembedding = stacked(_streams(model)), model.unembedding
    return Observed(tokens, start, states, inputs, outputs, streams, features, frozen, bounds, unembedding=unembedding)


def _encoded(
    transcoder: Transcoder,
    inputs: Float[Tensor, "position d_model"],
    place: int,
    unused: int,
    bounds: Float[Tensor, "position"] | None,
) -> SparseFeatures:
    """Encode one layer, with empty rows at the positions before, where features are not used."""
    used = transcoder.encode_layer(inputs.to(transcoder.device, transcoder.dtype), place, bounds=bounds)
    return SparseFeatures(used.values, used.features, functional.pad(used.offsets, (unused, 0)), used.n_features)


def _no_features(inputs: Float[Tensor, "layer position d_model"], n_features: int) -> SparseFeatures:
    """The features of a layer where the transcoder has none: empty rows."""
    offsets = torch.zeros(inputs.shape[1] + 1, dtype=torch.long, device=inputs.device)
    return SparseFeatures(inputs.new_zeros(0), offsets[:0], offsets, n_features)
