"""Comparison of predictions: cross-entropy, KL divergence and agreement of a changed model with the original one.

All other modules take these numbers from here. For each of them, a function computes one value per position.
``LogitComparison`` is the record of their means, and ``LogitAccumulator`` computes this record from some predictions
at a time, because the logits of many contexts would need too much memory (``open_clt.language.unembedding``).
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from open_clt.errors import TextError
from open_clt.finite import check_finite
from open_clt.html_repr import html_repr
from open_clt.processes import Processes
from open_clt.replacement.generation import Generation
from open_clt.short_repr import short_repr


class LogitComparison(NamedTuple):
    """Means over the predictions that were compared."""

    cross_entropy_original: float
    """Cross-entropy of the original model, in nats per token."""
    cross_entropy_replacement: float
    """Cross-entropy of the replacement model, in nats per token."""
    kl_divergence: float
    """KL(original || replacement), in nats per token."""
    top1_agreement: float
    """Share of the predictions for which both models give the highest probability to the same token."""

    _repr_html_ = html_repr

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, under the names that files and tables use."""
        return {
            "ce_original": self.cross_entropy_original,
            "ce_replacement": self.cross_entropy_replacement,
            "kl": self.kl_divergence,
            "top1_agreement": self.top1_agreement,
        }


class Continuations(NamedTuple):
    """The continuations that both models write after the same text."""

    original: Generation
    """Text and tokens that the original model wrote."""
    replacement: Generation
    """Text and tokens that the replacement model wrote."""

    __repr__ = short_repr


class Comparison(NamedTuple):
    """The numbers that compare a language model with its replacement model on one text."""

    logits: LogitComparison
    """Means of cross-entropy, KL divergence and agreement."""
    cosine: float
    """Mean over the positions of the cosine between the two models' logits, each centred first."""
    mean_squared_error: float
    """Mean squared difference of the logits."""
    cross_entropy_ablated: float
    """Cross-entropy in nats per token when each replaced MLP output is set to its mean over the text."""
    continuations: Continuations | None
    """Continuations of the text by both models; None if none were asked for, or the text leaves no room for more."""
    prompt: str = ""
    """The text, without the BOS token."""

    __repr__ = short_repr
    _repr_html_ = html_repr

    @property
    def share_recovered(self) -> float | None:
        """1 if the replacement predicts as well as the original, 0 if it predicts as badly as the ablation.

        It is None if the ablation does not raise the cross-entropy.
        """
        return share_recovered(self.logits, self.cross_entropy_ablated)

    def summary(self) -> str:
        """Describe the comparison in a few lines of text."""
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
    """Sums over predictions; ``result`` is the comparison of all predictions so far."""

    def __init__(self) -> None:
        self._n_predictions = torch.zeros(1, dtype=torch.long)
        self._sums = torch.zeros(len(LogitComparison._fields), dtype=torch.float64)

    @torch.no_grad()
    def update(
        self,
        original: Float[Tensor, "prediction vocab"],
        replacement: Float[Tensor, "prediction vocab"],
        next_tokens: Int[Tensor, "prediction"],
    ) -> None:
        """Add the predictions of both models; raises NotFiniteError if one of them is not finite."""
        losses = [cross_entropies(logits, next_tokens) for logits in (original, replacement)]
        columns = (*losses, kl_divergences(original, replacement), agreements(original, replacement))
        self._n_predictions += len(next_tokens)
        self._sums += torch.stack([column.float() for column in columns]).cpu().double().sum(1)

    def add_up(self, processes: Processes) -> None:
        """Add the predictions of all processes that share a text."""
        processes.add_up(self._n_predictions, self._sums)

    def result(self) -> LogitComparison:
        """Return the means over all predictions so far."""
        return LogitComparison(*(self._sums / self._n_predictions).tolist())


def predicting(values: Shaped[Tensor, "batch position *value"], first: int) -> Shaped[Tensor, "prediction *value"]:
    """Values at the positions whose predictions are compared: from ``first`` on, except the last of each context.

    The token after the last position is not known.
    """
    return values[:, first:-1].flatten(0, 1)


def predicted_tokens(tokens: Int[Tensor, "batch position"], first: int) -> Int[Tensor, "prediction"]:
    """The tokens that the positions of ``predicting`` predict; raises TextError for a text that is too short."""
    if tokens.shape[1] < first + 2:
        raise TextError(
            f"The text has {tokens.shape[1]} tokens; to compare predictions from position {first} on, "
            f"give at least {first + 2}."
        )
    return tokens[:, first + 1 :].flatten()


def cross_entropies(
    logits: Float[Tensor, "prediction vocab"], next_tokens: Int[Tensor, "prediction"]
) -> Float[Tensor, "prediction"]:
    """Cross-entropy in nats of each prediction; raises NotFiniteError if one is not finite."""
    losses = functional.cross_entropy(logits.float(), next_tokens.to(logits.device), reduction="none")
    check_finite(losses.max(), "The cross-entropy of a prediction")
    return losses


def kl_divergences(
    original: Float[Tensor, "*position vocab"], changed: Float[Tensor, "*position vocab"]
) -> Float[Tensor, "*position"]:
    """KL(original || changed) of the predictions for the next token at each position, in nats.

    Raises NotFiniteError if a logit is not finite.
    """
    before, after = original.float().log_softmax(-1), changed.float().log_softmax(-1)
    divergences = (before.exp() * (before - after)).sum(-1)
    check_finite(divergences, "The KL divergence of two predictions")
    return divergences


def agreements(
    original: Float[Tensor, "*position vocab"], changed: Float[Tensor, "*position vocab"]
) -> Bool[Tensor, "*position"]:
    """Whether both logits are highest for the same token, at each position."""
    return original.argmax(-1) == changed.argmax(-1)


def cosines(
    original: Float[Tensor, "*position vocab"], changed: Float[Tensor, "*position vocab"]
) -> Float[Tensor, "*position"]:
    """Cosine of the two models' logits at each position, after the mean of each is subtracted."""
    centred = [logits.float() - logits.float().mean(-1, keepdim=True) for logits in (original, changed)]
    return functional.cosine_similarity(*centred, dim=-1)


def share_recovered(logits: LogitComparison, ablated: float) -> float | None:
    """Share of the ablation's harm that the replacement avoids; None if the ablation does not raise the cross-entropy.

    The harm of a change is the rise of the cross-entropy, and ``ablated`` is the cross-entropy with the ablation.
    """
    original, replacement = logits.cross_entropy_original, logits.cross_entropy_replacement
    return (ablated - replacement) / (ablated - original) if ablated > original else None
