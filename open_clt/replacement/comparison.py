"""How far a replaced model's predictions are from the original's: numbers of two tensors of logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.errors import TextError
from open_clt.replacement.generation import Generation


class LogitComparison(NamedTuple):
    """Means over the predictions that were compared."""

    cross_entropy_original: float
    """Nats per token."""
    cross_entropy_replacement: float
    kl_divergence: float
    """KL(original || replacement), nats per token."""
    top1_agreement: float
    """Share of positions where both hold the same token most probable."""
    cosine: float
    """Of the logits of a position, each centred."""
    mean_squared_error: float
    """Of the logits."""


class Continuations(NamedTuple):
    """What both models write after the same text."""

    original: Generation
    replacement: Generation


class Comparison(NamedTuple):
    """A language model and its replacement, on one text."""

    logits: LogitComparison
    cross_entropy_ablated: float
    """Nats per token with each replaced MLP output set to its mean over the text."""
    share_recovered: float | None
    """1 if the replacement predicts as well as the original, 0 as ill as the ablation; None if that does no harm."""
    continuations: Continuations | None
    """None if the text fills the context."""

    def summary(self) -> str:
        """All of it in a few lines, for reading."""
        logits = self.logits
        recovered = "" if self.share_recovered is None else f", {self.share_recovered:.0%} recovered"
        lines = [
            f"cross-entropy  original {logits.cross_entropy_original:.3f}, replacement "
            f"{logits.cross_entropy_replacement:.3f}, ablated {self.cross_entropy_ablated:.3f}{recovered}",
            f"predictions    top-1 agreement {logits.top1_agreement:.0%}, KL {logits.kl_divergence:.3f} nats, "
            f"cosine of the logits {logits.cosine:.3f}, mean squared error {logits.mean_squared_error:.3f}",
        ]
        if self.continuations is not None:
            lines += [
                f"original       {self.continuations.original.text!r}",
                f"replacement    {self.continuations.replacement.text!r}",
            ]
        return "\n".join(lines)


@torch.no_grad()
def compare_logits(
    original: Float[Tensor, "batch position vocab"],
    replacement: Float[Tensor, "batch position vocab"],
    tokens: Int[Tensor, "batch position"],
    first: int = 0,
) -> LogitComparison:
    """Compare the predictions made at positions ``first`` and later, where the next token is known for all numbers."""
    original, replacement = original[:, first:-1].float(), replacement[:, first:-1].float()
    target = tokens[:, first + 1 :]
    p, q = original.log_softmax(-1), replacement.log_softmax(-1)
    return LogitComparison(
        cross_entropy_original=cross_entropy(original, target),
        cross_entropy_replacement=cross_entropy(replacement, target),
        kl_divergence=float((p.exp() * (p - q)).sum(-1).mean()),
        top1_agreement=float((p.argmax(-1) == q.argmax(-1)).float().mean()),
        cosine=float(functional.cosine_similarity(_centred(original), _centred(replacement), dim=-1).mean()),
        mean_squared_error=float((original - replacement).square().mean()),
    )


def cross_entropy(logits: Float[Tensor, "batch position vocab"], target: Int[Tensor, "batch position"]) -> float:
    """Mean surprise at the tokens that came, in nats."""
    if not target.numel():
        raise TextError("The text is too short to compare predictions on; give at least two words.")
    return float(functional.cross_entropy(logits.float().flatten(0, 1), target.flatten()))


def share_recovered(original: float, replacement: float, ablated: float) -> float | None:
    """Share of the loss that ablation causes and the replacement does not; None if ablation causes none."""
    return (ablated - replacement) / (ablated - original) if ablated > original else None


def _centred(logits: Float[Tensor, "batch position vocab"]) -> Float[Tensor, "batch position vocab"]:
    return logits - logits.mean(-1, keepdim=True)
