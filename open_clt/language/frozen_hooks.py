"""Frozen hooks: the hooks of attention patterns and norm denominators, which attribution and patching freeze."""

from __future__ import annotations

from open_clt.language.language_model import LanguageModel

PATTERN, SCALE = "attn.hook_pattern", ".hook_scale"
"""Endings of the names of hooks that carry an attention pattern, and of hooks that carry the denominator of a norm."""


def frozen_hooks(model: LanguageModel) -> list[str]:
    """Return the full names of all hooks that carry an attention pattern or the denominator of a norm."""
    return [name for name in model.bridge.hook_dict if name.endswith((PATTERN, SCALE))]
