"""Model runs with interventions: on a prompt (``intervene``), or while text is generated (``generate_patched``).

``intervene`` takes a ReplacementModel and works in three steps:

    1. run the model on the prompt without interventions, and keep each layer's inputs and outputs, the attention
       patterns and the norm denominators
    2. run the model again with the interventions, whose effects spread as far as the patching allows
    3. return both runs and their differences as an ``InterventionRecord``

With ``error_correction``, the model is the language model itself, which attribution graphs describe; without it,
effects are those in the replacement model. Sources: Ameisen et al. (2025), "Intervening on features"; Lindsey et al.
(2025), "Constrained patching".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple, Unpack, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.config import SamplingConfig, SamplingSettings
from open_clt.config.arguments import Count, checked_arguments
from open_clt.errors import ConfigError
from open_clt.html_repr import html_repr
from open_clt.language.language_model import Advanced, KeyValues, LanguageModel
from open_clt.language.prompts import Prompt, prompt_tokens
from open_clt.replacement.bounds import GrowingBounds, inference_mode
from open_clt.replacement.comparison import kl_divergences
from open_clt.replacement.generation import Generation, generate
from open_clt.replacement.interventions.intervention import (
    Constrained,
    Intervention,
    Iterative,
    Patching,
    changes,
    resolved,
)
from open_clt.replacement.interventions.observation import Observed, observe, observed, recording, running
from open_clt.replacement.interventions.patching import patched
from open_clt.replacement.model import ReplacementModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.neurons.transcoder import NeuronTranscoder
from open_clt.transcoders.sparse.codes import SparseFeatures
from open_clt.transcoders.transcoder import Transcoder

_LAST = torch.tensor([-1])
"""The position after which the next token is predicted."""


class TopToken(NamedTuple):
    """A likely next token and its probability."""

    token: str
    """Text of the token."""
    probability: float
    """Probability that the model gives to the token."""


class FeatureChanges(NamedTuple):
    """The activations that changed, one row per feature and position, largest change first."""

    layer: Int[Tensor, "change"]
    """Layer of each feature."""
    position: Int[Tensor, "change"]
    """Position of each changed activation, from the prompt's start."""
    feature: Int[Tensor, "change"]
    """Index of each feature in its layer."""
    before: Float[Tensor, "change"]
    """Activation without interventions."""
    after: Float[Tensor, "change"]
    """Activation with the interventions."""

    __repr__ = short_repr


@final
@dataclass(frozen=True, eq=False)
class InterventionRecord:
    """The effects of interventions on a model, on one prompt."""

    interventions: tuple[Intervention, ...]
    """The interventions as they were applied, with positions that count from the prompt's start."""
    patching: Patching
    """How far the effects were allowed to spread."""
    before: Observed
    """The run without interventions."""
    after: Observed
    """The run with the interventions."""
    top_before: tuple[TopToken, ...]
    """Likeliest next tokens after the prompt, without interventions."""
    top_after: tuple[TopToken, ...]
    """Likeliest next tokens after the prompt, with the interventions."""

    @property
    def logits_before(self) -> Float[Tensor, "position vocab"]:
        """Logits after every token, without interventions."""
        return self.before.logits

    @property
    def logits_after(self) -> Float[Tensor, "position vocab"]:
        """Logits after every token, with the interventions."""
        return self.after.logits

    @cached_property
    def changes(self) -> FeatureChanges:
        """The activations that the interventions changed."""
        return _feature_changes(self.before.features, self.after.features)

    @property
    def kl_divergence(self) -> float:
        """KL(before || after) of the prediction after the prompt, in nats."""
        return float(kl_divergences(*(run.logits_at(_LAST) for run in (self.before, self.after))))

    @torch.no_grad()
    def preactivation_change(
        self, transcoder: Transcoder, layer: int, features: Int[Tensor, "some"]
    ) -> Float[Tensor, "position some"]:
        """Return the changes of the pre-activations of some features of one layer, whether or not they are active.

        Of neurons, it is the change of their activations with gates frozen as they were before. Raises ConfigError if
        the transcoder has no features at this layer.
        """
        place, runs = transcoder.config.place_of(layer), (self.before, self.after)
        before, after = (run.inputs[layer].to(transcoder.device, transcoder.dtype) for run in runs)
        if isinstance(transcoder, NeuronTranscoder):
            return transcoder.linear_change(before, after, place, features)
        return transcoder.preactivations_of(after, place, features) - transcoder.preactivations_of(
            before, place, features
        )

    def summary(self, count: int = 5) -> str:
        """Describe the record in a few lines of text, with at most ``count`` tokens and changed activations."""
        tops = (("before", self.top_before), ("after", self.top_after))
        lines = [f"intervened  {', '.join(intervention.describe() for intervention in self.interventions)}"]
        for name, top in tops:
            lines.append(f"{name:<11} {', '.join(f'{t.token!r} {t.probability:.1%}' for t in top[:count])}")
        changed = self.changes
        lines.append(f"KL          {self.kl_divergence:.4f} nats; {changed.layer.shape[0]} activations changed")
        rows = zip(*(column[:count].tolist() for column in changed), strict=True)
        for layer, position, feature, before, after in rows:
            lines.append(f"  {Feature(layer, feature)} at {position}: {before:.3f} -> {after:.3f}")
        return "\n".join(lines)

    __repr__ = short_repr
    _repr_html_ = html_repr


@checked_arguments
@torch.no_grad()
def intervene(
    replacement: ReplacementModel,
    prompt: Prompt | Observed,
    interventions: Intervention | Sequence[Intervention],
    patching: Patching | None = None,
    *,
    top: Count = 5,
    chat: bool = False,
) -> InterventionRecord:
    """Run a model on a prompt with interventions, and compare this run with the one without them.

    ``prompt`` is a text, its tokens, or what ``observe`` returned for them; ``chat`` applies the chat template of the
    model to a text or to messages (``open_clt.language.prompts``). The default of ``patching`` is
    ``Constrained()``. ``top`` is how many of the likeliest next tokens the record lists. Raises ConfigError on
    interventions that the model or the prompt does not allow.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; it must be at least 1.")
    patching = patching or Constrained()
    before = prompt if isinstance(prompt, Observed) else observe(replacement, prompt, chat=chat)
    applied = _resolved(replacement, interventions, len(before.tokens))
    with (
        inference_mode(replacement.transcoder),
        patched(replacement, applied, patching, before, bounds=before.bounds) as activations,
    ):
        states = replacement.model.states(before.tokens[None])[0]
        after = observed(replacement, before.tokens, 0, states, activations, bounds=before.bounds)
        after = replace(after, features=_with_changes(after, before, applied, patching))
    tops = (_top_tokens(replacement.model, run.logits_at(_LAST)[0], top) for run in (before, after))
    return InterventionRecord(tuple(applied), patching, before, after, *tops)


def generate_patched(
    replacement: ReplacementModel,
    prompt: Prompt,
    interventions: Intervention | Sequence[Intervention],
    patching: Patching | None = None,
    sampling: SamplingConfig | None = None,
    *,
    chat: bool = False,
    **settings: Unpack[SamplingSettings],
) -> Generation:
    """Let a model continue a prompt with interventions.

    An intervention on every position, or on a slice without an end, also applies to the generated tokens. ``patching``
    is ``Iterative()`` by default; for generated tokens, it holds and freezes what the model without interventions
    computes for them. ``chat`` applies the chat template of the model. ``settings`` override fields of ``sampling``.
    """
    patching = patching or Iterative()
    tokens = prompt_tokens(replacement.model, prompt, chat=chat)
    applied = _resolved(replacement, interventions, len(tokens), generating=True)
    sampling = replace(sampling or SamplingConfig(), **settings)
    growing = GrowingBounds(replacement.model, replacement.transcoder)
    step = partial(_advance, replacement, applied, patching, growing=growing)
    with inference_mode(replacement.transcoder):
        return generate(replacement.model, tokens, sampling, advance=step)


def _advance(
    replacement: ReplacementModel,
    interventions: Sequence[Intervention],
    patching: Patching,
    tokens: Int[Tensor, "1 position"],
    key_values: tuple[KeyValues, KeyValues] | None,
    *,
    growing: GrowingBounds,
) -> Advanced:
    """Advance the model without interventions and the model with them, each with its own cache."""
    plain_cache, patched_cache = key_values or (None, None)
    start = 0 if patched_cache is None else int(patched_cache.get_seq_length())
    before, bounds = None, growing.of_next(tokens)
    if patching != Iterative():  # Iterative() holds and freezes nothing, so it does not need the plain run
        reading = replacement.model.unembedding.reading()
        with running(replacement, bounds), recording(replacement) as activations, reading as states:
            _, plain_cache = replacement.model.advance(tokens, plain_cache)
            before = observed(replacement, tokens[0], start, states[-1][0], activations, bounds=bounds)
    with patched(replacement, interventions, patching, before, start, bounds=bounds):
        logits, patched_cache = replacement.model.advance(tokens, patched_cache)
    return Advanced(logits, (plain_cache, patched_cache))


def _resolved(
    replacement: ReplacementModel,
    interventions: Intervention | Sequence[Intervention],
    length: int,
    *,
    generating: bool = False,
) -> list[Intervention]:
    """Check one or several interventions against a model and a prompt's length, and resolve their positions."""
    interventions = [interventions] if isinstance(interventions, Intervention) else interventions
    transcoder = replacement.transcoder
    first = transcoder.first_position
    return resolved(interventions, transcoder.config, replacement.sources, length, first=first, generating=generating)


def _with_changes(
    after: Observed, before: Observed, interventions: Sequence[Intervention], patching: Patching
) -> tuple[SparseFeatures, ...]:
    """Return the features of the run with interventions; features that were set have the values they were set to."""
    features = list(after.features)
    for layer in {intervention.layer for intervention in interventions}:
        # Constrained patching changes the features of the run without interventions, iterative patching those of the
        # run with them.
        base = before.features[layer] if isinstance(patching, Constrained) else features[layer]
        added = changes(base, interventions, layer, after.start)
        assert added is not None
        difference = added.dense()
        dense = torch.where(difference != 0, base.dense() + difference, features[layer].dense())
        features[layer] = SparseFeatures.from_dense(dense)
    return tuple(features)


def _feature_changes(before: Sequence[SparseFeatures], after: Sequence[SparseFeatures]) -> FeatureChanges:
    old, new = (torch.stack([features.dense() for features in run]) for run in (before, after))
    layer, position, feature = changed = (old != new).nonzero(as_tuple=True)
    order = (new - old)[changed].abs().argsort(descending=True, stable=True)
    columns = (layer, position, feature, old[changed], new[changed])
    return FeatureChanges(*(column[order] for column in columns))


def _top_tokens(model: LanguageModel, logits: Float[Tensor, "vocab"], count: int) -> tuple[TopToken, ...]:
    likeliest = logits.float().softmax(-1).topk(min(count, logits.shape[0]))
    texts = model.token_strings(likeliest.indices)
    probabilities = likeliest.values.tolist()
    return tuple(TopToken(text, probability) for text, probability in zip(texts, probabilities, strict=True))
