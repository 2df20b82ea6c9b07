"""Gemma Scope 2's layout of a cross-layer transcoder.

    params_layer_{l}.safetensors  w_enc [d_model, feature], w_dec [feature, n_layers, d_model], b_enc [feature],
                                  b_dec [d_model], threshold [feature]; perhaps
                                  affine_skip_connection [d_model, d_model]

    y[t] = sum of a[s] @ w_dec[s][:, t] over s <= t, + b_dec[t] + x[t] @ affine_skip_connection[t]

Encoders read the output of the norm before the MLP, and the targets are the outputs of the norm after the MLP. The
files do not name the language model.
"""

from __future__ import annotations

from open_clt.errors import CheckpointError
from open_clt.transcoders.formats.checks import THRESHOLDS
from open_clt.transcoders.formats.layers import check_names, described_config, read_stacked
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles, names_of_layers, tensor_of
from open_clt.transcoders.stored_weights import StoredWeights

_SKIP = "affine_skip_connection"
_KNOWN = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold", _SKIP}


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of a transcoder of this layout, whole or damaged."""
    return bool(weight_files.names("params_layer_[0-9]*.safetensors"))


def open_gemma_scope_2(weight_files: WeightFiles) -> StoredTranscoder:
    """Open a cross-layer transcoder in this layout; raises CheckpointError if its files are damaged."""
    place = weight_files.place
    layers = [weight_files.tensors(name) for name in names_of_layers(weight_files, "params_layer_{}.safetensors")]
    check_names(layers, _KNOWN, place)
    width, n_layers, d_model = tensor_of(layers[0], "w_dec", (None, None, None), place).shape
    if n_layers != len(layers):
        raise CheckpointError(
            f"{place} holds {len(layers)} layers, but its decoders write to {n_layers}; it needs the files from "
            f"params_layer_0.safetensors to params_layer_{n_layers - 1}.safetensors."
        )
    skip = _SKIP in layers[0]
    config = described_config(
        {
            "n_layers": n_layers,
            "n_features": width,
            "d_model": d_model,
            "skip": skip,
            "nonlinearity": {"kind": "jumprelu"},
            "input_hook": "mlp.hook_in",
            "target_hook": "hook_mlp_out",
        },
        place,
    )
    decoders = [tensor_of(each, "w_dec", (width, n_layers, d_model), place) for each in layers]
    weights = StoredWeights(
        tuple(tensor_of(each, "w_enc", (d_model, width), place).T for each in layers),
        tuple((decoder[:, source:],) for source, decoder in enumerate(decoders)),
    )
    small = {
        "b_enc": [tensor_of(each, "b_enc", (width,), place) for each in layers],
        "b_dec": [tensor_of(each, "b_dec", (d_model,), place) for each in layers],
        THRESHOLDS: [tensor_of(each, "threshold", (width,), place) for each in layers],
        **({"W_skip": [tensor_of(each, _SKIP, (d_model, d_model), place).T for each in layers]} if skip else {}),
    }
    return StoredTranscoder(place=place, config=config, weights=weights, small=read_stacked(small))
