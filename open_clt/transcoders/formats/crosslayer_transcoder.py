"""The layout of the package crosslayer-transcoder, whose decoders are stored by target layer.

    config.yaml             model: class_path and init_args of its classes, is_folded
    checkpoint.safetensors  encoder.W [layer, d_model, feature], encoder.b [layer, feature],
                            decoder.W_{t} [t + 1, feature, d_model] or, for one transcoder per layer,
                            decoder.W [layer, feature, d_model]; decoder.b [layer, d_model], which may be absent there;
                            nonlinearity.theta [1, layer, feature] (JumpReLU) or nonlinearity.threshold [1 or layer];
                            {input,output}_standardizer.{mean,std} [layer, d_model] or [layer], unless they are folded

    pre[s] = (x[s] - mean_in[s]) / std_in[s] @ W[s] + b[s]
    y[t] = std_out[t] * (sum of a[s] @ W_{t}[s] over s <= t, + b[t]) + mean_out[t]

JumpReLU is ``a = pre`` where ``pre > theta`` and ``pre > 0``. BatchTopK uses its thresholds, as that package does at
inference. Encoders read the residual stream before the norm of the MLP. Classes are matched by their names and never
imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from jaxtyping import Float
from torch import Tensor

from open_clt.config import CrossLayerConfig
from open_clt.errors import CheckpointError
from open_clt.files import ScaledTensor, StoredTensor, Table
from open_clt.finite import check_finite
from open_clt.short_repr import short_repr
from open_clt.transcoders.formats.checks import SMALLEST_SCALE, THRESHOLDS
from open_clt.transcoders.formats.circuit_tracer import read_settings
from open_clt.transcoders.formats.layers import described_config
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles, tensor_of
from open_clt.transcoders.stored_weights import StoredWeights

_SETTINGS = "config.yaml"
_TENSORS = "checkpoint.safetensors"
_COUNTS = ("nonlinearity.bandwidth", "input_standardizer.is_initialized", "output_standardizer.is_initialized")
"""Tensors that matter to training only."""
_DECODERS = ("CrosslayerDecoder", "Decoder")
_NONLINEARITIES = ("JumpReLU", "ReLU", "PerLayerTopK", "BatchTopK", "PerLayerBatchTopK")
_STANDARDIZERS = ("Dimensionwise", "Layerwise")


class _Class(NamedTuple):
    """A class that a config names, and its arguments."""

    name: str
    """The last part of its path."""
    arguments: Mapping[str, Any]

    __repr__ = short_repr


class _Side(NamedTuple):
    """The standardiser of inputs or outputs in the files."""

    mean: StoredTensor
    std: StoredTensor

    __repr__ = short_repr


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of a transcoder of this layout, whole or damaged."""
    return weight_files.has(_SETTINGS) and weight_files.has(_TENSORS)


def open_crosslayer_transcoder(weight_files: WeightFiles) -> StoredTranscoder:
    """Open a transcoder in this layout; raises CheckpointError if files are damaged or say what cannot be expressed."""
    place = weight_files.place
    model = _model(weight_files.path(_SETTINGS))
    decoder = _checked(model, "decoder", _DECODERS, place)
    nonlinearity = _checked(model, "nonlinearity", _NONLINEARITIES, place)
    tensors = weight_files.tensors(_TENSORS, ignored=_COUNTS)
    n_layers, d_model, n_features = tensor_of(tensors, "encoder.W", (None, None, None), place).shape
    kind = {"kind": {"ReLU": "relu", "PerLayerTopK": "topk"}.get(nonlinearity.name, "jumprelu")}
    values: dict[str, Any] = {
        "n_layers": n_layers,
        "n_features": n_features,
        "d_model": d_model,
        "reach": None if decoder.name == "CrosslayerDecoder" else 1,
        "nonlinearity": kind | ({"k": nonlinearity.arguments.get("k")} if kind["kind"] == "topk" else {}),
        "input_hook": "hook_resid_mid",
        "target_hook": "hook_mlp_out",
    }
    config = described_config(values, place)
    sides = {side: _side(model, tensors, side, config, place) for side in ("input", "output")}
    small = _small(config, tensors, nonlinearity.name, place)
    _check_known(tensors, config, sides, small, place)
    return StoredTranscoder(
        place=place,
        config=config,
        weights=_weights(config, tensors, sides, place),
        small=partial(_read_small, config, small, sides),
    )


def _model(path: Path) -> _Class:
    """The class of the transcoder, whose arguments are the classes of its parts."""
    model = _class(read_settings(path).get("model"))
    if model is None or model.name != "CrossLayerTranscoder":
        name = None if model is None else model.name
        raise CheckpointError(f"{path} has a model of class {name!r}; only 'CrossLayerTranscoder' can be read.")
    return model


def _class(value: object) -> _Class | None:
    match value:
        case {"class_path": str(path)}:
            arguments = cast(dict[str, Any], value).get("init_args")
            return _Class(
                path.rpartition(".")[2], cast(dict[str, Any], arguments) if isinstance(arguments, dict) else {}
            )
        case _:
            return None


def _checked(model: _Class, part: str, legal: tuple[str, ...], place: Path) -> _Class:
    """The class of a part of the transcoder; raises CheckpointError if it cannot be read."""
    found = _class(model.arguments.get(part))
    if found is None or found.name not in legal:
        name = None if found is None else found.name
        raise CheckpointError(f"{place} has the {part} {name!r}; it must be one of {', '.join(legal)}.")
    return found


def _side(
    model: _Class, tensors: Mapping[str, StoredTensor], side: str, config: CrossLayerConfig, place: Path
) -> _Side | None:
    """The standardiser of inputs or outputs; None if the config states none, or if the weights contain it."""
    part, ending = f"{side}_standardizer", f"{side.title()}Standardizer"
    stated = model.arguments.get(part)
    if stated is None or (_class(stated) or _Class("", {})).name == "Standardizer":
        return None
    found = _checked(model, part, tuple(f"{name}{ending}" for name in _STANDARDIZERS), place)
    shape = (config.n_layers, config.d_model) if found.name.startswith("Dimension") else (config.n_layers,)
    return _Side(*(tensor_of(tensors, f"{part}.{name}", shape, place) for name in ("mean", "std")))


def _weights(
    config: CrossLayerConfig, tensors: Mapping[str, StoredTensor], sides: Mapping[str, _Side | None], place: Path
) -> StoredWeights:
    n_layers, width, d_model = config.n_layers, config.n_features, config.d_model
    encoders: list[Table] = [tensors["encoder.W"][layer].T for layer in range(n_layers)]
    if config.reach is None:
        stored = [tensor_of(tensors, f"decoder.W_{t}", (t + 1, width, d_model), place) for t in range(n_layers)]
        parts: list[list[Table]] = [
            [stored[target][source].unsqueeze(1) for target in range(source, n_layers)] for source in range(n_layers)
        ]
    else:
        table = tensor_of(tensors, "decoder.W", (n_layers, width, d_model), place)
        parts = [[table[layer].unsqueeze(1)] for layer in range(n_layers)]
    if (side := sides["input"]) is not None:
        encoders = [ScaledTensor(each, _factors(side.std, s, d_model, -1)) for s, each in enumerate(encoders)]
    if (side := sides["output"]) is not None:
        scales = [_factors(side.std, layer, d_model, 1) for layer in range(n_layers)]
        parts = [[ScaledTensor(each, scales[s + j]) for j, each in enumerate(of)] for s, of in enumerate(parts)]
    return StoredWeights(tuple(encoders), tuple(tuple(each) for each in parts))


def _factors(std: StoredTensor, layer: int, d_model: int, power: int) -> Callable[[], Tensor]:
    """A function that reads the standard deviations of a layer once, raised to a power."""
    return cache(lambda: _read_std(std)[layer].expand(d_model) ** power)


def _read_std(std: StoredTensor) -> Float[Tensor, "layer *d_model"]:
    """Read standard deviations; raises CheckpointError if one is not a number, or too small to divide by."""
    read = std.read().float()
    name = f"The tensor {std.name!r} of {std.place}"
    check_finite(read, name, error=CheckpointError)
    if not bool((read >= SMALLEST_SCALE).all()):
        raise CheckpointError(
            f"{name} holds {float(read.min())}; standard deviations must be at least {SMALLEST_SCALE}."
        )
    return read


def _small(
    config: CrossLayerConfig, tensors: Mapping[str, StoredTensor], nonlinearity: str, place: Path
) -> dict[str, StoredTensor]:
    """Biases and thresholds in the files."""
    n_layers, width = config.n_layers, config.n_features
    small = {"b_enc": tensor_of(tensors, "encoder.b", (n_layers, width), place)}
    if config.reach is None or "decoder.b" in tensors:
        small["b_dec"] = tensor_of(tensors, "decoder.b", (n_layers, config.d_model), place)
    if nonlinearity == "JumpReLU":
        small[THRESHOLDS] = tensor_of(tensors, "nonlinearity.theta", (1, n_layers, width), place)[0]
    elif nonlinearity.endswith("BatchTopK"):
        count = 1 if nonlinearity == "BatchTopK" else n_layers
        small[THRESHOLDS] = tensor_of(tensors, "nonlinearity.threshold", (count,), place).unsqueeze(1)
    return small


def _check_known(
    tensors: Mapping[str, StoredTensor],
    config: CrossLayerConfig,
    sides: Mapping[str, _Side | None],
    small: Mapping[str, StoredTensor],
    place: Path,
) -> None:
    """Raise CheckpointError if the file holds a tensor that the config does not explain."""
    decoders = [f"decoder.W_{target}" for target in range(config.n_layers)] if config.reach is None else ["decoder.W"]
    explained = [*small.values(), *(tensor for side in sides.values() if side is not None for tensor in side)]
    if unknown := sorted(tensors.keys() - {"encoder.W", *decoders, *(tensor.name for tensor in explained)}):
        raise CheckpointError(f"{place} holds the tensor {unknown[0]!r}, which its {_SETTINGS} does not explain.")


def _read_small(
    config: CrossLayerConfig, small: Mapping[str, StoredTensor], sides: Mapping[str, _Side | None]
) -> dict[str, Tensor]:
    read = {name: tensor.read().float() for name, tensor in small.items()}
    if THRESHOLDS in read:
        check_finite(
            read[THRESHOLDS],
            f"The tensor {small[THRESHOLDS].name!r} of {small[THRESHOLDS].place}",
            error=CheckpointError,
        )
        read[THRESHOLDS] = read[THRESHOLDS].clamp(min=0).expand(config.n_layers, config.n_features)
    shape = (config.n_layers, config.d_model)
    for side, name in (("input", "input_mean"), ("output", "target_mean")):
        if (standardiser := sides[side]) is not None:
            std, mean = _read_std(standardiser.std), standardiser.mean.read().float()
            read[f"standardisation.{name}"] = mean.view(config.n_layers, -1).expand(shape)
            if side == "output" and "b_dec" in read:
                read["b_dec"] = read["b_dec"] * std.view(config.n_layers, -1)
    return read
