"""The evaluation of a transcoder on held-out text: the loop over contexts (``measure``) and the record of numbers.

For each batch of contexts, the language model runs unchanged, then with the transcoder in place of all MLPs and, on
request, with the MLP of one layer replaced at a time. A second pass sets every MLP output to its mean over all
contexts, which is what a transcoder without any information would write. Only sums are kept between batches. The first
position of a context is left out of all numbers, as in training, unless the transcoder uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.html_repr import html_repr
from open_clt.language.language_model import Captured
from open_clt.processes import ALONE, Processes
from open_clt.progress import report_progress
from open_clt.replacement.comparison import (
    LogitAccumulator,
    LogitComparison,
    cross_entropies,
    predicted_tokens,
    predicting,
    share_recovered,
)
from open_clt.replacement.model import ReplacementModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.metrics import LayerMetrics, MetricsAccumulator, TranscoderMetrics


class Evaluation(NamedTuple):
    """The numbers of a transcoder on held-out text. Cross-entropies are in nats per token."""

    reconstruction: TranscoderMetrics
    """Reconstruction and sparsity of the transcoder."""
    logits: LogitComparison
    """Comparison of the model's predictions with those when every MLP is replaced."""
    cross_entropy_ablated: float
    """Cross-entropy when every MLP output is set to its mean."""
    alone: tuple[LogitComparison, ...] = ()
    """Comparison for each layer when only its MLP is replaced; empty if not measured."""

    @property
    def share_recovered(self) -> float | None:
        """Share of the increase in cross-entropy by ablation that the replacement avoids.

        It is 1 if the replacement predicts as well as the original, 0 if it predicts as badly as the ablation, and None
        if the ablation does not raise the cross-entropy.
        """
        return share_recovered(self.logits, self.cross_entropy_ablated)

    def totals(self) -> dict[str, Any]:
        """The numbers of the whole transcoder, under their names in files and tables."""
        ablation = {"ce_ablated": self.cross_entropy_ablated, "ce_recovered": self.share_recovered}
        return {**self.reconstruction.totals(), **self.logits.as_dict(), **ablation}

    def layers(self) -> list[dict[str, Any]]:
        """The numbers of each layer, under their names in files and tables."""
        numbered = zip(self.reconstruction.model_layers, self.reconstruction.layers, strict=True)
        rows = [{"layer": layer, **numbers._asdict()} for layer, numbers in numbered]
        for row, alone in zip(rows, self.alone, strict=False):
            row["ce_alone"] = alone.cross_entropy_replacement
            row["kl_alone"] = alone.kl_divergence
            row["top1_agreement_alone"] = alone.top1_agreement
        return rows

    def as_dict(self) -> dict[str, Any]:
        """The ``totals``, and each number of ``layers`` as a list over the layers, ready for JSON."""
        rows = self.layers()
        return {
            **self.totals(),
            **{f"{name}_per_layer": [row[name] for row in rows] for name in rows[0] if name != "layer"},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Evaluation:
        """Rebuild an evaluation from ``totals``, ``layers`` and ``density_histogram``; raises KeyError without them."""
        rows = content["layers"]
        layers = tuple(row["layer"] for row in rows)
        original = content["ce_original"]
        return cls(
            reconstruction=TranscoderMetrics(
                tokens=content["tokens"],
                layers=tuple(LayerMetrics(*(row[name] for name in LayerMetrics._fields)) for row in rows),
                density_histogram=tuple(content["density_histogram"]),
                chosen_layers=None if layers == tuple(range(len(rows))) else layers,
            ),
            logits=LogitComparison(original, content["ce_replacement"], content["kl"], content["top1_agreement"]),
            cross_entropy_ablated=content["ce_ablated"],
            alone=tuple(
                LogitComparison(original, row["ce_alone"], row["kl_alone"], row["top1_agreement_alone"]) for row in rows
            ),
        )

    __repr__ = short_repr
    _repr_html_ = html_repr


def measure(
    replacement: ReplacementModel,
    contexts: Int[Tensor, "context position"],
    *,
    alone: bool = False,
    batch_size: int = 8,
    processes: Processes = ALONE,
) -> Evaluation:
    """Measure a replacement model and its transcoder on contexts of tokens, each of which begins with BOS.

    With ``alone``, predictions with one MLP replaced at a time are measured too, which takes one more run per layer.
    Several processes, all of which are given all contexts, share the work, and each returns the whole evaluation.
    Raises TextError if contexts are too short to predict a token.
    """
    return measure_each([replacement], contexts, alone=alone, batch_size=batch_size, processes=processes)[0]


@torch.no_grad()
def measure_each(
    replacements: Sequence[ReplacementModel],
    contexts: Int[Tensor, "context position"],
    *,
    alone: bool = False,
    batch_size: int = 8,
    processes: Processes = ALONE,
) -> list[Evaluation]:
    """Measure several replacement models of one language model, which runs only once per context for all of them.

    Their transcoders read and write at the same hooks of the same layers; all else is as in ``measure``.
    """
    model, config = replacements[0].model, replacements[0].transcoder.config
    measurements = [_Measurement(replacement, alone=alone) for replacement in replacements]
    numbered = enumerate(contexts.split(batch_size))
    batches = [batch.to(model.device) for number, batch in numbered if processes.work_on(number)]
    for number, tokens in enumerate(batches):
        report_progress("measuring", number, len(batches))
        original = model.capture(tokens, config.input_hook, config.target_hook, layers=config.layers)
        for measurement in measurements:
            measurement.update(original, tokens)
    return [measurement.result(batches, processes) for measurement in measurements]


@final
class _Measurement:
    """The sums that belong to one replacement model."""

    def __init__(self, replacement: ReplacementModel, *, alone: bool) -> None:
        self._replacement = replacement
        self._metrics = MetricsAccumulator(replacement.transcoder)
        self._models = [replacement, *(_single_layer_models(replacement) if alone else [])]
        self._first = replacement.transcoder.first_position
        self._accumulators = [LogitAccumulator() for _ in self._models]

    def update(self, original: Captured, tokens: Int[Tensor, "context position"]) -> None:
        """Add a batch of contexts, on which the original model has run."""
        inputs, targets = (hooked[:, self._first :].flatten(0, 1) for hooked in (original.inputs, original.targets))
        self._metrics.update(inputs, targets)
        next_tokens = predicted_tokens(tokens, self._first)
        before = predicting(original.states, self._first)
        after = [predicting(replaced.states(tokens), self._first) for replaced in self._models]
        unembedding = self._replacement.model.unembedding
        for rows in unembedding.slices(len(next_tokens)):
            logits = unembedding.logits(before[rows])
            for states, accumulator in zip(after, self._accumulators, strict=True):
                accumulator.update(logits, unembedding.logits(states[rows]), next_tokens[rows])

    def result(self, batches: list[Tensor], processes: Processes) -> Evaluation:
        """The evaluation; runs the ablated model on all contexts, because the mean MLP outputs are now known."""
        for accumulator in (self._metrics, *self._accumulators):
            accumulator.add_up(processes)
        all_layers, *single_layers = (accumulator.result() for accumulator in self._accumulators)
        return Evaluation(
            reconstruction=self._metrics.result(),
            logits=all_layers,
            cross_entropy_ablated=_ablated(self._replacement, batches, self._metrics.target_means(), processes),
            alone=tuple(single_layers),
        )


def _single_layer_models(replacement: ReplacementModel) -> list[ReplacementModel]:
    """For each layer, the model with only that layer's MLP replaced."""
    model, transcoder = replacement.model, replacement.transcoder
    return [ReplacementModel(model, transcoder, layers=[layer]) for layer in transcoder.config.model_layers]


def _ablated(
    replacement: ReplacementModel,
    batches: list[Tensor],
    means: Float[Tensor, "layer d_model"],
    processes: Processes,
) -> float:
    """Cross-entropy when every MLP output is set to its mean."""
    model, first = replacement.model, replacement.transcoder.first_position
    totals = torch.zeros(2, dtype=torch.float64)  # the sum of cross-entropies, and the number of predictions
    with replacement.ablating(means):
        for number, tokens in enumerate(batches):
            report_progress("measuring without MLPs", number, len(batches))
            states, next_tokens = predicting(model.states(tokens), first), predicted_tokens(tokens, first)
            for rows in model.unembedding.slices(len(next_tokens)):
                totals[0] += float(cross_entropies(model.unembedding.logits(states[rows]), next_tokens[rows]).sum())
            totals[1] += len(next_tokens)
    processes.add_up(totals)
    return float(totals[0] / totals[1])
