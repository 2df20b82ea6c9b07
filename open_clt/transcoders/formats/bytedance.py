"""ByteDance's layout of a cross-layer transcoder with TopK across layers.

    config.json             d_feature and k
    W_enc_{l}.safetensors   W_enc_{l} [feature, d_model]
    W_dec_{l}.safetensors   W_dec_{l} [feature, n_layers - l, d_model]; slice j writes to layer l + j; perhaps
                            W_dec_norm_{l} [feature], the rows of the next file
    W_dec_norm.safetensors  W_dec_norm [layer, feature]: the norms by which activations are ranked; without this file,
                            the files of all decoders have their rows
    factors.safetensors     factors of the training, which the weights include already; nothing is computed with them

    a = relu(x @ W_enc.T), of which the n_layers * k largest a * W_dec_norm of all layers of a token are kept
    y[t] = sum of a[s] @ W_dec[s][:, t - s] over s <= t

The files do not state hooks. OpenCLT assumes that the transcoder reads the input of the MLP, and writes its output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.files import StoredTensor
from open_clt.transcoders.formats.layers import described_config, read_stacked
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles, check_known, tensor_of
from open_clt.transcoders.stored_weights import StoredWeights

_SETTINGS, _NORMS, _FACTORS = "config.json", "W_dec_norm.safetensors", "factors.safetensors"


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of a transcoder of this layout, whole or damaged."""
    encoders = weight_files.names("W_enc_[0-9]*.safetensors")
    return weight_files.has(_SETTINGS) and (weight_files.has(_NORMS) or bool(encoders))


def open_bytedance(weight_files: WeightFiles) -> StoredTranscoder:
    """Open a transcoder in this layout; raises CheckpointError if its files are damaged or a layer is missing."""
    place = weight_files.place
    path = weight_files.path(_SETTINGS)
    match files.read_json(path):
        case {"d_feature": int(n_features), "k": int(k), **others}:
            others = cast(dict[str, Any], others)
        case _:
            raise CheckpointError(f"{path} does not say what d_feature and k of the transcoder are.")
    first = tensor_of(weight_files.tensors("W_dec_0.safetensors"), "W_dec_0", (n_features, None, None), place)
    _, n_layers, d_model = first.shape
    of_encoders, of_decoders = (
        [weight_files.tensors(f"{stem}_{layer}.safetensors") for layer in range(n_layers)]
        for stem in ("W_enc", "W_dec")
    )
    for layer, (encoder, decoder) in enumerate(zip(of_encoders, of_decoders, strict=True)):
        check_known(encoder, {f"W_enc_{layer}"}, place / f"W_enc_{layer}.safetensors")
        check_known(decoder, {f"W_dec_{layer}", f"W_dec_norm_{layer}"}, place / f"W_dec_{layer}.safetensors")
    if weight_files.has(_FACTORS):
        weight_files.tensors(_FACTORS)  # so that the file is part of the transcoder, and its numbers are checked
    encoders = [
        tensor_of(tensors, f"W_enc_{layer}", (n_features, d_model), place) for layer, tensors in enumerate(of_encoders)
    ]
    decoders = [
        tensor_of(tensors, f"W_dec_{layer}", (n_features, n_layers - layer, d_model), place)
        for layer, tensors in enumerate(of_decoders)
    ]
    norms = _norms(weight_files, of_decoders, n_features)
    config = described_config(
        {
            "n_layers": n_layers,
            "n_features": n_features,
            "d_model": d_model,
            "nonlinearity": {"kind": "topk", "k": k, "across_layers": True},
            "input_hook": "mlp.hook_in",
            "target_hook": "mlp.hook_out",
            "language_model": others.get("model_name"),
        },
        place,
    )
    weights = StoredWeights(tuple(encoders), tuple((decoder,) for decoder in decoders))
    small = read_stacked({"nonlinearity.norms": norms})
    return StoredTranscoder(place=place, config=config, weights=weights, small=small, states_hooks=False)


def _norms(
    weight_files: WeightFiles, of_decoders: Sequence[Mapping[str, StoredTensor]], n_features: int
) -> list[StoredTensor]:
    """The norms by which the activations of each layer are ranked."""
    place, n_layers = weight_files.place, len(of_decoders)
    if weight_files.has(_NORMS):
        tensors = weight_files.tensors(_NORMS)
        check_known(tensors, {"W_dec_norm"}, place / _NORMS)
        norms = tensor_of(tensors, "W_dec_norm", (n_layers, n_features), place)
        return [norms[layer] for layer in range(n_layers)]
    for layer, tensors in enumerate(of_decoders):
        if f"W_dec_norm_{layer}" not in tensors:
            raise CheckpointError(
                f"{place} lacks {_NORMS}, and W_dec_{layer}.safetensors lacks W_dec_norm_{layer}; one of them must "
                "hold the norms by which features are ranked."
            )
    return [tensor_of(each, f"W_dec_norm_{layer}", (n_features,), place) for layer, each in enumerate(of_decoders)]
