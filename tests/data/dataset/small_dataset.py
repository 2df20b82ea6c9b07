"""Small datasets of activations: a store of random activations, in which each token knows where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from open_clt.data.dataset.manifest import Harvested, HarvestedText
from open_clt.data.dataset.writer import write_dataset
from open_clt.data.harvest import ActivationBatch, MemoryStore

N_LAYERS, D_MODEL, CONTEXT = 2, 3, 10


def harvested(**settings: Any) -> Harvested:
    """Settings of a dataset of 70 tokens in shards of 10, of which three are mixed with one another."""
    text = HarvestedText(source="texts.txt", context_length=CONTEXT)
    shape = {"model": "tiny", "vocabulary": "", "n_layers": N_LAYERS, "d_model": D_MODEL}
    hooks = {"input_hook": "hook_resid_mid", "target_hook": "hook_mlp_out"}
    sizes = {"dtype": "float32", "tokens": 70, "shard_tokens": 10, "shards_mixed": 3, "seed": 5}
    return Harvested(**{**shape, **hooks, **sizes, "text": text, **settings})


def store(n_tokens: int = 100, *, batch_size: int = 8) -> MemoryStore:
    """Random activations, a hundred times larger at first positions; the id of a token is its index."""
    generator = torch.Generator().manual_seed(1)
    indices = torch.arange(n_tokens)
    positions = indices % CONTEXT
    size = torch.where(positions == 0, 100.0, 1.0)[:, None, None]
    inputs, targets = (torch.randn(n_tokens, N_LAYERS, D_MODEL, generator=generator) * size + 3 for _ in range(2))
    whole = ActivationBatch(inputs, targets, indices, positions)
    return MemoryStore([whole.take(rows) for rows in indices.split(batch_size)])


def all_of(memory: MemoryStore) -> ActivationBatch:
    """All activations of a store in one batch."""
    return ActivationBatch(*(torch.cat(field) for field in zip(*memory.batches, strict=True)))


def write(directory: Path, **settings: Any) -> Path:
    """Write a small dataset and return its directory."""
    write_dataset(store(), harvested(**settings), directory)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    """The bytes of every file of a directory, by name."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
