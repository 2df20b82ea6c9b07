"""Small random transcoders in the layout of EleutherAI's sparsify and clt-training, and what the equations compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.transcoders.formats.written_layouts import D_MODEL, N_FEATURES, N_LAYERS

K = 3


def write_clt_training(
    folder: Path,
    *,
    cross_layer: int = N_LAYERS,
    module: str = ".mlp",
    aliases: bool = True,
    added: bool = False,
    **settings: Any,
) -> list[dict[str, Tensor]]:
    """Write a transcoder, with ``settings`` in its configs, and return the tensors of its layers.

    ``aliases`` stores the tensors for the first target under two names, as the package does. ``added`` writes numbers
    that are added to features after TopK, the same for all targets; otherwise they are zero.
    """
    generator = torch.Generator().manual_seed(0)
    layers: list[dict[str, Tensor]] = []
    for layer in range(N_LAYERS):
        config: dict[str, Any] = {
            "activation": "topk", "k": K, "transcode": True, "d_in": D_MODEL, "skip_connection": False,
            "n_targets": min(cross_layer, N_LAYERS - layer), "coalesce_topk": "none", **settings,
        }  # fmt: skip
        tensors = {
            name: torch.randn(shape, generator=generator) for name, shape in _shapes(config, layer, cross_layer).items()
        }
        for name, tensor in tensors.items():
            if name.startswith("post_enc") and "scale" not in name:
                own = tensors["post_encs.0" if "." in name else "post_enc"]
                tensor.copy_(own if added else torch.zeros_like(own))
            elif "_norm" in name:
                tensor.exp_()
            elif name.startswith("W_skips.") and name != "W_skips.0":
                tensor.zero_()
        place = folder / f"layers.{layer}{module}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "cfg.json").write_text(json.dumps(config))
        twice = {name[:-3]: tensor.clone() for name, tensor in tensors.items() if name[1:] in _TWICE and aliases}
        save_file(tensors | twice, place / "sae.safetensors")
        layers.append(tensors)
    return layers


_TWICE = ("_decs.0", "_skips.0")


def _shapes(config: dict[str, Any], layer: int, cross_layer: int) -> dict[str, tuple[int, ...]]:
    n_targets: int = config["n_targets"]
    shapes: dict[str, tuple[int, ...]] = {"encoder.weight": (N_FEATURES, D_MODEL), "encoder.bias": (N_FEATURES,)}
    of_target: dict[str, tuple[int, ...]] = {
        "W_dec": (N_FEATURES, D_MODEL),
        "b_dec": (D_MODEL,),
        "post_enc": (N_FEATURES,),
    }
    if config["skip_connection"]:
        of_target["W_skip"] = (D_MODEL, D_MODEL)
    if config.get("post_encoder_scale"):
        of_target["post_enc_scale"] = (N_FEATURES,)
    if config.get("normalize_io"):
        shapes |= {"in_norm": (1,), "out_norm": (1,)}
    if config.get("per_source_tied"):
        shapes["W_dec"] = of_target.pop("W_dec")
    if config["coalesce_topk"] != "none":
        shapes |= {name: of_target.pop(name) for name in list(of_target) if not name.startswith("post_enc")}
    if config["coalesce_topk"] == "per-layer":
        # The package also gives a layer the decoders of a source that ends just before it; they come last.
        n_sources = sum(source + min(cross_layer, N_LAYERS - source) >= layer for source in range(layer + 1))
        shapes["W_dec"] = (max(1, n_sources) * N_FEATURES, D_MODEL)
    if not n_targets:
        return shapes | of_target
    return shapes | {f"{name}s.{j}": shape for name, shape in of_target.items() for j in range(n_targets)}


def of_clt_training(
    layers: list[dict[str, Tensor]], inputs: Tensor, *, cross_layer: int = N_LAYERS, **settings: Any
) -> Tensor:
    """What the transcoder writes to each layer, from the equations of the layout: one pair of layers at a time."""
    encoded: list[tuple[Tensor, Tensor]] = []
    outputs: list[Tensor] = []
    for target, tensors in enumerate(layers):
        x = inputs[:, target]
        if settings.get("normalize_io"):
            x = x * D_MODEL**0.5 / tensors["in_norm"]
        centred = x if settings.get("transcode", True) else x - tensors["b_dec"]
        pre = (centred @ tensors["encoder.weight"].T + tensors["encoder.bias"]).relu()
        encoded.append((x, pre * (pre >= pre.topk(K).values[:, -1:])))
        sources = [source for source in range(target + 1) if target - source < max(1, cross_layer)]
        if (coalesced := settings.get("coalesce_topk", "none")) != "none":
            output = x @ tensors["W_skip"].T if "W_skip" in tensors else torch.zeros_like(x)
            for index, source in enumerate(sources):
                rows = index * N_FEATURES if coalesced == "per-layer" else 0
                scaled = _after_topk(layers[source], encoded[source][1], target - source)
                output = output + scaled @ tensors["W_dec"][rows : rows + N_FEATURES]
            output = output + tensors["b_dec"]
            outputs.append(output * tensors["out_norm"] / D_MODEL**0.5 if settings.get("normalize_io") else output)
            continue
        written = [_written(layers[source], *encoded[source], target - source) for source in sources]
        others = sum(written[:-1], start=torch.zeros_like(x))
        if settings.get("divide_cross_layer"):
            others = others / max(1, len(written) - 1)
        output = others + written[-1]
        outputs.append(output * tensors["out_norm"] / D_MODEL**0.5 if settings.get("normalize_io") else output)
    return torch.stack(outputs, dim=1)


def _of_target(tensors: dict[str, Tensor], name: str, offset: int) -> Tensor:
    return tensors[name] if name in tensors else tensors[f"{name}s.{offset}"]


def _after_topk(tensors: dict[str, Tensor], active: Tensor, offset: int) -> Tensor:
    active = active + _of_target(tensors, "post_enc", offset) * (active > 0)
    scaled = "post_enc_scale" in tensors or "post_enc_scales.0" in tensors
    return active * _of_target(tensors, "post_enc_scale", offset) if scaled else active


def _written(tensors: dict[str, Tensor], x: Tensor, active: Tensor, offset: int) -> Tensor:
    output = _after_topk(tensors, active, offset) @ _of_target(tensors, "W_dec", offset)
    output = output + _of_target(tensors, "b_dec", offset)
    skips = "W_skip" in tensors or "W_skips.0" in tensors
    return output + x @ _of_target(tensors, "W_skip", offset).T if skips else output
