"""A small random transcoder in the layout of decode-clt, and what that package computes with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.transcoders.formats.written_layouts import D_MODEL, N_FEATURES, N_LAYERS

ENCODER, DECODER = "encoder_module.encoders", "decoder_module.decoders"


def decoder_of(tying: str, source: int, target: int) -> str:
    """The name of the decoder from one layer to another."""
    if tying == "none":
        return f"{DECODER}.{source}->{target}"
    return f"{DECODER}.{source if tying == 'per_source' else target}"


def write_decode_clt(
    folder: Path, *, scale: bool = False, skip: bool = False, offset: float | None = None, **settings: Any
) -> dict[str, Tensor]:
    """Write a transcoder, with ``settings`` in its config, and return its tensors.

    Tied decoders may have factors and offsets of features, and skip paths. The statistics of ``norm_stats.json`` are
    among the returned tensors, under names such as ``inputs.mean``.
    """
    config: dict[str, Any] = {
        "num_features": N_FEATURES, "num_layers": N_LAYERS, "d_model": D_MODEL, "model_name": "gpt2",
        "normalization_method": "mean_std", "activation_fn": "jumprelu", "decoder_tying": "none",
        "enable_feature_offset": offset is not None, "enable_feature_scale": scale, "skip_connection": skip,
        "mlp_input_template": "transformer.h.{}.ln_2.input", "mlp_output_template": "transformer.h.{}.mlp.output",
        **settings,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tensors: dict[str, Tensor] = {}
    for source in range(N_LAYERS):
        tensors[f"{ENCODER}.{source}.weight"] = normal(N_FEATURES, D_MODEL)
        tensors[f"{ENCODER}.{source}.bias_param"] = normal(N_FEATURES)
        for target in range(source, N_LAYERS):
            name = decoder_of(config["decoder_tying"], source, target)
            tensors |= {f"{name}.weight": normal(D_MODEL, N_FEATURES), f"{name}.bias_param": normal(D_MODEL)}
        if scale:
            tensors[f"decoder_module.feature_scale.{source}"] = normal(N_FEATURES)
        if offset is not None:
            tensors[f"decoder_module.feature_offset.{source}"] = torch.full((N_FEATURES,), offset)
        if skip:
            tensors[f"decoder_module.skip_weights.{source}"] = normal(D_MODEL, D_MODEL)
    if config["activation_fn"] == "jumprelu":
        tensors["theta_manager.log_threshold"] = normal(N_LAYERS, N_FEATURES) - 1
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "clt_checkpoint_97689.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    statistics = {
        f"{side}.{name}": normal(N_LAYERS, D_MODEL) if name == "mean" else normal(N_LAYERS, D_MODEL).exp()
        for side in ("inputs", "targets")
        for name in ("mean", "std")
    }
    if config["normalization_method"] == "mean_std":
        written = {
            str(layer): {
                side: {name: statistics[f"{side}.{name}"][layer].tolist() for name in ("mean", "std")}
                for side in ("inputs", "targets")
            }
            for layer in range(N_LAYERS)
        }
        (folder / "norm_stats.json").write_text(json.dumps(written))
    return tensors | statistics


def of_decode_clt(tensors: dict[str, Tensor], inputs: Tensor, **settings: Any) -> Tensor:
    """What the transcoder writes to each layer, from the equations of the layout: one pair of layers at a time."""
    tying, method = settings.get("decoder_tying", "none"), settings.get("normalization_method", "mean_std")
    standard = inputs
    if method == "mean_std":
        standard = (inputs - tensors["inputs.mean"]) / (tensors["inputs.std"] + 1e-6)
    elif method == "sqrt_d_model":
        standard = inputs * D_MODEL**0.5
    outputs: list[Tensor] = []
    for target in range(N_LAYERS):
        output = torch.zeros_like(inputs[:, target])
        for source in range(target + 1):
            pre = standard[:, source] @ tensors[f"{ENCODER}.{source}.weight"].T
            pre = pre + tensors[f"{ENCODER}.{source}.bias_param"]
            if "theta_manager.log_threshold" in tensors:
                active = pre * (pre >= tensors["theta_manager.log_threshold"][source].exp())
            else:
                active = pre.relu()
            active = active * tensors.get(f"decoder_module.feature_scale.{target}", torch.ones(N_FEATURES))
            name = decoder_of(tying, source, target)
            output = output + active @ tensors[f"{name}.weight"].T
            if tying != "per_target" or source == target:
                output = output + tensors[f"{name}.bias_param"]
        if f"decoder_module.skip_weights.{target}" in tensors:
            output = output + standard[:, target] @ tensors[f"decoder_module.skip_weights.{target}"].T
        if method == "mean_std":
            output = output * (tensors["targets.std"][target] + 1e-6) + tensors["targets.mean"][target]
        elif method == "sqrt_d_model":
            output = output / D_MODEL**0.5
        outputs.append(output)
    return torch.stack(outputs, dim=1)
