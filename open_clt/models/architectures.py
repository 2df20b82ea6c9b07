"""From a config to the transcoder that it describes."""

from __future__ import annotations

from typing import assert_never

from open_clt.config import ArchitectureConfig, MoltConfig, TranscoderConfig
from open_clt.models.cross_layer import CrossLayerTranscoder
from open_clt.models.molt import Molt
from open_clt.models.transcoder import Transcoder


def make_transcoder(config: ArchitectureConfig, *, seed: int = 0) -> Transcoder:
    """An untrained transcoder of any kind, its weights drawn from ``seed``."""
    match config:
        case TranscoderConfig():
            return CrossLayerTranscoder(config, seed=seed)
        case MoltConfig():
            return Molt(config, seed=seed)
        case _:
            assert_never(config)
