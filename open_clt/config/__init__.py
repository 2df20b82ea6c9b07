"""Every setting of OpenCLT, as frozen dataclasses, one file per subject.

Where there are alternatives, each is a class of its own with a ``kind``, so that a setting which only one choice
understands lives in that choice. ``json.py`` carries any of them through JSON.
"""

from open_clt.config.texts import TextsConfig
from open_clt.config.training import (
    CheckpointsConfig,
    DataConfig,
    L1SparsityConfig,
    LearningConfig,
    LossConfig,
    SparsityConfig,
    TanhSparsityConfig,
    TrainingConfig,
)
from open_clt.config.transcoder import (
    MLP_INPUT_HOOKS,
    MLP_OUTPUT_HOOK,
    BatchTopKConfig,
    CrossLayerConfig,
    InputHook,
    JumpReLUConfig,
    MoltConfig,
    NonlinearityConfig,
    ReLUConfig,
    TopKConfig,
    TranscoderConfig,
)
from open_clt.config.use import ReportConfig, SamplingConfig, SamplingSettings

__all__ = [
    "MLP_INPUT_HOOKS",
    "MLP_OUTPUT_HOOK",
    "BatchTopKConfig",
    "CheckpointsConfig",
    "CrossLayerConfig",
    "DataConfig",
    "InputHook",
    "JumpReLUConfig",
    "L1SparsityConfig",
    "LearningConfig",
    "LossConfig",
    "MoltConfig",
    "NonlinearityConfig",
    "ReLUConfig",
    "ReportConfig",
    "SamplingConfig",
    "SamplingSettings",
    "SparsityConfig",
    "TanhSparsityConfig",
    "TextsConfig",
    "TopKConfig",
    "TrainingConfig",
    "TranscoderConfig",
]
