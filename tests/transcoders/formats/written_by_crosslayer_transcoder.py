"""A small random transcoder in the layout of crosslayer-transcoder, and what that package computes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from tests.transcoders.formats.written_layouts import D_MODEL, N_FEATURES, N_LAYERS


def _named(module: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"crosslayer_transcoder.model.{module}.{name}", "init_args": arguments}


def write_crosslayer_transcoder(
    folder: Path,
    *,
    cross: bool = True,
    nonlinearity: str = "JumpReLU",
    standardizer: str | None = "Dimensionwise",
    dtype: torch.dtype = torch.float32,
    parts: dict[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Write a transcoder and return its tensors in float32; ``parts`` replace parts of the config."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    tensors = {"encoder.W": normal(N_LAYERS, D_MODEL, N_FEATURES), "encoder.b": normal(N_LAYERS, N_FEATURES)}
    if cross:
        tensors |= {f"decoder.W_{target}": normal(target + 1, N_FEATURES, D_MODEL) for target in range(N_LAYERS)}
        tensors["decoder.b"] = normal(N_LAYERS, D_MODEL)
    else:
        tensors["decoder.W"] = normal(N_LAYERS, N_FEATURES, D_MODEL)
    if nonlinearity == "JumpReLU":  # about half of the thresholds are negative
        tensors |= {"nonlinearity.theta": normal(1, N_LAYERS, N_FEATURES), "nonlinearity.bandwidth": torch.tensor(0.1)}
    elif nonlinearity.endswith("BatchTopK"):
        tensors["nonlinearity.threshold"] = normal(1 if nonlinearity == "BatchTopK" else N_LAYERS)
    if standardizer is not None:
        shape = (N_LAYERS, D_MODEL) if standardizer == "Dimensionwise" else (N_LAYERS,)
        for side in ("input", "output"):
            tensors |= {
                f"{side}_standardizer.mean": normal(*shape),
                f"{side}_standardizer.std": normal(*shape).exp(),
            }
    arguments = {"k": 2, "e": 0.1, "n_layers": N_LAYERS} if "TopK" in nonlinearity else {}
    module = "jumprelu" if nonlinearity == "JumpReLU" else "topk"
    config: dict[str, Any] = {
        "encoder": _named("clt", "Encoder"),
        "decoder": _named("clt", "CrosslayerDecoder" if cross else "Decoder"),
        "nonlinearity": _named(module, nonlinearity, **arguments),
        **{
            f"{side}_standardizer": standardizer and _named("standardize", f"{standardizer}{side.title()}Standardizer")
            for side in ("input", "output")
        },
        **(parts or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    model = {**_named("clt", "CrossLayerTranscoder", **config), "is_folded": standardizer is None}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    save_file(tensors, folder / "checkpoint.safetensors")
    return {name: tensor.float() for name, tensor in tensors.items()}


def activations_of_crosslayer_transcoder(
    tensors: dict[str, Tensor], inputs: Tensor, layer: int, nonlinearity: str
) -> Tensor:
    """The activations of one layer, from the equations of the layout."""
    x = inputs[:, layer]
    if "input_standardizer.mean" in tensors:
        x = (x - tensors["input_standardizer.mean"][layer]) / tensors["input_standardizer.std"][layer]
    pre = x @ tensors["encoder.W"][layer] + tensors["encoder.b"][layer]
    if nonlinearity == "JumpReLU":
        return pre * ((pre > tensors["nonlinearity.theta"][0, layer]) & (pre > 0))
    if nonlinearity == "PerLayerTopK":
        return pre.relu() * (pre >= pre.topk(2).values[:, -1:])
    if nonlinearity.endswith("BatchTopK"):
        threshold = tensors["nonlinearity.threshold"].expand(N_LAYERS)[layer]
        return pre * ((pre > threshold) & (pre > 0))
    return pre.relu()


def of_crosslayer_transcoder(tensors: dict[str, Tensor], inputs: Tensor, nonlinearity: str) -> Tensor:
    """What the transcoder writes to each layer, from the equations of the layout: one pair of layers at a time."""
    outputs: list[Tensor] = []
    for target in range(N_LAYERS):
        cross = "decoder.W_0" in tensors
        output = torch.zeros_like(inputs[:, target])
        for source in range(target + 1) if cross else [target]:
            table = tensors[f"decoder.W_{target}"][source] if cross else tensors["decoder.W"][target]
            output += activations_of_crosslayer_transcoder(tensors, inputs, source, nonlinearity) @ table
        if "decoder.b" in tensors:
            output = output + tensors["decoder.b"][target]
        if "output_standardizer.mean" in tensors:
            std, mean = (tensors[f"output_standardizer.{name}"][target] for name in ("std", "mean"))
            output = output * std + mean
        outputs.append(output)
    return torch.stack(outputs, dim=1)
