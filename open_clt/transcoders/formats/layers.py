"""What readers of layouts with one set of tensors per layer share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_clt.config import CrossLayerConfig
from open_clt.config.json import from_dict
from open_clt.errors import CheckpointError, ConfigError
from open_clt.files import StoredTensor


def check_names(layers: Sequence[Mapping[str, StoredTensor]], known: set[str], place: Path) -> None:
    """Raise CheckpointError if a layer holds an unknown tensor, or other tensors than the first layer."""
    for layer, tensors in enumerate(layers):
        if unknown := sorted(tensors.keys() - known):
            raise CheckpointError(
                f"Layer {layer} in {place} holds the tensor {unknown[0]!r}, which this layout does not have."
            )
        if different := sorted(tensors.keys() ^ layers[0].keys()):
            raise CheckpointError(
                f"Layers 0 and {layer} in {place} differ: only one of them holds the tensor {different[0]!r}; all "
                "layers must hold the same tensors."
            )


def described_config(values: dict[str, Any], place: Path) -> CrossLayerConfig:
    """The config with these values; raises CheckpointError if they are illegal."""
    try:
        return from_dict(CrossLayerConfig, values)
    except ConfigError as error:
        raise CheckpointError(f"{place} does not describe a transcoder: {error}") from error


def read_stacked(tensors: Mapping[str, Sequence[StoredTensor]]) -> Callable[[], dict[str, Tensor]]:
    """A function that reads small tensors, each of which is given layer by layer."""
    return lambda: {name: torch.stack([each.read().float() for each in layers]) for name, layers in tensors.items()}
