"""Conversion to JumpReLU, and its effect on reconstruction and on the language model's predictions.

Without a language model, thresholds are fitted to a dataset of activations, and only the reconstruction is measured.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt.config import ThresholdConfig
from open_clt.data.dataset.fits import check_dataset_fits
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.harvest import without_outliers
from open_clt.errors import TextError
from open_clt.evaluation.evaluate import Evaluation, measure_each
from open_clt.evaluation.reconstruction import first_tokens
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.model import ReplacementModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.metrics import TranscoderMetrics, metrics_of
from open_clt.transcoders.to_jumprelu import Conversion, convert_to_jumprelu
from open_clt.transcoders.transcoder import Transcoder


class ConversionRecord(NamedTuple):
    """A conversion, and the evaluation of both transcoders on contexts that the thresholds were not fitted to."""

    conversion: Conversion
    """The converted transcoder, with numbers on the tokens that its thresholds were fitted to."""
    before: Evaluation
    """Evaluation of the original transcoder."""
    after: Evaluation
    """Evaluation of the converted transcoder."""

    __repr__ = short_repr

    @property
    def transcoder(self) -> Transcoder:
        """The converted transcoder."""
        return self.conversion.transcoder

    def summary(self) -> str:
        """L0, FVU and cross-entropy before and after the conversion, as text."""
        before, after = self.before, self.after
        ce_before, ce_after = before.logits.cross_entropy_replacement, after.logits.cross_entropy_replacement
        return "\n".join([
            *_lines(self.conversion, before.reconstruction, after.reconstruction, held_out="contexts"),
            f"CE            {ce_before:.4f} -> {ce_after:.4f} nats per token "
            f"({ce_after - ce_before:+.4f}; without replacement {before.logits.cross_entropy_original:.4f})",
        ])  # fmt: skip


class StoredConversion(NamedTuple):
    """A conversion on a dataset of activations, and the metrics of both transcoders on its held-out tokens."""

    conversion: Conversion
    """The converted transcoder, with numbers on the tokens that its thresholds were fitted to."""
    before: TranscoderMetrics
    """Metrics of the original transcoder."""
    after: TranscoderMetrics
    """Metrics of the converted transcoder."""

    __repr__ = short_repr

    @property
    def transcoder(self) -> Transcoder:
        """The converted transcoder."""
        return self.conversion.transcoder

    def summary(self) -> str:
        """L0 and FVU before and after the conversion, as text."""
        return "\n".join(_lines(self.conversion, self.before, self.after, held_out="tokens"))


def _lines(conversion: Conversion, before: TranscoderMetrics, after: TranscoderMetrics, held_out: str) -> list[str]:
    """The lines of a summary: the thresholds, and L0 and FVU on the tokens that they were fitted to and on others."""
    return [
        conversion.threshold_table(),
        "on the tokens that the thresholds were fitted to",
        conversion.summary(),
        f"on held-out {held_out}",
        f"L0 per layer  {before.l0:.2f} -> {after.l0:.2f}",
        f"FVU           {before.fvu:.4f} -> {after.fvu:.4f} ({after.fvu - before.fvu:+.4f})",
    ]


@torch.no_grad()
def convert_transcoder(
    model: LanguageModel,
    transcoder: Transcoder,
    contexts: Int[Tensor, "context position"],
    *,
    thresholds: ThresholdConfig | None = None,
    held_out_share: float = 0.25,
    batch_size: int = 8,
) -> ConversionRecord:
    """Convert a TopK or BatchTopK transcoder to JumpReLU, and evaluate both on held-out contexts.

    ``contexts`` begin with BOS; the last ``held_out_share`` of them are held out. First positions are left out unless
    the transcoder uses them, as in training. Raises ConfigError if the transcoder cannot be converted, TextError if
    there are fewer than two contexts.
    """
    held_out = max(1, round(held_out_share * contexts.shape[0]))
    fitted = contexts.shape[0] - held_out
    if fitted < 1:
        raise TextError(f"There are {contexts.shape[0]} contexts; give text for at least 2, one of which is held out.")
    config, first = transcoder.config, transcoder.first_position
    captures = [
        model.capture(batch, config.input_hook, config.target_hook, layers=config.layers)
        for batch in contexts[:fitted].split(batch_size)
    ]
    inputs = torch.cat([capture.inputs[:, first:].flatten(0, 1) for capture in captures])
    targets = torch.cat([capture.targets[:, first:].flatten(0, 1) for capture in captures])
    conversion = convert_to_jumprelu(transcoder, inputs, targets, thresholds=thresholds)
    versions = [ReplacementModel(model, version) for version in (transcoder, conversion.transcoder)]
    return ConversionRecord(conversion, *measure_each(versions, contexts[fitted:], batch_size=batch_size))


@torch.no_grad()
def convert_on_dataset(
    transcoder: Transcoder,
    dataset: ActivationDataset,
    *,
    thresholds: ThresholdConfig | None = None,
    max_tokens: int | None = None,
    held_out_share: float = 0.25,
) -> StoredConversion:
    """Convert a TopK or BatchTopK transcoder to JumpReLU on a dataset of activations, without a language model.

    The first ``max_tokens`` tokens of the dataset, or all of them, are held in memory; the last ``held_out_share`` of
    them are held out. First positions are left out unless the transcoder uses them. Raises ConfigError if the
    transcoder cannot be converted or does not fit the dataset, and TextError if there are fewer than two tokens.
    """
    check_dataset_fits(dataset.manifest.harvested, transcoder.config, dataset.source)
    total = len(dataset) if max_tokens is None else min(max_tokens, len(dataset))
    first, layers = transcoder.first_position, transcoder.config.layers
    read = first_tokens(dataset.batches(layers), total)
    batches = [without_outliers(batch, first_position=first, layers=layers) for batch in read]
    inputs, targets = (torch.cat(kind).float() for kind in list(zip(*batches, strict=True))[:2])
    fitted = len(inputs) - max(1, round(held_out_share * len(inputs)))
    if fitted < 2:
        raise TextError(f"{dataset.source} has {len(inputs)} usable tokens; give a dataset of some thousands.")
    conversion = convert_to_jumprelu(transcoder, inputs[:fitted], targets[:fitted], thresholds=thresholds)
    versions = (transcoder, conversion.transcoder)
    return StoredConversion(conversion, *(metrics_of(one, inputs[fitted:], targets[fitted:]) for one in versions))
