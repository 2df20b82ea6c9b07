"""Replacement models: a language model whose MLP outputs are a transcoder's reconstruction.

"MLP output" means the activation at the transcoder's target hook, which usually is an MLP output.

While ``replacing()`` is open, every forward pass does two things in each layer l, with its own activations
(Ameisen et al. (2025), "From Cross-Layer Transcoder to Replacement Model"):

    1. at the transcoder's input hook, it computes the features of layer l and what they write to layers l, l + 1, ...
    2. at the target hook, it replaces the MLP output with the sum of what features of layers up to l have written there

If features of all layers of a token compete, ``bounds.py`` says which of them are active. With ``error_correction``,
the difference between the MLP output and that sum is added back, so the model computes what the original computes. With
``layers``, only the MLPs of these layers are replaced. A transcoder of some layers replaces the MLPs of its layers
only; numbers of layers are those of the language model. When ``replacing()`` closes, the language model is what it was
before.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias, Unpack, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.config import SamplingConfig, SamplingSettings
from open_clt.config.arguments import checked_arguments
from open_clt.errors import ConfigError
from open_clt.html_repr import html_repr
from open_clt.language.fits import check_fits
from open_clt.language.language_model import Advanced, Hook, KeyValues, LanguageModel, Positioned, load_language_model
from open_clt.language.prompts import Prompt, prompt_tokens
from open_clt.language.transcoders.named import transcoder_of
from open_clt.language.unembedding import Unembedding
from open_clt.replacement.bounds import GrowingBounds, bounds_on, inference_mode, needs_bounds, token_bounds
from open_clt.replacement.comparison import (
    Comparison,
    Continuations,
    LogitAccumulator,
    cosines,
    cross_entropies,
    predicted_tokens,
    predicting,
)
from open_clt.replacement.generation import Generation, generate, room_after
from open_clt.transcoders.sparse.codes import SparseFeatures
from open_clt.transcoders.transcoder import Transcoder

FeatureChange: TypeAlias = Callable[[int, SparseFeatures], SparseFeatures | None]
"""A function that takes a layer of the language model and its features, and returns what to add to the features.

None adds nothing."""


@runtime_checkable
class HoldsTranscoder(Protocol):
    """An object that holds a transcoder."""

    transcoder: Transcoder
    """The transcoder that the object holds."""


@final
class ReplacedPass:
    """The features and errors of the latest forward pass; each pass discards those of the one before.

    ``features[l]`` are the features of layer ``l`` before any ``change``, with one row per batch entry and position;
    the position varies faster. With error correction, ``errors[l]`` is the difference between the MLP output and the
    reconstruction: (batch, position, d_model). What a ``change`` of features writes is not part of the error.
    """

    @checked_arguments
    def __init__(
        self,
        transcoder: Transcoder,
        *,
        error_correction: bool,
        change: FeatureChange | None = None,
        bounds: Float[Tensor, "token"] | None = None,
    ) -> None:
        self.features: dict[int, SparseFeatures] = {}
        self.errors: dict[int, Tensor] = {}
        self._transcoder = transcoder
        self._error_correction = error_correction
        self._change = change
        self._bounds = bounds
        self._sums: dict[int, Tensor] = {}
        self._changes: dict[int, Tensor] = {}

    def start(self) -> None:
        """Discard what the previous pass computed."""
        self.features, self.errors, self._sums, self._changes = {}, {}, {}, {}

    def read(self, layer: int, inputs: Float[Tensor, "batch position d_model"]) -> None:
        """Encode one layer, and add what its features write to the reconstructions of this layer and later ones."""
        transcoder = self._transcoder
        place = transcoder.config.place_of(layer)
        targets = transcoder.config.model_layers[place:]
        rows = inputs.flatten(0, 1).to(transcoder.device, transcoder.dtype)
        self.features[layer] = transcoder.encode_layer(rows, place, bounds=self._bounds)
        _add(self._sums, targets, transcoder.offset(rows, place)[:, None])
        _add(self._sums, targets, transcoder.write(self.features[layer], place, rows))
        added_features = None if self._change is None else self._change(layer, self.features[layer])
        if added_features is not None:
            _add(self._changes, targets, transcoder.write(added_features, place, rows))

    def write(
        self, layer: int, output: Float[Tensor, "batch position d_model"], start: int
    ) -> Float[Tensor, "batch position d_model"]:
        """Return what replaces an MLP output whose first position is position ``start`` of the text."""
        if layer not in self._sums:
            config = self._transcoder.config
            raise ConfigError(
                f"The model computes {config.target_hook!r} before {config.input_hook!r}, so the transcoder cannot "
                "replace it; use a transcoder whose input hook comes before its target hook."
            )
        replaced = self._sums.pop(layer).to(output.device).unflatten(0, output.shape[:2])
        if self._error_correction:
            self.errors[layer] = output - replaced
            replaced = output  # reconstruction plus error, without the rounding of that sum
        if layer in self._changes:
            replaced = replaced + self._changes.pop(layer).to(output.device).unflatten(0, output.shape[:2])
        replaced = replaced.to(output.dtype)
        unused = unused_positions(self._transcoder, start)
        return torch.cat([output[:, :unused], replaced[:, unused:]], dim=1) if unused else replaced


@final
class ReplacementModel:
    """A language model whose MLP outputs are replaced by a transcoder's reconstruction.

    ``base_model_name`` is a name for ``load_language_model`` or a loaded LanguageModel. ``transcoder`` is a Transcoder,
    an object that holds one, or a source of ``transcoder_of``: a directory, a name, or ``neurons``. ``layers`` are the
    layers whose MLP is replaced, by default all layers of the transcoder. MLP outputs at the first position stay as
    they are, unless the transcoder's config sets ``use_first_position``. ``device`` and ``dtype`` apply to a language
    model that is loaded here.
    """

    def __init__(
        self,
        base_model_name: str | Path | LanguageModel,
        transcoder: Transcoder | HoldsTranscoder | str | Path,
        *,
        layers: Sequence[int] | None = None,
        error_correction: bool = False,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
    ) -> None:
        if not isinstance(base_model_name, LanguageModel):
            base_model_name = load_language_model(base_model_name, device, dtype)
        self.model = base_model_name
        self.transcoder = _transcoder(transcoder, self.model)
        self.layers = _layers(self.transcoder, layers)
        self.error_correction = error_correction

    _repr_html_ = html_repr

    def __repr__(self) -> str:
        transcoder = f"<{type(self.transcoder).__name__} of {self.transcoder.config.n_features} features per layer>"
        return f"{type(self).__name__}({self.model!r}, {transcoder}, {len(self.layers)} layers replaced)"

    @property
    def sources(self) -> list[int]:
        """Layers whose features write to at least one MLP output that is replaced."""
        config = self.transcoder.config
        written = [config.model_layers[place : place + config.reach_of(place)] for place in range(config.n_layers)]
        return [targets[0] for targets in written if not self.layers.isdisjoint(targets)]

    @checked_arguments
    @contextmanager
    def replacing(
        self, change: FeatureChange | None = None, *, bounds: Float[Tensor, "token"] | None = None
    ) -> Generator[ReplacedPass, None, None]:
        """While this is open, forward passes of the language model are those of the replacement model.

        Yields the record of the latest pass. ``change`` intervenes on features as each layer computes them. A pass
        with TopK across layers needs the ``bounds`` of its tokens: those of ``token_bounds``.
        """
        config = self.transcoder.config
        current = ReplacedPass(self.transcoder, error_correction=self.error_correction, change=change, bounds=bounds)
        sources = self.sources

        def read(layer: int, inputs: Tensor) -> None:
            if layer == sources[0]:
                current.start()
            current.read(layer, inputs)

        hooks: list[Hook] = [
            (self.model.hook_name(layer, config.input_hook), partial(read, layer)) for layer in sources
        ]
        hooks += [
            (self.model.hook_name(layer, config.target_hook), Positioned(partial(current.write, layer)))
            for layer in self.layers
        ]
        with inference_mode(self.transcoder), self.model.hooks(hooks):
            yield current

    @checked_arguments
    def token_bounds(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "token"] | None:
        """The bounds of whole texts' tokens, by a pass of the original model; None unless features of layers compete.

        They are scores that features must reach to be active; see ``open_clt.replacement.bounds``.
        """
        return token_bounds(self.model, self.transcoder, tokens)

    @checked_arguments
    @contextmanager
    def ablating(self, means: Float[Tensor, "layer d_model"]) -> Generator[None, None, None]:
        """While this is open, the MLP outputs that the transcoder would replace are constant, as a baseline."""
        config = self.transcoder.config

        def write(layer: int, output: Tensor, start: int) -> Tensor:
            constant = means[config.place_of(layer)].to(output).expand_as(output)
            unused = unused_positions(self.transcoder, start)
            return torch.cat([output[:, :unused], constant[:, unused:]], dim=1)

        hooks = [
            (self.model.hook_name(layer, config.target_hook), Positioned(partial(write, layer)))
            for layer in self.layers
        ]
        with self.model.hooks(hooks):
            yield

    @checked_arguments
    @torch.no_grad()
    def logits(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position vocab"]:
        """Return the replacement model's logits after every token."""
        with self.replacing(bounds=self.token_bounds(tokens)):
            return self.model.logits(tokens)

    @checked_arguments
    @torch.no_grad()
    def states(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position state"]:
        """Return what the unembedding reads after every token; see ``LanguageModel.states``."""
        with self.replacing(bounds=self.token_bounds(tokens)):
            return self.model.states(tokens)

    @checked_arguments
    def generate(
        self,
        prompt: Prompt | None = None,
        sampling: SamplingConfig | None = None,
        *,
        text: Prompt | None = None,
        chat: bool = False,
        **settings: Unpack[SamplingSettings],
    ) -> Generation:
        """Let the replacement model continue a prompt; ``settings`` override fields of ``sampling``.

        >>> replacement.generate("Once upon a time", max_new_tokens=20, temperature=0.8, seed=1)  # doctest: +SKIP

        ``text`` is another name of ``prompt``; raises ConfigError unless exactly one of them is given. ``chat`` applies
        the chat template of the model to a text or to messages (``open_clt.language.prompts``).
        """
        prompts = [candidate for candidate in (prompt, text) if candidate is not None]
        if len(prompts) != 1:
            raise ConfigError(f"prompt is {prompt!r} and text is {text!r}; give exactly one of them.")
        sampling = replace(sampling or SamplingConfig(), **settings)
        if needs_bounds(self.transcoder):
            step = partial(self._advance, GrowingBounds(self.model, self.transcoder))
            return generate(self.model, prompts[0], sampling, chat=chat, advance=step)
        with self.replacing():
            return generate(self.model, prompts[0], sampling, chat=chat)

    def _advance(
        self, bounds: GrowingBounds, tokens: Int[Tensor, "1 position"], key_values: KeyValues | None
    ) -> Advanced:
        with self.replacing(bounds=bounds.of_next(tokens)):
            return self.model.advance(tokens, key_values)

    @checked_arguments
    @torch.no_grad()
    def compare(
        self,
        prompt: Prompt,
        sampling: SamplingConfig | None = None,
        *,
        continuations: bool = True,
        chat: bool = False,
    ) -> Comparison:
        """Compare the predictions of both models on a text, and their continuations of it.

        The predictions take three forward passes: of the original, the replacement and the ablated model. By default a
        continuation has 20 tokens, each the most probable one, and each of them takes one more pass of its model;
        without ``continuations``, nothing is generated. ``chat`` applies the chat template.
        """
        sampling = sampling or SamplingConfig(max_new_tokens=20)
        tokens = prompt_tokens(self.model, prompt, chat=chat)
        config = self.transcoder.config
        batch, first = tokens[None], self.transcoder.first_position
        next_tokens = predicted_tokens(batch, first)
        original = self.model.capture(batch, config.input_hook, config.target_hook, layers=config.layers)
        with self.replacing(bounds=bounds_on(self.transcoder, original.inputs)):
            replaced = self.model.states(batch)
        with self.ablating(original.targets[0, first:].mean(0)):
            ablated = self.model.states(batch)
        states = [predicting(of_model, first) for of_model in (original.states, replaced, ablated)]
        comparison = _compared(self.model.unembedding, states, next_tokens)
        comparison = comparison._replace(prompt=self.model.decode(tokens[int(tokens[0] == self.model.bos_token_id) :]))
        if not continuations or room_after(self.model, tokens, sampling) < 1:
            return comparison
        return comparison._replace(
            continuations=Continuations(
                original=generate(self.model, tokens, sampling), replacement=self.generate(tokens, sampling)
            )
        )


def _compared(
    unembedding: Unembedding,
    states: list[Float[Tensor, "prediction state"]],
    next_tokens: Int[Tensor, "prediction"],
) -> Comparison:
    """Compare predictions, from the states of the original model, of the replacement model and of the ablated one."""
    accumulator, sums = LogitAccumulator(), torch.zeros(3, dtype=torch.float64)
    for rows in unembedding.slices(len(next_tokens)):
        original, replaced, ablated = (unembedding.logits(of_model[rows]).float() for of_model in states)
        accumulator.update(original, replaced, next_tokens[rows])
        errors = functional.mse_loss(replaced, original, reduction="none").mean(-1)
        columns = (cosines(original, replaced), errors, cross_entropies(ablated, next_tokens[rows]))
        sums += torch.stack(columns).cpu().double().sum(1)
    cosine, error, cross_entropy = (sums / len(next_tokens)).tolist()
    return Comparison(
        logits=accumulator.result(),
        cosine=cosine,
        mean_squared_error=error,
        cross_entropy_ablated=cross_entropy,
        continuations=None,
    )


def unused_positions(transcoder: Transcoder, start: int) -> int:
    """Return how many positions at the beginning of a pass have no features, if the pass begins at ``start``."""
    return max(0, transcoder.first_position - start)


def _add(sums: dict[int, Tensor], targets: Sequence[int], written: Float[Tensor, "batch target d_model"]) -> None:
    """Add what a source layer writes to the sums of its target layers, which may be fewer than ``targets``."""
    for target, contribution in zip(targets, written.unbind(1), strict=False):
        sums[target] = sums[target] + contribution if target in sums else contribution


def _transcoder(transcoder: Transcoder | HoldsTranscoder | str | Path, model: LanguageModel) -> Transcoder:
    """Load or unwrap the transcoder, and check that it fits the language model."""
    if isinstance(transcoder, str | Path):
        return transcoder_of(model, transcoder)
    if not isinstance(transcoder, Transcoder):
        transcoder = transcoder.transcoder
    check_fits(transcoder, model)
    return transcoder


def _layers(transcoder: Transcoder, layers: Sequence[int] | None) -> frozenset[int]:
    config = transcoder.config
    chosen = frozenset(config.model_layers if layers is None else layers)
    if not chosen or not chosen <= {*config.model_layers}:
        raise ConfigError(f"layers is {sorted(chosen)}; choose at least one of {config.layer_words}.")
    return chosen
