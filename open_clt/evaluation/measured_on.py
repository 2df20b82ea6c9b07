"""The record of the contexts on which a transcoder was measured; only numbers on the same contexts are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt.errors import ConfigError


class MeasuredOn(NamedTuple):
    """The contexts on which numbers were measured."""

    text: str
    """Description of the text that the contexts come from; may be empty."""
    contexts: int
    """Number of contexts."""
    positions: int
    """Number of tokens in each context, BOS included."""
    fingerprint: str
    """Hash of the contexts: equal only for the same tokens in contexts of the same shape."""

    @property
    def description(self) -> str:
        """The record as text, such as ``512 contexts of 128 tokens of held-out.jsonl``."""
        return f"{self.contexts} contexts of {self.positions} tokens" + (f" of {self.text}" if self.text else "")


def measured_on(contexts: Int[Tensor, "context position"], text: str = "") -> MeasuredOn:
    """The record of these contexts; ``text`` describes where they come from."""
    tokens = contexts.to("cpu", torch.int64).contiguous()
    digest = hashlib.sha256(repr(tuple(tokens.shape)).encode() + tokens.numpy().tobytes())
    return MeasuredOn(text, tokens.shape[0], tokens.shape[1], digest.hexdigest()[:16])


def check_same_contexts(names: Sequence[str], measured: Sequence[MeasuredOn]) -> None:
    """Raise ConfigError unless all transcoders were measured on the same contexts."""
    if len({record.fingerprint for record in measured}) > 1:
        pairs = "; ".join(f"{name} on {record.description}" for name, record in zip(names, measured, strict=True))
        raise ConfigError(
            f"Numbers on different contexts cannot be compared: {pairs}. Measure all transcoders on one text: "
            "`open-clt compare DIRECTORIES --text FILE` (or --seed 0 for the embedded model)."
        )
