"""A transcoder's conversion to JumpReLU, and what it does to the language model's predictions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt.errors import TextError
from open_clt.evaluation.evaluate import Evaluation, measure
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.to_jumprelu import Conversion, convert_to_jumprelu
from open_clt.transcoders.transcoder import Transcoder


class ConversionRecord(NamedTuple):
    """A conversion, and both transcoders on text that it was not fitted to."""

    conversion: Conversion
    before: Evaluation
    after: Evaluation

    @property
    def transcoder(self) -> Transcoder:
        """The converted one."""
        return self.conversion.transcoder

    def summary(self) -> str:
        """L0, FVU and cross-entropy before and after, for reading."""
        before, after = self.before, self.after
        old, new = before.logits.cross_entropy_replacement, after.logits.cross_entropy_replacement
        return "\n".join([
            "on the tokens it was fitted to",
            self.conversion.summary(),
            "on other text",
            f"L0 a layer  {before.reconstruction.l0:.2f} -> {after.reconstruction.l0:.2f}",
            f"FVU         {before.reconstruction.fvu:.4f} -> {after.reconstruction.fvu:.4f} "
            f"({after.reconstruction.fvu - before.reconstruction.fvu:+.4f})",
            f"CE          {old:.4f} -> {new:.4f} nats a token ({new - old:+.4f}; "
            f"without replacement {before.logits.cross_entropy_original:.4f})",
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
    """Convert TopK or BatchTopK to JumpReLU on contexts that begin with BOS, and evaluate both on the last of them.

    First positions are left out unless the transcoder uses them, as in training. Raises ConfigError if the transcoder
    needs no conversion, TextError if there are fewer than two contexts.
    """
    held_out = max(1, round(held_out_share * contexts.shape[0]))
    fitted = contexts.shape[0] - held_out
    if fitted < 1:
        raise TextError(f"{contexts.shape[0]} contexts are too few to fit thresholds to and test them; give more text.")
    config, first = transcoder.config, transcoder.first_position
    parts = [
        model.capture(rows, config.input_hook, config.target_hook, with_logits=False)
        for rows in contexts[:fitted].split(batch_size)
    ]
    inputs = torch.cat([part.inputs[:, first:].flatten(0, 1) for part in parts])
    targets = torch.cat([part.targets[:, first:].flatten(0, 1) for part in parts])
    conversion = convert_to_jumprelu(transcoder, inputs, targets)
    before, after = (
        measure(ReplacementModel(model, either), contexts[fitted:], batch_size=batch_size)
        for either in (transcoder, conversion.transcoder)
    )
    return ConversionRecord(conversion, before, after)
