"""The layout of EleutherAI's packages sparsify and clt-training, with each layer in a folder named after its module.

    {hookpoint}/cfg.json         activation, k, transcode, skip_connection, normalize_io; of clt-training also
                                 n_targets, post_encoder_scale, per_source_tied, divide_cross_layer,
                                 coalesce_topk
    {hookpoint}/sae.safetensors  encoder.weight [feature, d_model], encoder.bias [feature], W_dec [feature, d_model],
                                 b_dec [d_model], perhaps W_skip [d_model, d_model], post_enc [feature],
                                 post_enc_scale [feature], in_norm [1] and out_norm [1]
    config.json                  perhaps the config of the training run: model, hookpoints_in

A hookpoint is the name of a module, such as layers.0.mlp. A layer with n_targets above 0 writes to this number of
layers, and W_decs.{j}, b_decs.{j}, W_skips.{j}, post_encs.{j} and post_enc_scales.{j} are those for target s + j.

    z[s]    = x[s] * sqrt(d_model) / in_norm[s] with normalize_io, and otherwise x[s]
    a[s]    = the k largest of relu(W[s] z[s] + b[s]), with z[s] - b_dec[s] in place of z[s] unless transcode is true
    f[s, t] = (a[s] + post_enc[s, t] * 1[a[s] > 0]) * post_enc_scale[s, t]
    w[s, t] = f[s, t] @ W_dec[s, t] + b_dec[s, t] + W_skip[s, t] z[s]
    y[t]    = (w[t, t] + sum of w[s, t] over s < t) * out_norm[t] / sqrt(d_model)

With divide_cross_layer, the sum is divided by the number of its layers. Without normalize_io, out_norm is absent. With
coalesce_topk concat or per-layer, a layer has one b_dec and one W_skip, which it adds once to its own output, and one
W_dec: concat uses that of the target for all sources, and per-layer splits it into those of the sources in order.

TopK ranks features before post_enc is added. So it becomes a part of the encoder's bias, which TopK subtracts again for
the ranking (``offsets``):

    p[s] = W[s] z[s] + b[s] + post_enc[s],   a[s] + post_enc[s] * 1[a[s] > 0] = p[s] * 1[p[s] - post_enc[s] is selected]

A feature of OpenCLT has one value for all layers that it writes to, so post_encs.{j} must be the same for all j. W_skip
between two layers must be zero, because a layer of OpenCLT has a skip path only to its own output.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor

from open_clt import files
from open_clt.config import CrossLayerConfig, TopKConfig
from open_clt.errors import CheckpointError
from open_clt.files import ScaledTensor, StoredTensor, Table
from open_clt.finite import check_finite
from open_clt.transcoders.formats.checks import OFFSETS
from open_clt.transcoders.formats.clt_training_settings import LayerSettings, agreeing_settings, read_settings
from open_clt.transcoders.formats.folders import one_set, sets_of_layers
from open_clt.transcoders.formats.layers import described_config
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles, tensor_of
from open_clt.transcoders.stored_weights import StoredWeights

_TENSORS, _SETTINGS, _RUN = "sae.safetensors", "cfg.json", "config.json"
_NAME = re.compile(r"(?:[^/]*\.)?(?P<layer>[0-9]+)(?P<set>(?:\.[^/0-9]*)?)/sae\.safetensors")
_TRANSCODER_HOOKS = {".mlp": ("mlp.hook_in", "mlp.hook_out"), "": ("hook_resid_pre", "hook_resid_post")}
"""Hooks at the input and the output of a module, by the end of its name; a layer's own name has no end."""
_RESIDUAL_NORM = re.compile(r"(?:.*\.)?([0-9]+)\.(?:ln_2|post_attention_layernorm)")
"""Names of modules whose input is the residual stream before the MLP."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Layers:
    """The layers of a transcoder, whose settings but the number of targets agree."""

    place: Path
    settings: Sequence[LayerSettings]
    tensors: Sequence[Mapping[str, StoredTensor]]
    n_features: int
    d_model: int

    @property
    def common(self) -> LayerSettings:
        return self.settings[0]

    def reach(self, source: int) -> int:
        return max(1, self.settings[source].n_targets)

    def one(self, layer: int, name: str, *shape: int) -> StoredTensor:
        """The tensor of a layer with this name."""
        return tensor_of(self.tensors[layer], name, shape, self.place)

    def of_target(self, source: int, name: str, offset: int, *shape: int) -> StoredTensor:
        """The tensor with which a layer writes to the layer that lies ``offset`` layers later."""
        numbered, tensors = f"{name}s.{offset}", self.tensors[source]
        plain = offset == 0 and numbered not in tensors and (name in tensors or not self.settings[source].n_targets)
        return self.one(source, name if plain else numbered, *shape)

    def share(self, source: int, target: int) -> float:
        """The factor of what a layer writes to another one."""
        if source == target or self.common.coalesced or not self.common["divide_cross_layer"]:
            return 1.0
        return 1 / max(1, target - self.first_source(target))

    def first_source(self, target: int) -> int:
        """The first layer that writes to a layer; all layers between the two write to it, too."""
        return next(source for source in range(target + 1) if target - source < self.reach(source))

    def decoder(self, source: int, target: int) -> StoredTensor:
        """What a unit of each feature of a layer writes to another layer, without factors."""
        shape = (self.n_features, self.d_model)
        match self.common.flags["coalesce_topk"]:
            case "concat":
                return self.one(target, "W_dec", *shape)
            case "per-layer":
                first = self.first_source(target)
                joined = tensor_of(self.tensors[target], "W_dec", (None, self.d_model), self.place)
                if len(joined) < (target - first + 1) * self.n_features:
                    raise CheckpointError(
                        f"Layer {target} in {self.place} holds W_dec with {len(joined)} rows; it must have "
                        f"{self.n_features} for each of the layers from {first} to {target}."
                    )
                return joined[(source - first) * self.n_features : (source - first + 1) * self.n_features]
            case _ if self.common["per_source_tied"]:
                return self.one(source, "W_dec", *shape)
            case _:
                return self.of_target(source, "W_dec", target - source, *shape)


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of transcoders of this layout, whole or damaged; they may be several sets."""
    of_one_layer = weight_files.has(_SETTINGS) and weight_files.has(_TENSORS)
    return of_one_layer or bool(sets_of_layers(weight_files.names(f"*/{_TENSORS}"), _NAME))


def open_clt_training(weight_files: WeightFiles) -> StoredTranscoder:
    """Open transcoders in this layout; raises CheckpointError if files are damaged or say what cannot be expressed."""
    place = weight_files.place
    sets = sets_of_layers(weight_files.names(f"*/{_TENSORS}"), _NAME)
    if not sets:
        raise CheckpointError(
            f"{place} holds the transcoder of one layer; give the folder above, which has all layers."
        )
    names = one_set({f"*[0-9]{name}": layers for name, layers in sets.items()}, place)
    module = next(iter(sets))
    paths = [weight_files.path(f"{name.rpartition('/')[0]}/{_SETTINGS}") for name in names]
    settings = agreeing_settings([read_settings(path) for path in paths], paths)
    tensors = [weight_files.tensors(name) for name in names]
    n_features, d_model = tensor_of(tensors[0], "encoder.weight", (None, None), place).shape
    layers = _Layers(place=place, settings=settings, tensors=tensors, n_features=n_features, d_model=d_model)
    # The numbers may be zero. Old files lack them in all layers; if only some layers have them, the others are damaged.
    adds_after_topk = any(name in of_layer for of_layer in tensors for name in ("post_enc", "post_encs.0"))
    config = described_config(
        {
            "n_layers": len(names),
            "n_features": n_features,
            "d_model": d_model,
            "reach": layers.reach(0),
            "skip": layers.common["skip_connection"],
            "nonlinearity": {"kind": "topk", "k": layers.common.k, "offsets": adds_after_topk},
            **_hooks(module, layers, weight_files),
        },
        place,
    )
    _check_names(layers)
    return StoredTranscoder(
        place=place, config=config, weights=_weights(layers), small=partial(_read_small, config, layers)
    )


def _hooks(module: str, layers: _Layers, weight_files: WeightFiles) -> dict[str, Any]:
    """Values of the config: the hooks of modules with this end of their names, and the language model."""
    if module not in _TRANSCODER_HOOKS:
        raise CheckpointError(
            f"{layers.place} holds transcoders of modules whose names end in {module!r}; only those of layers and of "
            ".mlp can be read."
        )
    input_hook, target_hook = _TRANSCODER_HOOKS[module]
    run, path = _run(weight_files)
    listed = run.get("hookpoints_in") or []
    if not layers.common["transcode"]:
        input_hook = target_hook
    elif listed:
        numbers = (
            [match[1] for name in listed if isinstance(name, str) and (match := _RESIDUAL_NORM.fullmatch(name))]
            if isinstance(listed, list)
            else []
        )
        if numbers != [str(layer) for layer in range(len(layers.tensors))] or "gemma" in str(run.get("model")).lower():
            raise CheckpointError(
                f"{path} has hookpoints_in {str(listed)[:60]}; only ln_2 or post_attention_layernorm of all layers can "
                "be read, of a model whose MLP reads what this norm writes."
            )
        input_hook = "hook_resid_mid"
    model = run.get("model")
    return {
        "input_hook": input_hook,
        "target_hook": target_hook,
        "language_model": model if isinstance(model, str) else None,
    }


def _run(weight_files: WeightFiles) -> tuple[dict[str, Any], Path]:
    """The config of the training run and its path; it is empty where the file is missing."""
    try:  # a pattern selects folders, and this file lies beside them
        path = weight_files.path(_RUN)
    except CheckpointError:
        return {}, weight_files.place / _RUN
    content = files.read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold the settings of a training run.")
    return cast(dict[str, Any], content), path


def _check_names(layers: _Layers) -> None:
    """Raise CheckpointError if a file holds a tensor that the settings do not explain."""
    decoding = ["b_dec"] + ["W_skip"] * layers.common["skip_connection"]
    of_target = ["post_enc"] + ["post_enc_scale"] * layers.common["post_encoder_scale"]
    if not layers.common.coalesced:
        of_target += decoding + ["W_dec"] * (not layers.common["per_source_tied"])
    known = {"encoder.weight", "encoder.bias", "W_dec", *decoding, *of_target}
    if layers.common["normalize_io"]:
        known |= {"in_norm", "out_norm"}
    for source, tensors in enumerate(layers.tensors):
        numbered = {f"{name}s.{offset}" for name in of_target for offset in range(layers.settings[source].n_targets)}
        if unknown := sorted(tensors.keys() - known - numbered):
            raise CheckpointError(
                f"Layer {source} in {layers.place} holds the tensor {unknown[0]!r}, which its {_SETTINGS} does not "
                "explain."
            )


def _weights(layers: _Layers) -> StoredWeights:
    shape = (layers.n_features, layers.d_model)
    n_layers = len(layers.tensors)
    return StoredWeights(
        tuple(layers.one(layer, "encoder.weight", *shape) for layer in range(n_layers)),
        tuple(
            tuple(_decoder(layers, source, source + offset) for offset in range(layers.reach(source)))
            for source in range(n_layers)
        ),
    )


def _decoder(layers: _Layers, source: int, target: int) -> Table:
    """What a unit of each feature of a layer writes to another layer, in standardised units."""
    table, share = layers.decoder(source, target).unsqueeze(1), layers.share(source, target)
    if layers.common["post_encoder_scale"]:
        scale = layers.of_target(source, "post_enc_scale", target - source, layers.n_features)
        return ScaledTensor(table, cache(lambda: _read(scale) * share), of_rows=True)
    if share != 1:
        return ScaledTensor(table, cache(lambda: torch.full((layers.n_features,), share)), of_rows=True)
    return table


def _read(tensor: StoredTensor) -> Tensor:
    read = tensor.read().float()
    check_finite(read, f"The tensor {tensor.name!r} of {tensor.place}", error=CheckpointError)
    return read


def _read_small(config: CrossLayerConfig, layers: _Layers) -> dict[str, Tensor]:
    _check_copies(layers)
    _check_skips(layers)
    n_layers, width, d_model = config.n_layers, config.n_features, config.d_model
    own_biases = torch.stack([_read(layers.of_target(layer, "b_dec", 0, d_model)) for layer in range(n_layers)])
    biases = own_biases.clone()
    for source in range(n_layers):
        for offset in range(1, 1 if layers.common.coalesced else layers.reach(source)):
            bias = _read(layers.of_target(source, "b_dec", offset, d_model))
            biases[source + offset] += bias * layers.share(source, source + offset)
    small = {
        "b_enc": torch.stack([_read(layers.one(layer, "encoder.bias", width)) for layer in range(n_layers)]),
        "b_dec": biases,
    }
    if isinstance(config.nonlinearity, TopKConfig) and config.nonlinearity.offsets:
        small[OFFSETS] = torch.stack([_added_after_topk(layers, layer) for layer in range(n_layers)])
        small["b_enc"] += small[OFFSETS]
    if config.skip:
        skips = [layers.of_target(layer, "W_skip", 0, d_model, d_model) for layer in range(n_layers)]
        small["W_skip"] = torch.stack([_read(skip) for skip in skips])
    scales = torch.ones(n_layers)
    if layers.common["normalize_io"]:
        norm_in, norm_out = (
            torch.cat([_read(layers.one(layer, name, 1)) for layer in range(n_layers)])
            for name in ("in_norm", "out_norm")
        )
        scales = norm_in / math.sqrt(d_model)
        small["standardisation.input_scale"] = scales
        small["standardisation.target_scale"] = norm_out / math.sqrt(d_model)
    if not layers.common["transcode"]:
        small["standardisation.input_mean"] = own_biases * scales[:, None]
    return small


def _added_after_topk(layers: _Layers, source: int) -> Tensor:
    """What is added to the features of a layer after TopK; raises CheckpointError if it differs between targets."""
    width = layers.n_features
    own = _read(layers.of_target(source, "post_enc", 0, width))
    for offset in range(1, layers.reach(source)):
        if not torch.equal(_read(layers.of_target(source, "post_enc", offset, width)), own):
            raise CheckpointError(
                f"Layer {source} in {layers.place} adds other numbers to its features for another layer "
                f"(post_encs.{offset}) than for its own (post_encs.0); a feature with several values cannot be read."
            )
    return own


def _check_copies(layers: _Layers) -> None:
    """Raise CheckpointError if a bias or a skip path to the own layer has a copy under another name that differs.

    Copies on the hub are not fetched for this, and decoders are not compared.
    """
    for tensors in layers.tensors:
        for name in ("b_dec", "W_skip", "post_enc", "post_enc_scale"):
            pair = [tensors[each] for each in (name, f"{name}s.0") if each in tensors]
            local = len(pair) == 2 and not any(each.is_remote for each in pair)
            if local and not torch.equal(*(_read(each) for each in pair)):
                raise CheckpointError(
                    f"The tensors {name} and {name}s.0 of {pair[0].place} differ; they must be copies of one tensor."
                )


def _check_skips(layers: _Layers) -> None:
    """Raise CheckpointError if a skip path leads from one layer to another and is not zero."""
    if not layers.common["skip_connection"] or layers.common.coalesced:
        return
    for source in range(len(layers.tensors)):
        for offset in range(1, layers.reach(source)):
            skip = layers.of_target(source, "W_skip", offset, layers.d_model, layers.d_model)
            if bool(_read(skip).any()):
                raise CheckpointError(
                    f"Layer {source} in {layers.place} has {skip.name} that is not zero; skip paths from one layer to "
                    "another cannot be read."
                )
