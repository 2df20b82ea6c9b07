"""Frozen hooks: attention patterns and norm denominators with given values, and the check that the model uses them.

Where a model computes attention before its pattern can be changed (GPT-Neo, OPT), the moved values are written instead:
they are the frozen pattern times the values of the pass. In every model, the hooks compare what attention and norms
give with what the frozen values give, and raise LanguageModelError if they differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from open_clt.errors import LanguageModelError
from open_clt.language.language_model import Hook, LanguageModel
from open_clt.language.linear_block import FrozenNorm
from open_clt.language.loading import TOLERANCE

PATTERN, SCALE = "attn.hook_pattern", ".hook_scale"
"""Endings of the names of hooks that carry an attention pattern, and of hooks that carry the denominator of a norm."""


def frozen_hooks(model: LanguageModel) -> list[str]:
    """Return the full names of all hooks that carry an attention pattern or the denominator of a norm."""
    return [name for name in model.bridge.hook_dict if name.endswith((PATTERN, SCALE))]


def freezing(model: LanguageModel, values: Mapping[str, Tensor]) -> list[Hook]:
    """Return hooks that keep attention patterns and norm denominators at these values, by the name of their hook."""
    hooks: list[Hook] = []
    for name, value in values.items():
        kind = _FrozenAttention if name.endswith(PATTERN) else _FrozenDenominator
        hooks += kind(model, name, value).hooks()
    return hooks


def read_norm(norm: Any, scale: Tensor) -> FrozenNorm:
    """Return a norm of the bridge with these denominators."""
    weight = norm.weight.float()
    if norm.uses_weight_offset:
        weight = weight + 1
    bias = None if norm.uses_rms_norm else getattr(norm.original_component, "bias", None)
    return FrozenNorm(scale, weight, None if bias is None else bias.detach().float(), centred=not norm.uses_rms_norm)


@final
class _FrozenAttention:
    """One layer's attention with a frozen pattern: its hooks, and what they have seen in the running pass."""

    def __init__(self, model: LanguageModel, name: str, pattern: Tensor) -> None:
        self._model, self._prefix, self._pattern = model, name.removesuffix("hook_pattern"), pattern
        self._values: Tensor | None = None
        self._is_set = False

    def hooks(self) -> list[Hook]:
        parts = {"hook_v": self._see_values, "hook_pattern": self._set_pattern, "hook_z": self._check_moved}
        return [(self._prefix + part, function) for part, function in parts.items()]

    def _see_values(self, values: Tensor) -> None:
        self._values, self._is_set = values, False

    def _set_pattern(self, _: Tensor) -> Tensor | None:
        if self._values is None:  # the moved values were written already, and a change comes too late
            return None
        self._is_set = True
        return self._pattern

    def _check_moved(self, moved: Tensor) -> Tensor | None:
        values, self._values = self._values, None
        if values is None:
            raise _not_frozen(self._model, self._prefix, "its values are not computed before its output")
        if values.shape[1] != self._pattern.shape[-1]:
            # The values of earlier tokens are in a cache, which no hook shows.
            if not self._is_set:
                raise _not_frozen(self._model, self._prefix, "it reads values from a cache while text is generated")
            return None
        values = values.repeat_interleave(self._pattern.shape[1] // values.shape[2], 2)
        expected = torch.einsum("bhqk,bkhe->bqhe", self._pattern.to(values), values)
        if not self._is_set:
            return expected.to(moved)
        _compare(self._model, self._prefix, moved, expected)
        return None


@final
class _FrozenDenominator:
    """One norm with frozen denominators: its hooks, and its input in the running pass."""

    def __init__(self, model: LanguageModel, name: str, scale: Tensor) -> None:
        self._model, self._prefix, self._scale = model, name.removesuffix("hook_scale"), scale
        self._norm = read_norm(model.bridge.get_submodule(self._prefix.removesuffix(".")), scale.float())
        self._inputs: Tensor | None = None

    def hooks(self) -> list[Hook]:
        parts = {"hook_in": self._see_inputs, "hook_scale": self._set_scale, "hook_out": self._check_outputs}
        return [(self._prefix + part, function) for part, function in parts.items()]

    def _see_inputs(self, inputs: Tensor) -> None:
        self._inputs = inputs

    def _set_scale(self, _: Tensor) -> Tensor:
        return self._scale

    def _check_outputs(self, outputs: Tensor) -> None:
        assert self._inputs is not None
        _compare(self._model, self._prefix, outputs.float(), self._norm.forward(self._inputs.float()))


def _compare(model: LanguageModel, prefix: str, computed: Tensor, expected: Tensor) -> None:
    deviation = float((computed - expected).norm() / expected.norm().clamp(min=1e-30))
    if not deviation <= TOLERANCE.get(model.dtype, 1e-3):
        raise _not_frozen(model, prefix, f"its output deviates by {deviation:.1e}")


def _not_frozen(model: LanguageModel, prefix: str, reason: str) -> LanguageModelError:
    field = "freeze_attention" if prefix.endswith("attn.") else "freeze_norms"
    return LanguageModelError(
        f"{prefix.removesuffix('.')} of {model.name} cannot be frozen: {reason}; use patching with {field}=False."
    )
