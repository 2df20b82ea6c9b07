"""A small random transcoder in BluelightAI's layout, and what the equations of the layout compute with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

N_LAYERS, N_FEATURES, D_MODEL = 3, 6, 4
PARTS = {
    "encoder.W": "W_enc",
    "encoder.b": "b_enc",
    "activation.log_threshold": "log_threshold",
    "decoder.b": "b_dec",
    "norm_factor_in": "norm_factor_in",
    "norm_factor_out": "norm_factor_out",
}


def write_bluelight(
    folder: Path, *, version: int = 1, in_parts: bool = False, bias: bool = True, **changes: Any
) -> dict[str, Tensor]:
    """Write a transcoder, with ``changes`` of its settings, and return its tensors under their long names."""
    settings = {
        "n_layers": N_LAYERS,
        "d_in": D_MODEL,
        "d_latent": N_FEATURES,
        "activation": "jumprelu",
        "k": 4,
        "decoder_layout": "input_layer",
        "base_model_name": "qwen",
        "input_attr": "mlp.input",
        "output_attr": "mlp.output",
        "layer_indices": None,
        **changes,
    }
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        "encoder.W": normal(N_LAYERS, D_MODEL, N_FEATURES),
        "encoder.b": normal(N_LAYERS, N_FEATURES),
        "norm_factor_in": normal(N_LAYERS, 1, 1).exp(),
        "norm_factor_out": normal(N_LAYERS).exp(),
    }
    if settings["activation"] == "jumprelu":
        tensors["activation.log_threshold"] = normal(N_LAYERS, N_FEATURES) - 1
    if bias:
        tensors["decoder.b"] = normal(N_LAYERS, D_MODEL)
    for layer in range(N_LAYERS):
        others = N_LAYERS - layer if settings["decoder_layout"] == "input_layer" else layer + 1
        tensors[f"decoder.decoders.{layer}.W"] = normal(others, N_FEATURES, D_MODEL)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_config.json").write_text(json.dumps(_versioned(settings, version)))
    if in_parts:
        _write_parts(folder, tensors, settings["decoder_layout"])
    else:
        save_file(tensors, folder / "clt.safetensors")
    return tensors


def _versioned(settings: dict[str, Any], version: int) -> dict[str, Any]:
    if version != 2:
        return {"config_version": version, **settings}
    hook_points = {
        "input": {"attr": settings["input_attr"], "dim": settings["d_in"]},
        "output": {"attr": settings["output_attr"], "dim": settings["d_in"]},
        "layer_indices": settings["layer_indices"],
    }
    base = {"name": settings["base_model_name"], "n_layers": settings["n_layers"], "hook_points": hook_points}
    architecture = {
        "d_latent": settings["d_latent"],
        "activation": {"type": settings["activation"], "k": settings["k"]},
        "decoder": {"layout": settings["decoder_layout"]},
    }
    return {"config_version": 2, "base_model": base, "architecture": architecture}


def _write_parts(folder: Path, tensors: dict[str, Tensor], layout: str) -> None:
    names = ["shared.safetensors"]
    save_file({PARTS[name]: tensor for name, tensor in tensors.items() if name in PARTS}, folder / names[0])
    for layer in range(N_LAYERS):
        names.append(f"layer_{layer}.safetensors")
        save_file({f"W_dec_{layer}": tensors[f"decoder.decoders.{layer}.W"]}, folder / names[-1])
    manifest = {"format": "layer_weights", "decoder_type": layout, "files": names}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def of_bluelight(tensors: dict[str, Tensor], inputs: Tensor, *, activation: str, layout: str, k: int = 4) -> Tensor:
    """What the transcoder writes to each layer, from the equations of the layout: one pair of layers at a time."""
    norm_in, norm_out = tensors["norm_factor_in"].flatten(), tensors["norm_factor_out"]
    before = [
        inputs[:, layer] / norm_in[layer] @ tensors["encoder.W"][layer] + tensors["encoder.b"][layer]
        for layer in range(N_LAYERS)
    ]
    features = [pre.relu() for pre in before]
    if activation == "jumprelu":
        thresholds = tensors["activation.log_threshold"].exp()
        features = [pre * (pre > thresholds[layer]) for layer, pre in enumerate(before)]
    elif activation == "topk":
        features = [each * (each >= each.topk(k).values[:, -1:]) for each in features]
    elif activation == "topk_all":
        together = torch.cat(features, dim=1)
        features = list((together * (together >= together.topk(k).values[:, -1:])).split(N_FEATURES, dim=1))
    total = torch.zeros_like(inputs)
    for source in range(N_LAYERS):
        for target in range(source, N_LAYERS):
            layer, part = (source, target - source) if layout == "input_layer" else (target, source)
            total[:, target] += features[source] @ tensors[f"decoder.decoders.{layer}.W"][part]
    bias = tensors.get("decoder.b", torch.zeros(N_LAYERS, D_MODEL))
    return (total + bias) * norm_out[:, None]
