"""Small random transcoders in the layouts of Gemma Scope with one transcoder per layer, and what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.transcoders.formats.written_layouts import D_MODEL, N_FEATURES, N_LAYERS


def _random_layers(shapes: Mapping[str, tuple[int, ...]], seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(N_LAYERS)]


def write_gemma_scope_2_layers(
    folder: Path, *, name: str = "width_16k_l0_small", skip: bool = False, seed: int = 0, n_features: int = N_FEATURES
) -> list[dict[str, Tensor]]:
    """One set of Gemma Scope 2's transcoders per layer; returns the tensors of each layer."""
    shapes = {
        "w_enc": (D_MODEL, n_features), "w_dec": (n_features, D_MODEL), "b_enc": (n_features,), "b_dec": (D_MODEL,),
        "threshold": (n_features,), **({"affine_skip_connection": (D_MODEL, D_MODEL)} if skip else {}),
    }  # fmt: skip
    layers = _random_layers(shapes, seed)
    for layer, tensors in enumerate(layers):
        path = folder / f"layer_{layer}_{name}" / "params.safetensors"
        path.parent.mkdir(parents=True)
        save_file(tensors, path)
    return layers


def write_gemma_scope_1(
    folder: Path,
    *,
    width: str = "width_16k",
    sparsities: Sequence[int] = (76, 65, 49),
    by_columns: bool = False,
    n_features: int = N_FEATURES,
) -> list[dict[str, Tensor]]:
    """One set of Gemma Scope 1's transcoders; ``sparsities`` are in the names of the layers' folders."""
    shapes = {
        "W_enc": (D_MODEL, n_features), "W_dec": (n_features, D_MODEL), "b_enc": (n_features,), "b_dec": (D_MODEL,),
        "threshold": (n_features,),
    }  # fmt: skip
    layers = _random_layers(shapes, 3)
    for layer, (tensors, sparsity) in enumerate(zip(layers, sparsities, strict=True)):
        path = folder / f"layer_{layer}" / width / f"average_l0_{sparsity}" / "params.npz"
        path.parent.mkdir(parents=True)
        order = "F" if by_columns else "C"
        np.savez(path, **{name: np.asarray(tensor, order=order) for name, tensor in tensors.items()})
    return layers


def of_gemma_scope_layers(layers: Sequence[Mapping[str, Tensor]], inputs: Tensor) -> Tensor:
    """``y = a @ w_dec + b_dec + x @ affine``, with ``a = p * (p > threshold)`` and ``p = x @ w_enc + b_enc``."""
    outputs = torch.zeros_like(inputs)
    for layer, capital in enumerate(layers):
        tensors = {name.lower(): tensor for name, tensor in capital.items()}
        for token, x in enumerate(inputs[:, layer]):
            pre = x @ tensors["w_enc"] + tensors["b_enc"]
            outputs[token, layer] = (pre * (pre > tensors["threshold"])) @ tensors["w_dec"] + tensors["b_dec"]
            if "affine_skip_connection" in tensors:
                outputs[token, layer] += x @ tensors["affine_skip_connection"]
    return outputs
