"""A small random transcoder in the layout of Llama Scope, and what its package computes with it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.transcoders.formats.written_layouts import D_MODEL, N_FEATURES, N_LAYERS

NORM = "dataset_average_activation_norm"
HOOKS = {
    "hook_points_in": [f"blocks.{layer}.ln2.hook_normalized" for layer in range(N_LAYERS)],
    "hook_points_out": [f"blocks.{layer}.hook_mlp_out" for layer in range(N_LAYERS)],
}


def write_llamascope(folder: Path, **settings: Any) -> dict[str, Tensor]:
    """Write a transcoder, with ``settings`` in its config, and return its tensors."""
    config: dict[str, Any] = {
        "sae_type": "clt", "d_model": D_MODEL, "expansion_factor": N_FEATURES / D_MODEL, "act_fn": "jumprelu",
        "top_k": 4, "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True, **HOOKS, **settings,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {"W_E": normal(N_LAYERS, D_MODEL, N_FEATURES), "b_E": normal(N_LAYERS, N_FEATURES)}
    for target in range(N_LAYERS):
        tensors[f"W_D.{target}"] = normal(target + 1, N_FEATURES, D_MODEL)
        tensors[f"b_D.{target}"] = normal(D_MODEL)
    if config["act_fn"] == "jumprelu":
        tensors["activation_function.log_jumprelu_threshold"] = normal(N_LAYERS, N_FEATURES)
    for hook in (*HOOKS["hook_points_in"], *HOOKS["hook_points_out"]):
        tensors[f"{NORM}.{hook}"] = (
            normal().exp() if config["norm_activation"] == "dataset-wise" else normal() * torch.nan
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "sae_weights.safetensors")
    return tensors


def of_llamascope(tensors: dict[str, Tensor], inputs: Tensor, **settings: Any) -> Tensor:
    """What the transcoder writes to each layer, from the equations of the layout: one pair of layers at a time."""
    activation, weighted = settings.get("act_fn", "jumprelu"), settings.get("sparsity_include_decoder_norm", True)
    normalised = settings.get("norm_activation", "dataset-wise") == "dataset-wise"

    def norm(side: str, layer: int) -> float:
        return float(tensors[f"{NORM}.{HOOKS[f'hook_points_{side}'][layer]}"]) / math.sqrt(D_MODEL) if normalised else 1

    scores: list[Tensor] = []
    norms: list[Tensor] = []
    for layer in range(N_LAYERS):
        pre = inputs[:, layer] / norm("in", layer) @ tensors["W_E"][layer] + tensors["b_E"][layer]
        squares = [tensors[f"W_D.{target}"][layer].square().sum(1) for target in range(layer, N_LAYERS)]
        norms.append(torch.stack(squares).sum(0).sqrt() if weighted else torch.ones(N_FEATURES))
        scores.append(pre * norms[layer])
    score, scale = torch.stack(scores, dim=1), torch.stack(norms)
    if activation == "jumprelu":
        score = score * (score > tensors["activation_function.log_jumprelu_threshold"].exp())
    elif activation == "topk":
        score = score.relu() * (score >= score.topk(4).values[..., -1:])
    elif activation == "layertopk":
        score = score.relu() * (score >= score.flatten(1).topk(4).values[:, -1, None, None])
    active = score.relu() / scale
    outputs = [
        sum(
            (active[:, source] @ tensors[f"W_D.{target}"][source] for source in range(target + 1)),
            start=tensors[f"b_D.{target}"],
        )
        * norm("out", target)
        for target in range(N_LAYERS)
    ]
    return torch.stack(outputs, dim=1)


def write_llamascope_layers(folder: Path, *, bias: bool = True, **settings: Any) -> list[dict[str, Tensor]]:
    """Write one transcoder per layer, each in a folder, with ``settings`` in its config, and return their tensors."""
    generator = torch.Generator().manual_seed(0)
    layers: list[dict[str, Tensor]] = []
    for layer in range(N_LAYERS):
        hooks = {f"hook_point_{side}": HOOKS[f"hook_points_{side}"][layer] for side in ("in", "out")}
        config: dict[str, Any] = {
            "sae_type": "sae", "d_model": D_MODEL, "expansion_factor": N_FEATURES / D_MODEL, "act_fn": "jumprelu",
            "top_k": 4, "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True, **hooks, **settings,
        }  # fmt: skip
        shapes: dict[str, tuple[int, ...]] = {
            "W_E": (D_MODEL, N_FEATURES),
            "b_E": (N_FEATURES,),
            "W_D": (N_FEATURES, D_MODEL),
        }
        shapes |= {"b_D": (D_MODEL,)} if bias else {}
        if config["act_fn"] == "jumprelu":
            shapes["activation_function.log_jumprelu_threshold"] = (N_FEATURES,)
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        tensors |= {f"{NORM}.{hook}": torch.randn((), generator=generator).exp() for hook in hooks.values()}
        place = folder / f"layer{layer}_transcoder_8x_k4"
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(config))
        save_file(tensors, place / "sae_weights.safetensors")
        layers.append(tensors)
    return layers


def of_llamascope_layers(layers: list[dict[str, Tensor]], inputs: Tensor, **settings: Any) -> Tensor:
    """What the transcoders write, from the equations of the layout: one layer at a time."""
    outputs: list[Tensor] = []
    for layer, tensors in enumerate(layers):
        norm_in, norm_out = (tensors[f"{NORM}.{HOOKS[f'hook_points_{side}'][layer]}"] for side in ("in", "out"))
        pre = inputs[:, layer] * D_MODEL**0.5 / norm_in @ tensors["W_E"] + tensors["b_E"]
        weighted = settings.get("sparsity_include_decoder_norm", True)
        scale = tensors["W_D"].norm(dim=1) if weighted else torch.ones(N_FEATURES)
        score = pre * scale
        if settings.get("act_fn") == "topk":
            score = score.relu() * (score >= score.topk(4).values[:, -1:])
        else:
            score = score * (score > tensors["activation_function.log_jumprelu_threshold"].exp())
        output = score / scale @ tensors["W_D"] + tensors.get("b_D", torch.zeros(D_MODEL))
        outputs.append(output * norm_out / D_MODEL**0.5)
    return torch.stack(outputs, dim=1)
