"""A small random transcoder in ByteDance's layout, and what the equations of the layout compute with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

N_LAYERS, N_FEATURES, D_MODEL = 3, 6, 4


def write_bytedance(folder: Path, **changes: Any) -> dict[str, Tensor]:
    """Write a transcoder, with ``changes`` of its settings, and return its tensors by name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"d_feature": N_FEATURES, "k": 2, **changes}))
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for layer in range(N_LAYERS):
        encoder = {f"W_enc_{layer}": torch.randn(N_FEATURES, D_MODEL, generator=generator)}
        decoder = {f"W_dec_{layer}": torch.randn(N_FEATURES, N_LAYERS - layer, D_MODEL, generator=generator)}
        decoder[f"W_dec_norm_{layer}"] = decoder[f"W_dec_{layer}"].flatten(1).norm(dim=1) * 1.1
        save_file(encoder, folder / f"W_enc_{layer}.safetensors")
        save_file(decoder, folder / f"W_dec_{layer}.safetensors")
        tensors |= {**encoder, **decoder}
    norms = torch.stack([tensors[f"W_dec_norm_{layer}"] for layer in range(N_LAYERS)])
    save_file({"W_dec_norm": norms}, folder / "W_dec_norm.safetensors")
    save_file({"factors": torch.full((N_LAYERS,), 7.0)}, folder / "factors.safetensors")
    return tensors


def of_bytedance(tensors: dict[str, Tensor], inputs: Tensor, *, k: int = 2) -> Tensor:
    """What the transcoder writes to each layer, from the equations of the layout: one token at a time."""
    total = torch.zeros_like(inputs)
    for token, states in enumerate(inputs):
        active = torch.stack([(tensors[f"W_enc_{layer}"] @ states[layer]).relu() for layer in range(N_LAYERS)])
        scores = active * torch.stack([tensors[f"W_dec_norm_{layer}"] for layer in range(N_LAYERS)])
        smallest = scores.flatten().sort(descending=True).values[N_LAYERS * k - 1]
        active = active * (scores >= smallest)
        for source in range(N_LAYERS):
            for target in range(source, N_LAYERS):
                total[token, target] += active[source] @ tensors[f"W_dec_{source}"][:, target - source]
    return total
