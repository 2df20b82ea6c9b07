"""A small random transcoder in CLT-Forge's layout, and what that package computes with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

N_LAYERS, N_FEATURES, D_MODEL = 3, 6, 4


FEATURE_AXES = {"W_enc": 2, "b_enc": 1, "W_dec": 1, "log_threshold": 1, "feature_count": 1}


def split(name: str, tensor: Tensor, shards: tuple[int, ...] | None) -> list[Tensor]:
    """The parts of a tensor in the files of ranks; those without features have a copy of the whole tensor."""
    sizes = list(shards or ())
    if name in FEATURE_AXES:
        return [part.contiguous() for part in tensor.split(sizes, FEATURE_AXES[name])] if sizes else []
    return [tensor.clone() for _ in sizes]


def write_clt_forge(folder: Path, *, shards: tuple[int, ...] | None = None, **settings: Any) -> dict[str, Tensor]:
    """Write a transcoder, with ``settings`` in its config, and return its tensors.

    ``shards`` are the numbers of features of the files of ranks; without it there is one file.
    """
    config = {
        "model_name": "gpt2", "activation_fn": "jumprelu", "cross_layer_decoders": True, "d_latent": N_FEATURES,
        **settings,
    }  # fmt: skip
    pairs = N_LAYERS * (N_LAYERS + 1) // 2 if config["cross_layer_decoders"] else N_LAYERS
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        "W_enc": normal(N_LAYERS, D_MODEL, N_FEATURES),
        "b_enc": normal(N_LAYERS, N_FEATURES),
        "W_dec": normal(pairs, N_FEATURES, D_MODEL),
        "b_dec": normal(pairs, D_MODEL),
        "log_threshold": normal(N_LAYERS, N_FEATURES) - 1,
        "layer_mask": torch.ones(N_LAYERS, pairs),
        "feature_count": torch.arange(N_LAYERS * N_FEATURES).view(N_LAYERS, N_FEATURES),
        "estimated_norm_scaling_factor_in": normal(N_LAYERS).exp(),
        "estimated_norm_scaling_factor_out": normal(N_LAYERS).exp(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if shards is None:
        save_file(tensors, folder / "clt_weights.safetensors")
    for rank, parts in enumerate(zip(*(split(name, tensor, shards) for name, tensor in tensors.items()), strict=True)):
        part = dict(zip(tensors, parts, strict=True))
        save_file(part, folder / f"rank{rank}_clt_weights.safetensors")
    (folder / "clt_cfg.json").write_text(json.dumps(config))
    return tensors


def reconstructed_by_clt_forge(tensors: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """What the transcoder writes to each layer, from the equations of the layout: one pair of layers at a time."""
    total = torch.zeros_like(inputs)
    cross = len(tensors["W_dec"]) > N_LAYERS
    pairs = [(s, t) for s in range(N_LAYERS) for t in range(s, N_LAYERS if cross else s + 1)]
    for pair, (source, target) in enumerate(pairs):
        scaled = inputs[:, source] * tensors["estimated_norm_scaling_factor_in"][source]
        before = scaled @ tensors["W_enc"][source] + tensors["b_enc"][source]
        active = before * (before > tensors["log_threshold"][source].exp())
        written = active @ tensors["W_dec"][pair] + tensors["b_dec"][pair]
        total[:, target] += written / tensors["estimated_norm_scaling_factor_out"][target]
    return total
