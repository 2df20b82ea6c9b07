"""What a transcoder was measured on: numbers on other tokens are other numbers, and are not compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt.errors import ConfigError


class MeasuredOn(NamedTuple):
    """The tokens that some numbers are about."""

    text: str
    """Where they come from, in words; may be empty."""
    contexts: int
    positions: int
    """Tokens of each context, BOS included."""
    fingerprint: str
    """Equal for the same contexts of the same tokens, and for no others."""

    @property
    def description(self) -> str:
        """For reading: ``512 contexts of 128 tokens of held-out.jsonl``."""
        return f"{self.contexts} contexts of {self.positions} tokens" + (f" of {self.text}" if self.text else "")


def measured_on(contexts: Int[Tensor, "context position"], text: str = "") -> MeasuredOn:
    """What tells these contexts from others; ``text`` says where they come from, for readers."""
    tokens = contexts.to("cpu", torch.int64).contiguous()
    found = hashlib.sha256(repr(tuple(tokens.shape)).encode() + tokens.numpy().tobytes())
    return MeasuredOn(text, tokens.shape[0], tokens.shape[1], found.hexdigest()[:16])


def check_same_contexts(names: Sequence[str], measured: Sequence[MeasuredOn]) -> None:
    """Raise ConfigError if some transcoders were measured on other contexts than the rest."""
    if len({one.fingerprint for one in measured}) > 1:
        each = "; ".join(f"{name} on {one.description}" for name, one in zip(names, measured, strict=True))
        raise ConfigError(
            f"Numbers on different contexts cannot be compared: {each}. Measure all on the same: `open-clt compare` "
            "does, given the transcoders' directories and --text FILE (or, for the embedded model, --seed 0)."
        )
