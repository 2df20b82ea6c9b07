"""Configs: every setting of OpenCLT as a field of a frozen dataclass, one file per subject.

Each alternative is a separate class with a ``kind``, so a setting that only one alternative has is a field of that
class. ``json.py`` turns every config into JSON and back.
"""

from open_clt.config.dataset import DatasetConfig
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
    PARALLEL_INPUT_HOOK,
    BatchTopKConfig,
    CrossLayerConfig,
    FixedJumpReLUConfig,
    InputHook,
    JumpReLUConfig,
    MoltConfig,
    NeuronConfig,
    NonlinearityConfig,
    ReLUConfig,
    TopKConfig,
    TranscoderConfig,
)
from open_clt.config.use import FeatureRecordsConfig, ReportConfig, SamplingConfig, SamplingSettings, ThresholdConfig

__all__ = [
    "MLP_INPUT_HOOKS",
    "MLP_OUTPUT_HOOK",
    "PARALLEL_INPUT_HOOK",
    "BatchTopKConfig",
    "CheckpointsConfig",
    "CrossLayerConfig",
    "DataConfig",
    "DatasetConfig",
    "FeatureRecordsConfig",
    "FixedJumpReLUConfig",
    "InputHook",
    "JumpReLUConfig",
    "L1SparsityConfig",
    "LearningConfig",
    "LossConfig",
    "MoltConfig",
    "NeuronConfig",
    "NonlinearityConfig",
    "ReLUConfig",
    "ReportConfig",
    "SamplingConfig",
    "SamplingSettings",
    "SparsityConfig",
    "TanhSparsityConfig",
    "TextsConfig",
    "ThresholdConfig",
    "TopKConfig",
    "TrainingConfig",
    "TranscoderConfig",
]
