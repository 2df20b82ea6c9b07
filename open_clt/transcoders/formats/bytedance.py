"""ByteDance's layout of a cross-layer transcoder with TopK across layers.

    config.json             d_feature and k
    W_enc_{l}.safetensors   W_enc_{l} [feature, d_model]
    W_dec_{l}.safetensors   W_dec_{l} [feature, n_layers - l, d_model]; slice j writes to layer l + j; perhaps
                            W_dec_norm_{l} [feature], the rows of the next file
    W_dec_norm.safetensors  W_dec_norm [layer, feature]: the norms by which activations are ranked
    factors.safetensors     factors of the training, which the weights include already; it is not read

    a = relu(x @ W_enc.T), of which the n_layers * k largest a * W_dec_norm of all layers of a token are kept
    y[t] = sum of a[s] @ W_dec[s][:, t - s] over s <= t

The files do not state hooks: the transcoder reads the input of the MLP, and writes its output.
"""

from __future__ import annotations

from typing import Any, cast

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.transcoders.formats.layers import described_config
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles, tensor_of
from open_clt.transcoders.stored_weights import StoredWeights

_SETTINGS, _NORMS = "config.json", "W_dec_norm.safetensors"


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of a transcoder of this layout, whole or damaged."""
    return weight_files.has(_SETTINGS) and weight_files.has(_NORMS)


def open_bytedance(weight_files: WeightFiles) -> StoredTranscoder:
    """Open a transcoder in this layout; raises CheckpointError if its files are damaged or a layer is missing."""
    place = weight_files.place
    path = weight_files.path(_SETTINGS)
    match files.read_json(path):
        case {"d_feature": int(n_features), "k": int(k), **others}:
            others = cast(dict[str, Any], others)
        case _:
            raise CheckpointError(f"{path} does not say what d_feature and k of the transcoder are.")
    norms = tensor_of(weight_files.tensors(_NORMS), "W_dec_norm", (None, n_features), place)
    n_layers = norms.shape[0]
    encoders = [
        tensor_of(weight_files.tensors(f"W_enc_{layer}.safetensors"), f"W_enc_{layer}", (n_features, None), place)
        for layer in range(n_layers)
    ]
    d_model = encoders[0].shape[1] if encoders else 0
    decoders = [
        tensor_of(
            weight_files.tensors(f"W_dec_{layer}.safetensors"),
            f"W_dec_{layer}",
            (n_features, n_layers - layer, d_model),
            place,
        )
        for layer in range(n_layers)
    ]
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
    return StoredTranscoder(
        place=place, config=config, weights=weights, small=lambda: {"nonlinearity.norms": norms.read().float()}
    )
