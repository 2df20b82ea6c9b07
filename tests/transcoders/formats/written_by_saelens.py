"""Small random transcoders in the layout of SAELens, and what they compute."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.transcoders.formats.written_layouts import D_MODEL, N_FEATURES, N_LAYERS


def write_saelens(
    folder: Path, *, architecture: str = "jumprelu_skip_transcoder", **settings: Any
) -> list[dict[str, Tensor]]:
    """Write one transcoder per layer, each in a folder, with ``settings`` in its config, and return their tensors.

    The alphabetical order of the folders is not the order of the layers.
    """
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (D_MODEL, N_FEATURES), "W_dec": (N_FEATURES, D_MODEL), "b_enc": (N_FEATURES,), "b_dec": (D_MODEL,),
    }  # fmt: skip
    shapes |= {"threshold": (N_FEATURES,)} if "jumprelu" in architecture else {}
    shapes |= {"W_skip": (D_MODEL, D_MODEL)} if "skip" in architecture else {}
    layers: list[dict[str, Tensor]] = []
    for layer in range(N_LAYERS):
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        metadata = {
            "hook_name": f"blocks.{layer}.ln2.hook_normalized",
            "hook_name_out": f"blocks.{layer}.hook_mlp_out",
            "model_name": "gpt2",
        }
        config = {
            "architecture": architecture, "d_in": D_MODEL, "d_out": D_MODEL, "d_sae": N_FEATURES, "dtype": "float32",
            "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none",
            "metadata": metadata, **settings,
        }  # fmt: skip
        place = folder_of(folder, layer)
        place.mkdir(parents=True, exist_ok=True)
        (place / "cfg.json").write_text(json.dumps(config))
        save_file(tensors, place / "sae_weights.safetensors")
        layers.append(tensors)
    return layers


def folder_of(folder: Path, layer: int) -> Path:
    return folder / f"{'cba'[layer]}_transcoder"


def of_saelens(layers: Sequence[Mapping[str, Tensor]], inputs: Tensor) -> Tensor:
    """``y = a @ W_dec + b_dec + x @ W_skip.T``, with ``a = relu(p) * (p > threshold)``, ``p = x @ W_enc + b_enc``."""
    outputs = torch.zeros_like(inputs)
    for layer, tensors in enumerate(layers):
        for token, x in enumerate(inputs[:, layer]):
            pre = x @ tensors["W_enc"] + tensors["b_enc"]
            features = pre.relu()
            if "threshold" in tensors:
                features = features * (pre > tensors["threshold"])
            outputs[token, layer] = features @ tensors["W_dec"] + tensors["b_dec"]
            if "W_skip" in tensors:
                outputs[token, layer] += x @ tensors["W_skip"].T
    return outputs
