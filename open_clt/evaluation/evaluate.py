"""The evaluation of a transcoder on held-out text: ``measure``, the one loop over contexts, and its record of numbers.

For each batch of contexts the language model runs as it is, with the transcoder in place of its MLPs and, on request,
with the MLP of one layer replaced at a time. A second pass sets every MLP output to its mean over all contexts, which
is what a transcoder without information would do. Only sums are kept from one batch to the next. The first position of
a context is left out of all numbers, as it is in training, unless the transcoder uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.replacement.comparison import LogitAccumulator, LogitComparison, cross_entropies, share_recovered
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.metrics import LayerMetrics, MetricsAccumulator, TranscoderMetrics


class Evaluation(NamedTuple):
    """The numbers of a transcoder on held-out text. Cross-entropies are nats per token."""

    reconstruction: TranscoderMetrics
    logits: LogitComparison
    """Predictions with every MLP replaced, against the original's."""
    cross_entropy_ablated: float
    """Cross-entropy with every MLP output set to its mean."""
    alone: tuple[LogitComparison, ...] = ()
    """For each layer: predictions with the MLP of that layer replaced, and no other. Empty if not measured."""

    @property
    def share_recovered(self) -> float | None:
        """1 if the replacement predicts as well as the original, 0 if it predicts as badly as the ablation.

        None if the ablation does no harm.
        """
        return share_recovered(self.logits, self.cross_entropy_ablated)

    def totals(self) -> dict[str, Any]:
        """The numbers of the whole transcoder, by the names that files and tables give them."""
        ablation = {"ce_ablated": self.cross_entropy_ablated, "ce_recovered": self.share_recovered}
        return {**self.reconstruction.totals(), **self.logits.as_dict(), **ablation}

    def layers(self) -> list[dict[str, Any]]:
        """The numbers of each layer, by the names that files and tables give them."""
        rows = [{"layer": layer, **numbers._asdict()} for layer, numbers in enumerate(self.reconstruction.layers)]
        for row, alone in zip(rows, self.alone, strict=False):
            row["ce_alone"] = alone.cross_entropy_replacement
            row["kl_alone"] = alone.kl_divergence
            row["top1_agreement_alone"] = alone.top1_agreement
        return rows

    def as_dict(self) -> dict[str, Any]:
        """``totals``, and each number of ``layers`` as a list over the layers; JSON-ready."""
        rows = self.layers()
        return {
            **self.totals(),
            **{f"{name}_per_layer": [row[name] for row in rows] for name in rows[0] if name != "layer"},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Evaluation:
        """The evaluation with these ``totals``, ``layers`` and ``density_histogram``; raises KeyError without them."""
        rows = content["layers"]
        original = content["ce_original"]
        return cls(
            reconstruction=TranscoderMetrics(
                tokens=content["tokens"],
                layers=tuple(LayerMetrics(*(row[name] for name in LayerMetrics._fields)) for row in rows),
                density_histogram=tuple(content["density_histogram"]),
            ),
            logits=LogitComparison(original, content["ce_replacement"], content["kl"], content["top1_agreement"]),
            cross_entropy_ablated=content["ce_ablated"],
            alone=tuple(
                LogitComparison(original, row["ce_alone"], row["kl_alone"], row["top1_agreement_alone"]) for row in rows
            ),
        )


@torch.no_grad()
def measure(
    replacement: ReplacementModel,
    contexts: Int[Tensor, "context position"],
    *,
    alone: bool = False,
    batch_size: int = 8,
) -> Evaluation:
    """Measure a replacement model and its transcoder on contexts of tokens, each beginning with BOS.

    With ``alone`` the predictions with one MLP replaced at a time are measured too: one more run per layer. Raises
    TextError if contexts have fewer than three tokens.
    """
    model, config, first = replacement.model, replacement.transcoder.config, replacement.transcoder.first_position
    metrics = MetricsAccumulator(replacement.transcoder)
    models = [replacement, *(_one_layer_each(replacement) if alone else [])]
    compared = [LogitAccumulator(first=first) for _ in models]
    batches = [rows.to(model.device) for rows in contexts.split(batch_size)]
    for tokens in batches:
        original = model.capture(tokens, config.input_hook, config.target_hook)
        assert original.logits is not None
        inputs, targets = (read[:, first:].flatten(0, 1) for read in (original.inputs, original.targets))
        metrics.update(inputs, targets)
        for replaced, sums in zip(models, compared, strict=True):
            sums.update(original.logits, replaced.logits(tokens), tokens)
    together, *each = (sums.result() for sums in compared)
    return Evaluation(
        reconstruction=metrics.result(),
        logits=together,
        cross_entropy_ablated=_ablated(replacement, batches, metrics.target_means()),
        alone=tuple(each),
    )


def _one_layer_each(replacement: ReplacementModel) -> list[ReplacementModel]:
    """For each layer the model with that layer's MLP replaced, and no other."""
    model, transcoder = replacement.model, replacement.transcoder
    return [ReplacementModel(model, transcoder, layers=[layer]) for layer in range(model.n_layers)]


def _ablated(replacement: ReplacementModel, batches: list[Tensor], means: Float[Tensor, "layer d_model"]) -> float:
    """Cross-entropy with every MLP output set to its mean."""
    total, predictions = 0.0, 0
    with replacement.ablating(means):
        for tokens in batches:
            losses = cross_entropies(replacement.model.logits(tokens), tokens, replacement.transcoder.first_position)
            total += float(losses.sum())
            predictions += losses.numel()
    return total / predictions
