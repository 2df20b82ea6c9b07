"""Datasets of random activations on disk, and small training runs on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from open_clt.config import CrossLayerConfig
from open_clt.data.dataset.writer import write_dataset
from open_clt.data.harvest import ActivationStore
from open_clt.training.result import TrainingResult
from open_clt.training.run import OwnParts, train_transcoder
from tests.data.dataset.small_dataset import harvested
from tests.training.synthetic import D_MODEL, LAYERS, quick_training, relu_mlps, small_transcoder

BYTES_PER_TOKEN = 2 * LAYERS * D_MODEL * 4
TOO_SMALL = 200 * BYTES_PER_TOKEN / 1e9
"""A memory limit that a dataset of more than 200 tokens exceeds, in gigabytes."""


def write(directory: Path, tokens: int = 1600, *, store: ActivationStore | None = None, **settings: Any) -> Path:
    """Write the activations of random ReLU layers as a dataset, in shards of 160 tokens."""
    sizes = {"n_layers": LAYERS, "d_model": D_MODEL, "tokens": tokens, "shard_tokens": 160, "shards_mixed": 2}
    write_dataset(store or relu_mlps(tokens), harvested(**{**sizes, **settings}), directory)
    return directory


def train(
    data: Path | str,
    *,
    transcoder: CrossLayerConfig | None = None,
    own: OwnParts | None = None,
    output_dir: Path | None = None,
    resume: str | None = None,
    **settings: Any,
) -> TrainingResult:
    """Train for two epochs, or for ``max_steps`` steps, on a dataset."""
    return train_transcoder(
        transcoder_config=transcoder or small_transcoder(),
        training_config=quick_training(**{"epochs": 2, **settings}),
        data=data,
        progress=False,
        own=own,
        output_dir=output_dir,
        resume=resume,
    )
