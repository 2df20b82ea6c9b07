"""Readers: the way from the residual stream of a block to the input of an encoder.

An encoder may read at any hook of a block that is a linear function of the residual stream before the MLP once norms
are frozen: the stream before or after attention, or the output of a norm on it, with or without the weight and bias of
the norm. ``find_readers`` compares these candidates with the activations at the hook, so names of hooks do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import final

from jaxtyping import Float, Int
from torch import Tensor

from open_clt.config import InputHook
from open_clt.errors import AttributionError
from open_clt.language.frozen_hooks import read_norm
from open_clt.language.language_model import LanguageModel
from open_clt.language.linear_block import FrozenNorm
from open_clt.language.loading import TOLERANCE
from open_clt.short_repr import short_repr


@final
@dataclass(frozen=True, eq=False)
class Reader:
    """The way from the residual stream of one block to the input of an encoder, with its norm frozen on a prompt."""

    norm: FrozenNorm | None
    """Norm between stream and encoder, or None if the encoder reads the stream itself."""
    before_attention: bool
    """Whether the encoder reads the stream before attention, as it does if attention and MLP run in parallel."""

    @property
    def bias(self) -> Float[Tensor, "d_model"] | None:
        """What the encoder reads where the stream is zero; None if that is zero too."""
        return None if self.norm is None else self.norm.bias

    def forward(self, stream: Float[Tensor, "position d_model"]) -> Float[Tensor, "position d_model"]:
        """Return what the encoder reads."""
        return stream if self.norm is None else self.norm.forward(stream)

    def adjoint(self, cotangents: Float[Tensor, "*batch position d_model"]) -> Float[Tensor, "*batch position d_model"]:
        """Take linear functions of the encoder input to functions of the stream; the last positions may be missing."""
        return cotangents if self.norm is None else self.norm.adjoint(cotangents)

    def adjoint_at(
        self, cotangents: Float[Tensor, "target d_model"], positions: Int[Tensor, "target"]
    ) -> Float[Tensor, "target d_model"]:
        """Take linear functions of the encoder's input at one position each to functions of the stream there."""
        return cotangents if self.norm is None else self.norm.adjoint_at(cotangents, positions)

    __repr__ = short_repr


def read_block_norm(model: LanguageModel, layer: int, name: str, values: dict[str, Tensor]) -> FrozenNorm | None:
    """Return a norm of a block with the denominators in ``values``; None if the block does not have the norm."""
    scale = values.get(f"blocks.{layer}.{name}.hook_scale")
    return None if scale is None else read_norm(getattr(model.bridge.blocks[layer], name), scale)


def find_readers(
    model: LanguageModel,
    before_attention: Sequence[Float[Tensor, "position d_model"]],
    after_attention: Sequence[Float[Tensor, "position d_model"]],
    values: dict[str, Tensor],
    input_hook: InputHook,
) -> tuple[Reader, ...]:
    """Return the readers, one per block, that give the activations at ``input_hook``.

    The first two lists hold the residual stream of every block, and ``values`` the activations of the pass by the name
    of their hook. Raises AttributionError if the hook is not a linear function of one of these streams.
    """
    inputs = [values.get(model.hook_name(layer, input_hook)) for layer in range(model.n_layers)]
    best: tuple[Reader, ...] = ()
    smallest = float("inf")
    for readers in _candidates(model, values):
        streams = before_attention if readers[0].before_attention else after_attention
        computed = [reader.forward(stream) for reader, stream in zip(readers, streams, strict=True)]
        deviation = max(map(_deviation, computed, inputs))
        if deviation < smallest:
            best, smallest = readers, deviation
    if not smallest <= TOLERANCE.get(model.dtype, 1e-3):
        raise AttributionError(
            f"{input_hook!r} of {model.name} is not a linear function of the residual stream before the MLP; "
            f"attribution needs a transcoder that reads {' or '.join(model.input_hooks)}."
        )
    return best


def _candidates(model: LanguageModel, values: dict[str, Tensor]) -> Iterator[tuple[Reader, ...]]:
    """The ways in which an encoder may read, each as the readers of all blocks."""
    layers = range(model.n_layers)
    for before_attention in (False, True):
        yield (Reader(None, before_attention),) * model.n_layers
    for name in ("ln2", "ln1"):
        norms = [norm for layer in layers if (norm := read_block_norm(model, layer, name, values)) is not None]
        if len(norms) < model.n_layers:
            continue
        plain = [replace(norm, weight=None, bias=None) for norm in norms]
        for before_attention, candidate in product((False, True), (norms, plain)):
            yield tuple(Reader(norm, before_attention) for norm in candidate)


def _deviation(computed: Float[Tensor, "position d_model"], of_hook: Tensor | None) -> float:
    """The mean over positions of the difference, relative to what the hook carries.

    The first position counts as much as any other, although its activations may be a hundred times as large.
    """
    if of_hook is None or of_hook.shape != computed.shape:
        return float("inf")
    return float(((computed - of_hook).norm(dim=-1) / of_hook.norm(dim=-1).clamp(min=1e-30)).mean())
