"""Run a model with interventions: on a prompt, or while it writes.

``intervene`` takes a ReplacementModel and does this:

    1. run it on the prompt as it is, and keep what every layer read and wrote, attention patterns, norm denominators
    2. run it again with the interventions, whose effects spread as far as the patching lets them
    3. return both, and what lies between them, as an ``InterventionRecord``

A model with ``error_correction`` is the language model itself, which attribution graphs describe; without, effects are
those in the transcoder's own model. Sources: methods, "Intervening on features"; biology, "Constrained patching".
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
from open_clt.errors import ConfigError
from open_clt.language.language_model import Advanced, KeyValues, LanguageModel
from open_clt.replacement.comparison import kl_divergences
from open_clt.replacement.generation import Generation, Prompt, generate, prompt_tokens
from open_clt.replacement.interventions.intervention import (
    Constrained,
    Intervention,
    Iterative,
    Patching,
    changes,
    resolved,
)
from open_clt.replacement.interventions.observation import Observed, inference, observe, observed, recording, running
from open_clt.replacement.interventions.patching import patched
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.sparse.codes import SparseFeatures
from open_clt.transcoders.transcoder import Transcoder


class TopToken(NamedTuple):
    """A token that a model may say next."""

    token: str
    probability: float


class FeatureChanges(NamedTuple):
    """Every feature whose activation is another, one row per feature and position, largest change first."""

    layer: Int[Tensor, "change"]
    position: Int[Tensor, "change"]
    feature: Int[Tensor, "change"]
    before: Float[Tensor, "change"]
    after: Float[Tensor, "change"]


@final
@dataclass(frozen=True, eq=False)
class InterventionRecord:
    """What interventions did to a model on one prompt."""

    interventions: tuple[Intervention, ...]
    """As they were done: positions count from the prompt's start."""
    patching: Patching
    before: Observed
    after: Observed
    top_before: tuple[TopToken, ...]
    """Likeliest next tokens after the prompt, as it was."""
    top_after: tuple[TopToken, ...]

    @property
    def logits_before(self) -> Float[Tensor, "position vocab"]:
        """Logits after every token, as it was."""
        return self.before.logits

    @property
    def logits_after(self) -> Float[Tensor, "position vocab"]:
        """Logits after every token, with the interventions."""
        return self.after.logits

    @cached_property
    def changes(self) -> FeatureChanges:
        """Every feature's change."""
        return _feature_changes(self.before.features, self.after.features)

    @property
    def kl_divergence(self) -> float:
        """KL(before || after) of the next token after the prompt, in nats."""
        return float(kl_divergences(self.logits_before[-1], self.logits_after[-1]))

    @torch.no_grad()
    def preactivation_change(
        self, transcoder: Transcoder, layer: int, features: Int[Tensor, "some"]
    ) -> Float[Tensor, "position some"]:
        """Change of some features' pre-activations, whether or not they are active."""
        runs = (run.inputs[layer].to(transcoder.device, transcoder.dtype) for run in (self.after, self.before))
        after, before = (transcoder.preactivations_of(inputs, layer, features) for inputs in runs)
        return after - before

    def summary(self, count: int = 5) -> str:
        """All of it in a few lines, for reading."""
        tops = (("before", self.top_before), ("after", self.top_after))
        lines = [f"intervened  {', '.join(wanted.describe() for wanted in self.interventions)}"]
        for name, top in tops:
            lines.append(f"{name:<11} {', '.join(f'{t.token!r} {t.probability:.1%}' for t in top[:count])}")
        found = self.changes
        lines.append(f"KL          {self.kl_divergence:.4f} nats; {found.layer.shape[0]} activations changed")
        for layer, position, feature, before, after in zip(*(column[:count].tolist() for column in found), strict=True):
            lines.append(f"  {Feature(layer, feature)} at {position}: {before:.3f} -> {after:.3f}")
        return "\n".join(lines)


@torch.no_grad()
def intervene(
    replacement: ReplacementModel,
    prompt: Prompt | Observed,
    interventions: Intervention | Sequence[Intervention],
    patching: Patching | None = None,
    *,
    top: int = 5,
) -> InterventionRecord:
    """Run a model on a prompt with interventions, constrained by default, and compare with the run without.

    ``prompt`` is a text, tokens, or what ``observe`` returned for them; ``top`` likeliest tokens are listed. Raises
    ConfigError on interventions that do not fit.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; at least 1 token must be listed.")
    patching = patching or Constrained()
    before = prompt if isinstance(prompt, Observed) else observe(replacement, prompt)
    wanted = [interventions] if isinstance(interventions, Intervention) else interventions
    done = _resolved(replacement, wanted, len(before.tokens))
    with inference(replacement), patched(replacement, done, patching, before) as found:
        logits = replacement.model.logits(before.tokens[None])[0]
        after = observed(replacement, before.tokens, 0, logits, found)
        after = replace(after, features=_with_changes(after, before, done, patching))
    tops = (_top_tokens(replacement.model, run.logits[-1], top) for run in (before, after))
    return InterventionRecord(tuple(done), patching, before, after, *tops)


def generate_patched(
    replacement: ReplacementModel,
    prompt: Prompt,
    interventions: Intervention | Sequence[Intervention],
    patching: Patching | None = None,
    sampling: SamplingConfig | None = None,
    **settings: Unpack[SamplingSettings],
) -> Generation:
    """Let a model continue a prompt with interventions (iterative by default), which go on where positions are open.

    What is held or frozen is, for tokens that are new, what the model without interventions computes for them;
    ``settings`` override those of ``sampling``, whose fields they are.
    """
    patching = patching or Iterative()
    tokens = prompt_tokens(replacement.model, prompt)
    wanted = [interventions] if isinstance(interventions, Intervention) else interventions
    done = _resolved(replacement, wanted, len(tokens), generating=True)
    sampling = replace(sampling or SamplingConfig(), **settings)
    step = partial(_advance, replacement, done, patching)
    with inference(replacement):
        return generate(replacement.model, tokens, sampling, advance=step)


def _advance(
    replacement: ReplacementModel,
    interventions: Sequence[Intervention],
    patching: Patching,
    tokens: Int[Tensor, "1 position"],
    key_values: tuple[KeyValues, KeyValues] | None,
) -> Advanced:
    """One step of both models, each with its own cache: the one as it is, and the one with interventions."""
    plain, changed = key_values or (None, None)
    start = 0 if changed is None else int(changed.get_seq_length())
    before = None
    if patching != Iterative():  # which alone holds and freezes nothing
        with running(replacement), recording(replacement) as found:
            logits, plain = replacement.model.advance(tokens, plain)
            before = observed(replacement, tokens[0], start, logits, found)
    with patched(replacement, interventions, patching, before, start):
        logits, changed = replacement.model.advance(tokens, changed)
    return Advanced(logits, (plain, changed))


def _resolved(
    replacement: ReplacementModel,
    interventions: Sequence[Intervention],
    length: int,
    *,
    generating: bool = False,
) -> list[Intervention]:
    transcoder = replacement.transcoder
    first = transcoder.first_position
    return resolved(interventions, transcoder.config, replacement.sources, length, first=first, generating=generating)


def _with_changes(
    after: Observed, before: Observed, interventions: Sequence[Intervention], patching: Patching
) -> tuple[SparseFeatures, ...]:
    """Features of a run with interventions, those that were set as they were set."""
    found = list(after.features)
    for layer in {wanted.layer for wanted in interventions}:
        # Constrained changes start from the prompt's features, iterative ones from what has become of them.
        base = before.features[layer] if isinstance(patching, Constrained) else found[layer]
        changed = changes(base, interventions, layer, after.start)
        assert changed is not None
        moved = changed.dense()
        dense = torch.where(moved != 0, base.dense() + moved, found[layer].dense())
        found[layer] = SparseFeatures.from_dense(dense)
    return tuple(found)


def _feature_changes(before: Sequence[SparseFeatures], after: Sequence[SparseFeatures]) -> FeatureChanges:
    then, now = (torch.stack([features.dense() for features in run]) for run in (before, after))
    layer, position, feature = where = (then != now).nonzero(as_tuple=True)
    order = (now - then)[where].abs().argsort(descending=True, stable=True)
    columns = (layer, position, feature, then[where], now[where])
    return FeatureChanges(*(column[order] for column in columns))


def _top_tokens(model: LanguageModel, logits: Float[Tensor, "vocab"], count: int) -> tuple[TopToken, ...]:
    likeliest = logits.float().softmax(-1).topk(min(count, logits.shape[0]))
    names = model.token_strings(likeliest.indices)
    return tuple(TopToken(name, chance) for name, chance in zip(names, likeliest.values.tolist(), strict=True))
