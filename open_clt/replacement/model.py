"""Replacement models: a language model whose MLP outputs are a transcoder's reconstruction.

"MLP output" is the usual case: what is replaced is whatever the transcoder's target hook carries.

While ``replacing()`` is open, every forward pass computes, layer by layer and from its own activations (methods, "From
Cross-Layer Transcoder to Replacement Model"):

    1. at the transcoder's input hook of layer l: the features of layer l, and what they write to layers l, l + 1, ...
    2. at the MLP output of layer l: the sum of what features of layers up to l have written there, in its place

With ``error_correction`` the difference between the MLP's output and that sum is added back, so that the model computes
what the original does; ``layers`` replaces some MLPs only. Afterwards the language model is exactly what it was.
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
from open_clt.errors import ConfigError
from open_clt.language.fits import check_fits
from open_clt.language.language_model import Hook, LanguageModel, Positioned, load_language_model
from open_clt.replacement.comparison import (
    Comparison,
    Continuations,
    compare_logits,
    cosines,
    cross_entropies,
)
from open_clt.replacement.generation import Generation, Prompt, generate, prompt_tokens, room_after
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.sparse.codes import SparseFeatures
from open_clt.transcoders.transcoder import Transcoder

FeatureChange: TypeAlias = Callable[[int, SparseFeatures], SparseFeatures | None]
"""Sees the features of a layer, and says what to add to them; None is nothing."""


@runtime_checkable
class HoldsTranscoder(Protocol):
    """Anything built around a transcoder."""

    transcoder: Transcoder


@final
class ReplacedPass:
    """What the latest forward pass computed; each pass starts anew.

    ``features[l]`` are those of layer ``l``, one row per batch entry and position, positions running faster, before
    any ``change``; ``errors[l]`` what was added to the reconstruction, with error correction: (batch, position,
    d_model). What a ``change`` of features writes is no part of the error.
    """

    def __init__(self, transcoder: Transcoder, *, error_correction: bool, change: FeatureChange | None = None) -> None:
        self.features: dict[int, SparseFeatures] = {}
        self.errors: dict[int, Tensor] = {}
        self._transcoder = transcoder
        self._error_correction = error_correction
        self._change = change
        self._sums: dict[int, Tensor] = {}
        self._changes: dict[int, Tensor] = {}

    def start(self) -> None:
        """Forget the pass before."""
        self.features, self.errors, self._sums, self._changes = {}, {}, {}, {}

    def read(self, layer: int, inputs: Float[Tensor, "batch position d_model"]) -> None:
        """Encode one layer, and add what its features write to this layer and those after it."""
        transcoder = self._transcoder
        flat = inputs.flatten(0, 1).to(transcoder.device, transcoder.dtype)
        self.features[layer] = transcoder.encode_layer(flat, layer)
        _add(self._sums, layer, transcoder.offset(flat, layer)[:, None])
        _add(self._sums, layer, transcoder.write(self.features[layer], layer, flat))
        changed = None if self._change is None else self._change(layer, self.features[layer])
        if changed is not None:
            _add(self._changes, layer, transcoder.write(changed, layer, flat))

    def write(
        self, layer: int, output: Float[Tensor, "batch position d_model"], start: int
    ) -> Float[Tensor, "batch position d_model"]:
        """The reconstruction of an MLP output that begins at position ``start`` of the text."""
        if layer not in self._sums:
            config = self._transcoder.config
            raise ConfigError(
                f"The model computes {config.target_hook!r} before {config.input_hook!r}, so the transcoder cannot "
                "stand for it; use one that reads first."
            )
        replaced = self._sums.pop(layer).to(output.device).unflatten(0, output.shape[:2])
        if self._error_correction:
            self.errors[layer] = output - replaced
            replaced = output  # their sum, without its rounding
        if layer in self._changes:
            replaced = replaced + self._changes.pop(layer).to(output.device).unflatten(0, output.shape[:2])
        replaced = replaced.to(output.dtype)
        unused = unused_positions(self._transcoder, start)
        return torch.cat([output[:, :unused], replaced[:, unused:]], dim=1) if unused else replaced


@final
class ReplacementModel:
    """A language model and the transcoder that stands for its MLPs.

    ``base_model_name`` is a name for ``load_language_model`` or a loaded LanguageModel; ``transcoder`` is a Transcoder,
    what holds one, or a checkpoint's directory. ``layers`` are those whose MLP is replaced, all by default. MLP outputs
    at the first position stay the original's, unless the transcoder's config says ``use_first_position``. ``device``
    and ``dtype`` are those of a model that is loaded here.
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
        self.layers = _layers(self.model, layers)
        self.error_correction = error_correction

    @property
    def sources(self) -> list[int]:
        """Layers whose features write to an MLP that is replaced."""
        config = self.transcoder.config
        return [s for s in range(config.n_layers) if not self.layers.isdisjoint(range(s, s + config.reach_of(s)))]

    @contextmanager
    def replacing(self, change: FeatureChange | None = None) -> Generator[ReplacedPass, None, None]:
        """While this is open, forward passes of the language model are the replaced model's; yields their features.

        ``change`` intervenes on features as each layer computes them (``interventions.py``).
        """
        config = self.transcoder.config
        current = ReplacedPass(self.transcoder, error_correction=self.error_correction, change=change)
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
        was_training = self.transcoder.training
        self.transcoder.eval()  # while it trains, a token's features may depend on the batch
        try:
            with self.model.hooks(hooks):
                yield current
        finally:
            self.transcoder.train(was_training)

    @contextmanager
    def ablating(self, means: Float[Tensor, "layer d_model"]) -> Generator[None, None, None]:
        """While this is open, the MLP outputs that would be replaced are constants: what a replacement must beat."""

        hook = self.transcoder.config.target_hook

        def write(layer: int, output: Tensor, start: int) -> Tensor:
            constant = means[layer].to(output).expand_as(output)
            unused = unused_positions(self.transcoder, start)
            return torch.cat([output[:, :unused], constant[:, unused:]], dim=1)

        hooks = [(self.model.hook_name(layer, hook), Positioned(partial(write, layer))) for layer in self.layers]
        with self.model.hooks(hooks):
            yield

    @torch.no_grad()
    def logits(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position vocab"]:
        """Logits of the replaced model after every token."""
        with self.replacing():
            return self.model.logits(tokens)

    def generate(
        self,
        prompt: Prompt | None = None,
        sampling: SamplingConfig | None = None,
        *,
        text: Prompt | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> Generation:
        """Let the replaced model continue a prompt; ``settings`` override those of ``sampling``, whose fields they are.

        >>> replacement.generate("Once upon a time", max_new_tokens=20, temperature=0.8, seed=1)  # doctest: +SKIP

        ``text`` is another name of ``prompt``; raises ConfigError unless exactly one of them is given.
        """
        prompts = [given for given in (prompt, text) if given is not None]
        if len(prompts) != 1:
            raise ConfigError(f"prompt is {prompt!r} and text is {text!r}; give exactly one of them.")
        sampling = replace(sampling or SamplingConfig(), **settings)
        with self.replacing():
            return generate(self.model, prompts[0], sampling)

    @torch.no_grad()
    def compare(self, prompt: Prompt, sampling: SamplingConfig | None = None) -> Comparison:
        """Compare predictions on a text, and what both models write after it (20 tokens, greedy, by default)."""
        sampling = sampling or SamplingConfig(max_new_tokens=20)
        tokens = prompt_tokens(self.model, prompt)
        config = self.transcoder.config
        batch, first = tokens[None], self.transcoder.first_position
        original = self.model.capture(batch, config.input_hook, config.target_hook)
        assert original.logits is not None
        replaced = self.logits(batch)
        logits = compare_logits(original.logits, replaced, batch, first)
        with self.ablating(original.targets[0, first:].mean(0)):
            ablated = cross_entropies(self.model.logits(batch), batch, first)
        continuations = None
        if room_after(self.model, tokens, sampling) > 0:
            continuations = Continuations(
                original=generate(self.model, tokens, sampling), replacement=self.generate(tokens, sampling)
            )
        before, after = (run[:, first:-1].float() for run in (original.logits, replaced))
        return Comparison(
            logits=logits,
            cosine=float(cosines(before, after).mean()),
            mean_squared_error=float(functional.mse_loss(after, before)),
            cross_entropy_ablated=float(ablated.mean()),
            continuations=continuations,
        )


def unused_positions(transcoder: Transcoder, start: int) -> int:
    """How many positions at the beginning of a pass have no features, if the pass begins at position ``start``."""
    return max(0, transcoder.first_position - start)


def _add(sums: dict[int, Tensor], source: int, written: Float[Tensor, "batch target d_model"]) -> None:
    """Add what a layer writes to it and to those after it."""
    for target, part in enumerate(written.unbind(1), start=source):
        sums[target] = sums[target] + part if target in sums else part


def _transcoder(transcoder: Transcoder | HoldsTranscoder | str | Path, model: LanguageModel) -> Transcoder:
    """The transcoder itself, from whatever leads to it; it must be of the language model's shape."""
    if isinstance(transcoder, str | Path):
        transcoder = load_transcoder(transcoder, device=model.device)
    elif not isinstance(transcoder, Transcoder):
        transcoder = transcoder.transcoder
    check_fits(transcoder, model)
    return transcoder


def _layers(model: LanguageModel, layers: Sequence[int] | None) -> frozenset[int]:
    chosen = frozenset(range(model.n_layers) if layers is None else layers)
    if not chosen or not chosen <= set(range(model.n_layers)):
        raise ConfigError(f"layers is {sorted(chosen)}; choose some of 0 to {model.n_layers - 1}.")
    return chosen
