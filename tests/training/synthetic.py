"""Random activations, and settings of small training runs on them."""

from __future__ import annotations

import torch

from open_clt.config import CrossLayerConfig, DataConfig, LearningConfig, LossConfig, TopKConfig, TrainingConfig
from open_clt.data.harvest import ActivationBatch, MemoryStore

LAYERS, D_MODEL, FEATURES = 2, 12, 24


def relu_mlps(tokens: int, *, seed: int = 0, batches: int = 4) -> MemoryStore:
    """Random inputs, and the outputs of fixed random ReLU layers for them, in contexts of 16 tokens."""
    weights = torch.randn(LAYERS, D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(1234))
    inputs = torch.randn(tokens, LAYERS, D_MODEL, generator=torch.Generator().manual_seed(seed))
    targets = torch.einsum("bld,lde->ble", inputs, weights).relu() * 3 + 5
    indices = torch.arange(tokens)
    block = ActivationBatch(inputs, targets, indices, indices % 16)
    return MemoryStore([block.take(rows) for rows in indices.chunk(batches)])


def small_transcoder(**settings: object) -> CrossLayerConfig:
    values = {"nonlinearity": TopKConfig(k=4), "n_features": FEATURES, **settings}
    return CrossLayerConfig(n_layers=LAYERS, d_model=D_MODEL, **values)


def quick_training(**settings: object) -> TrainingConfig:
    values = {"batch_size": 64, "learning_rate": 5e-3, "loss": LossConfig(dead_after_tokens=500), **settings}
    return TrainingConfig.of(**values)


def quick_data(**settings: object) -> DataConfig:
    return quick_training(**settings).data


def quick_learning(**settings: object) -> LearningConfig:
    return quick_training(**settings).learning
