"""Conversion to JumpReLU, and its effect on reconstruction and on the language model's predictions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt.errors import TextError
from open_clt.evaluation.evaluate import Evaluation, measure_each
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.model import ReplacementModel
from open_clt.short_repr import short_repr
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
            "on the tokens that the thresholds were fitted to",
            self.conversion.summary(),
            "on held-out contexts",
            f"L0 per layer  {before.reconstruction.l0:.2f} -> {after.reconstruction.l0:.2f}",
            f"FVU           {before.reconstruction.fvu:.4f} -> {after.reconstruction.fvu:.4f} "
            f"({after.reconstruction.fvu - before.reconstruction.fvu:+.4f})",
            f"CE            {ce_before:.4f} -> {ce_after:.4f} nats per token "
            f"({ce_after - ce_before:+.4f}; without replacement {before.logits.cross_entropy_original:.4f})",
        ])  # fmt: skip


@torch.no_grad()
def convert_transcoder(
    model: LanguageModel,
    transcoder: Transcoder,
    contexts: Int[Tensor, "context position"],
    *,
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
        model.capture(batch, config.input_hook, config.target_hook) for batch in contexts[:fitted].split(batch_size)
    ]
    inputs = torch.cat([capture.inputs[:, first:].flatten(0, 1) for capture in captures])
    targets = torch.cat([capture.targets[:, first:].flatten(0, 1) for capture in captures])
    conversion = convert_to_jumprelu(transcoder, inputs, targets)
    versions = [ReplacementModel(model, version) for version in (transcoder, conversion.transcoder)]
    return ConversionRecord(conversion, *measure_each(versions, contexts[fitted:], batch_size=batch_size))
