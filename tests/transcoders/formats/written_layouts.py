"""Small random transcoders in layouts that others publish, and what their packages compute with them.

Each function writes a transcoder into a folder and returns its tensors, layer by layer. The functions that reconstruct
are slow twins: they follow the equations that the layouts document, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

N_LAYERS, N_FEATURES, D_MODEL = 3, 6, 4


def random_inputs() -> Tensor:
    return torch.randn(20, N_LAYERS, D_MODEL, generator=torch.Generator().manual_seed(1))


def _random(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_circuit_tracer_layers(
    folder: Path, *, thresholds: bool = False, skip: bool = False, **settings: Any
) -> list[dict[str, Tensor]]:
    """circuit-tracer's layout of one transcoder per layer; ``settings`` are added to its config."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "W_enc": (N_FEATURES, D_MODEL),
        "W_dec": (N_FEATURES, D_MODEL),
        "b_enc": (N_FEATURES,),
        "b_dec": (D_MODEL,),
    }
    shapes |= {"activation_function.threshold": (N_FEATURES,)} if thresholds else {}
    shapes |= {"W_skip": (D_MODEL, D_MODEL)} if skip else {}
    layers = [
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(N_LAYERS)
    ]
    config = {
        "model_name": "Qwen/Qwen3-0.6B", "model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out", "scan": "org/name", **settings,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    names = settings.get("transcoders") or [f"layer_{layer}.safetensors" for layer in range(N_LAYERS)]
    for name, tensors in zip(names, layers, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / name)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return layers


def of_circuit_tracer_layers(layers: Sequence[Mapping[str, Tensor]], inputs: Tensor, *, k: int | None = None) -> Tensor:
    """``y = a @ W_dec + b_dec + x @ W_skip.T``, in each layer alone."""
    outputs: list[Tensor] = []
    for layer, tensors in enumerate(layers):
        x = inputs[:, layer]
        pre = x @ tensors["W_enc"].T + tensors["b_enc"]
        if "activation_function.threshold" in tensors:
            active = pre * (pre > tensors["activation_function.threshold"])
        elif k is not None:
            active = pre * (pre >= pre.topk(k).values[:, -1:])  # negative values among the k largest stay
        else:
            active = pre.relu()
        output = active @ tensors["W_dec"] + tensors["b_dec"]
        outputs.append(output + x @ tensors["W_skip"].T if "W_skip" in tensors else output)
    return torch.stack(outputs, dim=1)


def write_gemma_scope_2(folder: Path, *, skip: bool = False) -> list[dict[str, Tensor]]:
    """Gemma Scope 2's layout of a cross-layer transcoder."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "w_enc": (D_MODEL, N_FEATURES), "w_dec": (N_FEATURES, N_LAYERS, D_MODEL), "b_enc": (N_FEATURES,),
        "b_dec": (D_MODEL,), "threshold": (N_FEATURES,),
    }  # fmt: skip
    shapes |= {"affine_skip_connection": (D_MODEL, D_MODEL)} if skip else {}
    layers = [
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(N_LAYERS)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for layer, tensors in enumerate(layers):
        save_file(tensors, folder / f"params_layer_{layer}.safetensors")
    return layers


def of_gemma_scope_2(layers: Sequence[Mapping[str, Tensor]], inputs: Tensor) -> Tensor:
    """``y[t] = sum of a[s] @ w_dec[s][:, t] over s <= t, + b_dec[t] + x[t] @ affine``."""
    outputs = torch.zeros_like(inputs)
    for target, tensors in enumerate(layers):
        for source in range(target + 1):
            pre = inputs[:, source] @ layers[source]["w_enc"] + layers[source]["b_enc"]
            active = pre * (pre > layers[source]["threshold"])
            outputs[:, target] += active @ layers[source]["w_dec"][:, target]
        outputs[:, target] += tensors["b_dec"]
        if "affine_skip_connection" in tensors:
            outputs[:, target] += inputs[:, target] @ tensors["affine_skip_connection"]
    return outputs
