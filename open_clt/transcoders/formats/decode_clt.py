"""The layout of the package decode-clt, whose decoders are stored by pair of layers, by source or by target.

    cfg.json                num_layers, num_features, d_model, activation_fn, decoder_tying, normalization_method,
                            tl_input_template or mlp_input_template, tl_output_template or mlp_output_template,
                            model_name
    norm_stats.json         mean and std of the inputs and targets of each layer (normalization_method mean_std), here
                            or in the folder above, where several transcoders share it
    {name}.safetensors      encoder_module.encoders.{l}.weight [feature, d_model], .bias_param [feature],
                            decoder_module.decoders.{s}->{t}.weight [d_model, feature], .bias_param [d_model] or,
                            tied by source or by target, decoder_module.decoders.{layer};
                            theta_manager.log_threshold [layer, feature] (JumpReLU); tied decoders may have
                            decoder_module.feature_scale.{t} [feature], decoder_module.feature_offset.{t} [feature] and
                            decoder_module.skip_weights.{t} [d_model, d_model]

    y[t] = std_out[t] * (sum of (a[s] * scale[t]) @ W[s, t].T + b[s, t] over s <= t, + skip[t] @ x'[t]) + mean_out[t]
    x'[s] = (x[s] - mean_in[s]) / std_in[s]

Biases of all pairs with one target add up; decoders that are tied by target have one bias for each target. An offset
adds to active features differently for each target, so only offsets of zero can be read. That package adds 1e-6 to the
standard deviations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, cast, final

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt import files
from open_clt.config import CrossLayerConfig
from open_clt.errors import CheckpointError
from open_clt.files import ScaledTensor, StoredTensor, Table
from open_clt.finite import check_finite
from open_clt.short_repr import short_repr
from open_clt.transcoders.formats.checks import THRESHOLDS
from open_clt.transcoders.formats.layers import described_config
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles, tensor_of
from open_clt.transcoders.stored_weights import StoredWeights

_SETTINGS, _STATISTICS = "cfg.json", "norm_stats.json"
_OTHERS = ("sae_weights.safetensors", "sae.safetensors")
"""Files of weights that other layouts keep beside a ``cfg.json``."""
_EPSILON = 1e-6
_METHODS = {
    "none": "none",
    "mean_std": "mean_std",
    "auto": "mean_std",
    "estimated_mean_std": "mean_std",
    "sqrt_d_model": "sqrt_d_model",
    "auto_sqrt_d_model": "sqrt_d_model",
    "estimated_mean_std_sqrt_d_model": "sqrt_d_model",
}
"""Methods of normalisation by the names that versions of the package give them."""
_INPUTS = {
    "transformer.h.{}.ln_2.input": "hook_resid_mid",
    "transformer.h.{}.ln_2.output": "mlp.hook_in",
    "transformer.h.{}.mlp.input": "mlp.hook_in",
    "transformer.h.{}.mlp.c_fc.input": "mlp.hook_in",
    "transformer.h.{}.mlp.c_fc": "mlp.hook_in",  # its output is wider than d_model
    "model.layers.{}.mlp.input": "mlp.hook_in",
    "gpt_neox.layers.{}.mlp.input": "mlp.hook_in",
}
"""Our names of inputs, by the paths of modules."""
_OUTPUTS = {
    "transformer.h.{}.mlp.output": "hook_mlp_out",
    "transformer.h.{}.mlp.c_proj.output": "hook_mlp_out",
    "transformer.h.{}.mlp.c_proj": "hook_mlp_out",  # its input is wider than d_model
    "model.layers.{}.mlp.output": "mlp.hook_out",  # some of these models have a norm after the MLP
    "gpt_neox.layers.{}.mlp.output": "hook_mlp_out",
}
"""Our names of targets, by the paths of modules."""
_ENCODER, _DECODER = "encoder_module.encoders", "decoder_module.decoders"
_SCALE, _OFFSET, _SKIP = (f"decoder_module.{name}" for name in ("feature_scale", "feature_offset", "skip_weights"))
_LOG_THRESHOLD = "theta_manager.log_threshold"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Content:
    """What the files hold, before large tensors are read."""

    place: Path
    config: CrossLayerConfig
    tying: Literal["none", "per_source", "per_target"]
    tensors: Mapping[str, StoredTensor]
    means: Mapping[str, Float[Tensor, "layer d_model"]]
    """Means of ``inputs`` and ``targets``."""
    scales: Mapping[str, Float[Tensor, "layer d_model"]]
    """Standard deviations of ``inputs`` and ``targets``."""

    __repr__ = short_repr

    def of_layers(self, stem: str, shape: tuple[int, ...]) -> list[StoredTensor]:
        """The tensors ``{stem}.0``, ``{stem}.1``, ..., of all layers."""
        return [tensor_of(self.tensors, f"{stem}.{layer}", shape, self.place) for layer in range(self.config.n_layers)]

    def decoder(self, source: int, target: int) -> str:
        """The name of the decoder from one layer to another."""
        name = {"none": f"{source}->{target}", "per_source": f"{source}", "per_target": f"{target}"}[self.tying]
        return f"{_DECODER}.{name}"


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of a transcoder of this layout, whole or damaged."""
    if not weight_files.has(_SETTINGS) or any(weight_files.has(name) for name in _OTHERS):
        return False
    return bool(weight_files.names("*.safetensors"))


def open_decode_clt(weight_files: WeightFiles) -> StoredTranscoder:
    """Open a transcoder in this layout; raises CheckpointError if files are damaged or say what cannot be expressed."""
    content = _read_content(weight_files)
    return StoredTranscoder(
        place=content.place, config=content.config, weights=_weights(content), small=partial(_read_small, content)
    )


def _read_content(weight_files: WeightFiles) -> _Content:
    place, path = weight_files.place, weight_files.path(_SETTINGS)
    settings = files.read_json(path)
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} does not hold settings; it must name num_layers, num_features and d_model.")
    settings = cast(dict[str, Any], settings)
    tying = _legal(settings, "decoder_tying", "none", ("none", "per_source", "per_target"), path)
    method = _METHODS[_legal(settings, "normalization_method", "none", tuple(_METHODS), path)]
    names = weight_files.names("*.safetensors")
    if len(names) > 1:
        raise CheckpointError(f"{place} holds {len(names)} files of weights, such as {names[0]}; keep one of them.")
    tensors = weight_files.tensors(names[0])
    config = described_config(
        {
            "n_layers": settings.get("num_layers"),
            "n_features": settings.get("num_features"),
            "d_model": settings.get("d_model"),
            "skip": any(name.startswith(_SKIP) for name in tensors),
            "nonlinearity": {"kind": _legal(settings, "activation_fn", "jumprelu", ("relu", "jumprelu"), path)},
            "input_hook": _hook(settings, "input", _INPUTS, path),
            "target_hook": _hook(settings, "output", _OUTPUTS, path),
            "language_model": settings.get("model_name"),
        },
        place,
    )
    if config.skip and tying == "none":
        raise CheckpointError(f"{place} has skip paths between different layers, which cannot be read.")
    means, scales = _statistics(
        weight_files, config, "sqrt_d_model" if settings.get("sqrt_d_model_normalize") else method
    )
    content = _Content(place=place, config=config, tying=cast(Any, tying), tensors=tensors, means=means, scales=scales)
    _check_names(content)
    return content


def _legal(settings: dict[str, Any], name: str, default: str, legal: tuple[str, ...], path: Path) -> str:
    value = settings.get(name, default)
    if not isinstance(value, str) or value not in legal:
        advice = "; convert it to JumpReLU first" if name == "activation_fn" else ""
        raise CheckpointError(f"{path} has {name} {value!r}; it must be {' or '.join(legal[:3])}{advice}.")
    return value


def _hook(settings: dict[str, Any], side: str, known: Mapping[str, str], path: Path) -> str:
    """Our name of the hook that a config states; raises CheckpointError if it states none, or one that is not known."""
    template = settings.get(f"tl_{side}_template")
    if isinstance(template, str) and template.startswith("blocks.{}."):
        return template.removeprefix("blocks.{}.")
    module = settings.get(f"mlp_{side}_template")
    if isinstance(module, str) and module in known:
        return known[module]
    raise CheckpointError(
        f"{path} does not state a known {side} of the transcoder; write tl_{side}_template, such as "
        f"{'blocks.{}.hook_resid_mid' if side == 'input' else 'blocks.{}.hook_mlp_out'!r}, into it."
    )


def _statistics(
    weight_files: WeightFiles, config: CrossLayerConfig, method: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Means and standard deviations of inputs and targets, by these names."""
    shape = (config.n_layers, config.d_model)
    sides = ("inputs", "targets")
    if method != "mean_std":
        scale = config.d_model**-0.5 if method == "sqrt_d_model" else 1.0
        return {side: torch.zeros(shape) for side in sides}, {side: torch.full(shape, scale) for side in sides}
    here = weight_files.has(_STATISTICS)
    path = weight_files.path(_STATISTICS) if here else weight_files.above(_STATISTICS)
    if path is None:
        raise CheckpointError(
            f"{weight_files.place} has normalization_method mean_std, but neither it nor the folder above holds "
            f"{_STATISTICS}; copy it there."
        )
    content = files.read_json(path)
    means, scales = ({side: _stacked(content, side, name, config, path) for side in sides} for name in ("mean", "std"))
    for side, scale in scales.items():
        if not bool((scale >= 0).all()):
            raise CheckpointError(f"{path} has the std {float(scale.min())} of {side}; it must be at least 0.")
    return means, {side: scale + _EPSILON for side, scale in scales.items()}


def _stacked(
    content: object, side: str, name: str, config: CrossLayerConfig, path: Path
) -> Float[Tensor, "layer d_model"]:
    """One statistic of all layers in a file of statistics."""
    layers: list[Tensor] = []
    for layer in range(config.n_layers):
        match content:
            case dict() if isinstance(of_layer := cast(dict[str, Any], content).get(str(layer)), dict):
                of_side = cast(dict[str, Any], of_layer).get(side)
            case _:
                of_side = None
        values = cast(dict[str, Any], of_side).get(name) if isinstance(of_side, dict) else None
        numbers = cast(list[object], values) if isinstance(values, list) else []
        if len(numbers) != config.d_model or not all(type(number) in (int, float) for number in numbers):
            raise CheckpointError(f"{path} lacks the {name} of {side} of layer {layer}: {config.d_model} numbers.")
        try:
            layers.append(torch.tensor(numbers, dtype=torch.float32))
        except (OverflowError, RuntimeError) as error:
            raise CheckpointError(f"{path} has a {name} of {side} of layer {layer} that is too large.") from error
    stacked = torch.stack(layers)
    check_finite(stacked, f"The {name} of {side} in {path}", axes=("layer",), error=CheckpointError)
    return stacked


def _check_names(content: _Content) -> None:
    """Raise CheckpointError if the file holds a tensor that this layout does not have."""
    known = {_LOG_THRESHOLD}
    for source in range(content.config.n_layers):
        stems = [f"{_ENCODER}.{source}"]
        stems += [content.decoder(source, target) for target in range(source, content.config.n_layers)]
        known |= {f"{stem}.{name}" for stem in stems for name in ("weight", "bias_param")}
        known |= {f"{stem}.{source}" for stem in (_SCALE, _OFFSET, _SKIP)}
    if unknown := sorted(content.tensors.keys() - known):
        raise CheckpointError(
            f"{content.place} holds the tensor {unknown[0]!r}, which its {_SETTINGS} does not explain."
        )


def _weights(content: _Content) -> StoredWeights:
    config, tensors, place = content.config, content.tensors, content.place
    shape = (config.n_features, config.d_model)
    encoders: list[Table] = []
    decoders: list[tuple[Table, ...]] = []
    scales = _feature_scales(content)
    for source in range(config.n_layers):
        encoder = tensor_of(tensors, f"{_ENCODER}.{source}.weight", shape, place)
        encoders.append(ScaledTensor(encoder, partial(torch.reciprocal, content.scales["inputs"][source])))
        parts: list[Table] = []
        for target in range(source, config.n_layers):
            name = f"{content.decoder(source, target)}.weight"
            part: Table = tensor_of(tensors, name, shape[::-1], place).T.unsqueeze(1)
            if scales:
                part = ScaledTensor(part, scales[target], of_rows=True)
            parts.append(ScaledTensor(part, partial(torch.clone, content.scales["targets"][target])))
        decoders.append(tuple(parts))
    return StoredWeights(tuple(encoders), tuple(decoders))


def _feature_scales(content: _Content) -> list[Callable[[], Float[Tensor, "feature"]]]:
    """Functions that read the factors of features for each target; none if features are not scaled."""
    if not any(name.startswith(_SCALE) for name in content.tensors):
        return []
    return [cache(partial(_read, each)) for each in content.of_layers(_SCALE, (content.config.n_features,))]


def _read(tensor: StoredTensor) -> Tensor:
    read = tensor.read().float()
    check_finite(read, f"The tensor {tensor.name!r} of {tensor.place}", error=CheckpointError)
    return read


def _read_small(content: _Content) -> dict[str, Tensor]:
    config, tensors, place = content.config, content.tensors, content.place
    n_layers, width, d_model = config.n_layers, config.n_features, config.d_model
    if any(name.startswith(_OFFSET) for name in tensors):
        for offset in content.of_layers(_OFFSET, (width,)):
            if bool(_read(offset).any()):
                raise CheckpointError(
                    f"{place} has {offset.name} that is not zero; offsets of features cannot be read."
                )
    encoders = [tensor_of(tensors, f"{_ENCODER}.{layer}.bias_param", (width,), place) for layer in range(n_layers)]
    biases = torch.zeros(n_layers, d_model)
    for target in range(n_layers):
        for source in [target] if content.tying == "per_target" else range(target + 1):
            biases[target] += _read(
                tensor_of(tensors, f"{content.decoder(source, target)}.bias_param", (d_model,), place)
            )
    inputs, targets = (content.scales[side] for side in ("inputs", "targets"))
    small = {
        "b_enc": torch.stack([_read(each) for each in encoders]),
        "b_dec": biases * targets,
        "standardisation.input_mean": content.means["inputs"],
        "standardisation.target_mean": content.means["targets"],
    }
    if config.skip:
        skip = torch.stack([_read(each) for each in content.of_layers(_SKIP, (d_model, d_model))])
        small["W_skip"] = skip * targets[:, :, None] / inputs[:, None, :]
    if config.nonlinearity.kind == "jumprelu":
        small[THRESHOLDS] = _read(tensor_of(tensors, _LOG_THRESHOLD, (n_layers, width), place)).exp()
    return small
