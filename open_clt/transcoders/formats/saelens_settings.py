"""The settings of a transcoder of SAELens, which ``cfg.json`` holds: what they state, and what cannot be expressed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

from open_clt.errors import CheckpointError
from open_clt.files import StoredTensor
from open_clt.short_repr import short_repr
from open_clt.transcoders.formats.layers import SKIP, THRESHOLD
from open_clt.transcoders.formats.llamascope import HOOK

SETTINGS, TENSORS = "cfg.json", "sae_weights.safetensors"
_LONGEST_HOOK = 100
"""Largest number of characters of the name of a hook."""
NAMES = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
"""Our names of the tensors that every architecture has."""
ARCHITECTURES = {
    "transcoder": {},
    "skip_transcoder": {SKIP: SKIP},
    "jumprelu_transcoder": {"threshold": THRESHOLD},
    "jumprelu_skip_transcoder": {"threshold": THRESHOLD, SKIP: SKIP},
}
"""Our names of the tensors that an architecture has besides weights and biases."""
_LEGAL: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
    ("apply_b_dec_to_input", True, (False,)),
    ("normalize_activations", "none", ("none", None)),
    ("reshape_activations", "none", ("none", None)),
    ("activation_fn", "relu", ("relu",)),
    ("activation_fn_str", "relu", ("relu",)),
)
"""Settings, with the values that SAELens takes where they are left out, and those that can be expressed."""
_SIZES = (("d_in", "W_enc", 1), ("d_sae", "W_enc", 0), ("d_out", "W_dec", 1))
"""Settings of sizes, each with the tensor of circuit-tracer's layout and the axis of it that has this size."""
_HF_HOOK = re.compile(r"(?:\w+\.)*layers\.(\d+)\.(.+)")
_HF_NAMES = {"pre_feedforward_layernorm.output": "mlp.hook_in", "post_feedforward_layernorm.output": "hook_mlp_out"}
"""Our names of the places in Gemma's blocks that SAELens states by the names of the module of transformers.

SAELens' own names of the first one differ between its releases, and mean another place in other models: up to 6.30 at
least it is ln2.hook_normalized, which leaves out the weight of the norm, and in 6.54 it is hook_mlp_in."""


@final
@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """The settings of the transcoder of one layer."""

    folder: str
    """Name of the folder that holds them, with ``/`` at its end; empty for the directory itself."""
    path: Path
    """The file that holds them, for messages."""
    architecture: str
    hook_in: str
    hook_out: str
    language_model: str | None
    sizes: Mapping[str, object]
    """The sizes that are stated, by the names of the settings."""

    @property
    def layer(self) -> int:
        """Number of the layer in the language model, which the hook that is read states."""
        match = HOOK.fullmatch(self.hook_in)
        assert match is not None
        return int(match[1])

    def check_sizes(self, tensors: Mapping[str, StoredTensor]) -> None:
        """Raise CheckpointError unless the tensors, in circuit-tracer's layout, have the sizes that are stated."""
        for name, tensor, axis in _SIZES:
            size = tensors[tensor].shape[axis]
            if name in self.sizes and (type(self.sizes[name]) is not int or self.sizes[name] != size):
                raise CheckpointError(
                    f"{self.path} has {name} {str(self.sizes[name])[:60]!r}, but {tensor} in {TENSORS} needs {name} "
                    f"{size}."
                )

    __repr__ = short_repr


def read_settings(content: object, folder: str, path: Path) -> LayerSettings:
    """The settings in the content of the file of a folder; raises CheckpointError if they cannot be expressed."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold the settings of a transcoder.")
    settings = cast(dict[str, Any], content)
    architecture = settings.get("architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{path} has the architecture {str(architecture)[:60]!r}; it must be {', '.join(ARCHITECTURES)}."
        )
    for name, default, legal in _LEGAL:
        if settings.get(name, default) not in legal:
            raise CheckpointError(
                f"{path} has {name} {str(settings.get(name, default))[:60]!r}; only {legal[0]!r} can be read."
            )
    given = settings.get("metadata")
    metadata: dict[str, Any] = settings | (cast(dict[str, Any], given) if isinstance(given, dict) else {})
    for name in ("hook_head_index", "hook_head_index_out"):
        if metadata.get(name) is not None:
            raise CheckpointError(
                f"{path} has {name} {str(metadata[name])[:60]!r}; transcoders of one head are not read."
            )
    model = metadata.get("model_name")
    return LayerSettings(
        folder=folder,
        path=path,
        architecture=architecture,
        hook_in=_hook(metadata, "hook_name", path),
        hook_out=_hook(metadata, "hook_name_out", path),
        language_model=model if isinstance(model, str) else None,
        sizes={name: settings[name] for name, _, _ in _SIZES if name in settings},
    )


def _hook(metadata: Mapping[str, Any], name: str, path: Path) -> str:
    """The hook with this name, or the one that its name in transformers means, if that is stated and known."""
    hook, hf_hook = metadata.get(name), metadata.get(f"hf_{name}")
    match = HOOK.fullmatch(hook) if isinstance(hook, str) and len(hook) <= _LONGEST_HOOK else None
    if match is None:
        raise CheckpointError(
            f"{path} has {name} {str(hook)[:60]!r}; it must be a hook of a block, such as blocks.0.hook_mlp_out."
        )
    hf_match = _HF_HOOK.fullmatch(hf_hook) if isinstance(hf_hook, str) and len(hf_hook) <= _LONGEST_HOOK else None
    if hf_match is None or hf_match[2] not in _HF_NAMES:
        return match[0]
    if int(hf_match[1]) != int(match[1]):
        raise CheckpointError(
            f"{path} has {name} {match[0]!r} and hf_{name} {hf_match[0]!r}; both must be of the same layer."
        )
    return f"blocks.{match[1]}.{_HF_NAMES[hf_match[2]]}"
