"""Hooks of what attribution and patching freeze: attention patterns and norm denominators."""

from __future__ import annotations

from open_clt.language.language_model import LanguageModel

PATTERN, SCALE = "attn.hook_pattern", ".hook_scale"
"""How the names of the hooks of attention patterns and of norm denominators end."""


def frozen_hooks(model: LanguageModel) -> list[str]:
    """Full names of all hooks that carry an attention pattern or the denominator of a norm."""
    return [name for name in model.bridge.hook_dict if name.endswith((PATTERN, SCALE))]
