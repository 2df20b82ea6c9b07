"""How far a changed model's predictions are from the original's: cross-entropy, KL divergence and agreement.

These numbers are computed here and nowhere else. Each has a function that gives one number per position;
``LogitComparison`` is the record of their means, and ``LogitAccumulator`` computes it over batches of contexts.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.errors import TextError
from open_clt.replacement.generation import Generation


class LogitComparison(NamedTuple):
    """Means over the predictions that were compared."""

    cross_entropy_original: float
    """Nats per token."""
    cross_entropy_replacement: float
    """Nats per token."""
    kl_divergence: float
    """KL(original || replacement), nats per token."""
    top1_agreement: float
    """Share of the predictions for which both models hold the same token most probable."""

    def as_dict(self) -> dict[str, Any]:
        """The numbers by the names that files and tables give them; JSON-ready."""
        return {
            "ce_original": self.cross_entropy_original,
            "ce_replacement": self.cross_entropy_replacement,
            "kl": self.kl_divergence,
            "top1_agreement": self.top1_agreement,
        }


class Continuations(NamedTuple):
    """What both models write after the same text."""

    original: Generation
    replacement: Generation


class Comparison(NamedTuple):
    """A language model and its replacement, on one text."""

    logits: LogitComparison
    cosine: float
    """Mean cosine of the two models' logits at a position, each centred."""
    mean_squared_error: float
    """Mean squared difference of the logits."""
    cross_entropy_ablated: float
    """Nats per token with each replaced MLP output set to its mean over the text."""
    continuations: Continuations | None
    """None if the text fills the context."""

    @property
    def share_recovered(self) -> float | None:
        """1 if the replacement predicts as well as the original, 0 if it predicts as badly as the ablation.

        None if the ablation does no harm.
        """
        return share_recovered(self.logits, self.cross_entropy_ablated)

    def summary(self) -> str:
        """All of it in a few lines, for reading."""
        logits = self.logits
        recovered = "" if self.share_recovered is None else f", {self.share_recovered:.0%} recovered"
        lines = [
            f"cross-entropy  original {logits.cross_entropy_original:.3f}, replacement "
            f"{logits.cross_entropy_replacement:.3f}, ablated {self.cross_entropy_ablated:.3f}{recovered}",
            f"predictions    top-1 agreement {logits.top1_agreement:.0%}, KL {logits.kl_divergence:.3f} nats, "
            f"cosine of the logits {self.cosine:.3f}, mean squared error {self.mean_squared_error:.3f}",
        ]
        if self.continuations is not None:
            lines += [
                f"original       {self.continuations.original.text!r}",
                f"replacement    {self.continuations.replacement.text!r}",
            ]
        return "\n".join(lines)


@final
class LogitAccumulator:
    """Sums over batches of contexts; ``result`` is the comparison of all predictions so far.

    Compared are the predictions made at positions ``first`` and later, where the next token is known.
    """

    def __init__(self, *, first: int) -> None:
        self._first = first
        self._predictions = 0
        self._sums = torch.zeros(len(LogitComparison._fields), dtype=torch.float64)

    @torch.no_grad()
    def update(
        self,
        original: Float[Tensor, "batch position vocab"],
        replacement: Float[Tensor, "batch position vocab"],
        tokens: Int[Tensor, "batch position"],
    ) -> None:
        """Add one batch of contexts; raises TextError if they are too short for any prediction to be compared."""
        surprises = [cross_entropies(logits, tokens, self._first) for logits in (original, replacement)]
        original, replacement = (logits[:, self._first : -1] for logits in (original, replacement))
        columns = (*surprises, kl_divergences(original, replacement), agreements(original, replacement))
        self._predictions += surprises[0].numel()
        self._sums += torch.stack([column.float() for column in columns]).cpu().double().sum((1, 2))

    def result(self) -> LogitComparison:
        """Means over all predictions so far."""
        return LogitComparison(*(self._sums / self._predictions).tolist())


def compare_logits(
    original: Float[Tensor, "batch position vocab"],
    replacement: Float[Tensor, "batch position vocab"],
    tokens: Int[Tensor, "batch position"],
    first: int = 0,
) -> LogitComparison:
    """Compare the predictions made at positions ``first`` and later, where the next token is known."""
    sums = LogitAccumulator(first=first)
    sums.update(original, replacement, tokens)
    return sums.result()


def cross_entropies(
    logits: Float[Tensor, "batch position vocab"], tokens: Int[Tensor, "batch position"], first: int = 0
) -> Float[Tensor, "batch prediction"]:
    """Surprise at the token that follows each position from ``first`` on, in nats; the last position has none.

    Raises TextError if there is no such position.
    """
    following = tokens[:, first + 1 :].to(logits.device)
    if not following.numel():
        raise TextError("The text is too short to compare predictions on; give at least two words.")
    predictions = logits[:, first:-1].float().flatten(0, 1)
    return functional.cross_entropy(predictions, following.flatten(), reduction="none").view(following.shape)


def kl_divergences(
    original: Float[Tensor, "*position vocab"], changed: Float[Tensor, "*position vocab"]
) -> Float[Tensor, "*position"]:
    """KL(original || changed) of the next token at each position, in nats."""
    before, after = original.float().log_softmax(-1), changed.float().log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1)


def agreements(
    original: Float[Tensor, "*position vocab"], changed: Float[Tensor, "*position vocab"]
) -> Bool[Tensor, "*position"]:
    """Whether both hold the same next token most probable, at each position."""
    return original.argmax(-1) == changed.argmax(-1)


def cosines(
    original: Float[Tensor, "*position vocab"], changed: Float[Tensor, "*position vocab"]
) -> Float[Tensor, "*position"]:
    """Cosine of the logits at each position, both centred."""
    centred = [logits.float() - logits.float().mean(-1, keepdim=True) for logits in (original, changed)]
    return functional.cosine_similarity(*centred, dim=-1)


def share_recovered(logits: LogitComparison, ablated: float) -> float | None:
    """Share of the loss that ablation causes and the replacement does not; None if ablation causes none.

    ``ablated`` is the cross-entropy with the ablation.
    """
    original, replacement = logits.cross_entropy_original, logits.cross_entropy_replacement
    return (ablated - replacement) / (ablated - original) if ablated > original else None
