"""The settings of transcoders in the layout of sparsify and clt-training, which each layer has in a ``cfg.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, final

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.short_repr import short_repr

_LEGAL: dict[str, tuple[object, ...]] = {
    "activation": ("topk",),
    "signed": (False,),
    "secondary_target_tied": (False,),
    "embed_skip": (False,),
    "gram_lookup": (False,),
    "transcode": (False, True),
    "skip_connection": (False, True),
    "normalize_io": (False, True),
    "post_encoder_scale": (False, True),
    "per_source_tied": (False, True),
    "divide_cross_layer": (False, True),
    "coalesce_topk": ("none", "concat", "per-layer"),
}
"""Legal values of settings; the first of them is the default."""
_FLAGS = [name for name, legal in _LEGAL.items() if len(legal) > 1]
"""Names of the settings that have several legal values."""


@final
@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """What the config of a layer says."""

    k: object
    n_targets: int
    """Number of layers that the layer writes to; 0 is its own layer, with tensors that have no number."""
    flags: Mapping[str, object]

    @property
    def coalesced(self) -> bool:
        """Whether a layer has one bias and one tensor of decoders, which hold for all its sources."""
        return self.flags["coalesce_topk"] != "none"

    def __getitem__(self, name: str) -> bool:
        return self.flags[name] is True

    __repr__ = short_repr


def read_settings(path: Path) -> LayerSettings:
    """The settings of a layer; raises CheckpointError if they cannot be expressed."""
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold the settings of a transcoder.")
    content = cast(dict[str, Any], content)
    flags = {name: content.get(name, legal[0]) for name, legal in _LEGAL.items()}
    for name, value in flags.items():
        if not any(value == legal and type(value) is type(legal) for legal in _LEGAL[name]):
            raise CheckpointError(f"{path} has {name} {value!r}; it must be {' or '.join(map(repr, _LEGAL[name]))}.")
    if flags["coalesce_topk"] != "none" and content.get("topk_coalesced", False) is not False:
        raise CheckpointError(f"{path} has topk_coalesced {content['topk_coalesced']!r}; it must be False.")
    n_targets = content.get("n_targets", 0)
    if type(n_targets) is not int or n_targets < 0:
        raise CheckpointError(f"{path} has n_targets {n_targets!r}; it must be an integer of at least 0.")
    if not flags["transcode"] and (n_targets or flags["skip_connection"]):
        name = "n_targets" if n_targets else "skip_connection"
        raise CheckpointError(f"{path} has {name} {content[name]!r} without transcode; this cannot be read.")
    return LayerSettings(k=content.get("k", 32), n_targets=n_targets, flags=flags)


def agreeing_settings(settings: list[LayerSettings], paths: Sequence[Path]) -> list[LayerSettings]:
    """The settings of all layers; raises CheckpointError if they are not those of one transcoder."""
    first, n_layers = settings[0], len(settings)
    if first.n_targets > n_layers:
        raise CheckpointError(
            f"{paths[0]} has n_targets {first.n_targets}, but there are {n_layers} layers; layer {n_layers} is missing."
        )
    for layer, (of_layer, path) in enumerate(zip(settings, paths, strict=True)):
        if replace(of_layer, n_targets=0) != replace(first, n_targets=0):
            raise CheckpointError(
                f"{path} has other settings than layer 0; k, {', '.join(_FLAGS)} must be the same in all layers."
            )
        expected = min(first.n_targets, n_layers - layer)
        if of_layer.n_targets != expected:
            raise CheckpointError(
                f"{path} has n_targets {of_layer.n_targets}; as layer 0 of {n_layers} layers has {first.n_targets}, it "
                f"must be {expected}."
            )
    return settings
