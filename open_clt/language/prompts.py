"""Prompts: a text, or the token ids of one, in any of the forms in which people have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from open_clt.errors import TextError
from open_clt.language.language_model import LanguageModel

Prompt: TypeAlias = str | Sequence[int] | NDArray[Any] | Tensor
"""A text, or its token ids: a list, a NumPy array or a tensor, of shape ``(position,)`` or ``(1, position)``."""


def prompt_tokens(model: LanguageModel, prompt: object) -> Int[Tensor, "position"]:
    """Return a prompt's tokens. A text begins with exactly one BOS; token ids are used as they are.

    Raises TextError if the prompt is empty, is longer than the model's context, is neither a text nor whole numbers, or
    holds ids that the model does not have.
    """
    if isinstance(prompt, str):
        return model.tokenize(prompt)
    ids = _ids(prompt)
    if not ids.numel():
        raise TextError("The prompt is empty; give at least one token.")
    if len(ids) > model.context_length:
        raise TextError(f"The prompt has {len(ids)} tokens; {model.name} reads at most {model.context_length}.")
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= model.vocab_size:
        raise TextError(
            f"The prompt has token ids from {lowest} to {highest}; {model.name} has ids 0 to {model.vocab_size - 1}."
        )
    return ids.to(model.device)


def _ids(prompt: object) -> Int[Tensor, "position"]:
    """The ids of a prompt that is not a text."""
    try:
        ids = prompt if isinstance(prompt, Tensor) else torch.from_numpy(np.array(prompt))
    except (TypeError, ValueError) as error:
        raise _illegal(prompt) from error
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if not ids.numel() and ids.ndim == 1:
        return ids.long()
    if ids.ndim != 1 or ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
        raise _illegal(prompt)
    return ids.long()


def _illegal(prompt: object) -> TextError:
    shape = getattr(prompt, "shape", None)
    shown = repr(prompt)[:60] if shape is None else f"an array of shape {tuple(shape)} and type {prompt.dtype}"  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    return TextError(f"The prompt is {shown}; give one text, or the token ids of one text.")
