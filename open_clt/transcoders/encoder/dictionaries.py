"""The sparse encoder with the names and the dictionaries of the package ``sparse-clt``, for programs that use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.config.arguments import Count, checked_arguments
from open_clt.errors import ConfigError, short_value
from open_clt.finite import check_finite
from open_clt.short_repr import short_repr
from open_clt.transcoders.encoder.layers import LayerEncoder
from open_clt.transcoders.encoder.sparse_encoder import EncodedLayer, SparseEncoder


@final
class SparseCLTEncoder:
    """A ``SparseEncoder`` whose results are dictionaries."""

    @checked_arguments
    def __init__(
        self,
        transcoders: Mapping[int, Any],
        top_k: Count = 20,
        activation_threshold: float = 1.0,
        *,
        use_compile: bool = False,
        chunk_size: Count | None = 512,
        normalize: Literal["layernorm"] | None = None,
    ) -> None:
        """Use the encoders of ``transcoders``, given by layer; ``SparseEncoder`` describes the other arguments.

        Each is an encoder that ``load_transcoders`` returns, or an object or a mapping with ``W_enc`` (feature,
        d_model), ``b_enc`` (feature) and perhaps ``threshold`` (feature or one number); without thresholds, features
        are active above 0. Raises ConfigError if one lacks these tensors.
        """
        encoders = {layer: _encoder(layer, transcoder) for layer, transcoder in transcoders.items()}
        self.encoder = SparseEncoder(
            encoders,
            top_k=top_k,
            activation_threshold=activation_threshold,
            chunk_size=chunk_size,
            normalize=normalize,
            use_compile=use_compile,
        )

    @checked_arguments
    def encode_layer(self, layer: int, hidden: Float[Tensor, "batch position d_model"]) -> dict[str, Any]:
        """The keys ``layer``, ``activations``, ``indices`` and ``sparsity``, as in ``EncodedLayer``."""
        return self.encoder.encode_layer(layer, hidden)._asdict()

    @checked_arguments
    def encode_chunked(
        self, layer: int, hidden: Float[Tensor, "batch position d_model"], chunk_size: Count | None = None
    ) -> dict[str, Any]:
        """The same as ``encode_layer``, computed ``chunk_size`` positions at a time, or all at once if it is None."""
        return self.encoder.encode_chunked(layer, hidden, chunk_size)._asdict()

    @checked_arguments
    def encode_all_layers(
        self, hidden: Mapping[int, Float[Tensor, "batch position d_model"]]
    ) -> dict[int, dict[str, Any]]:
        """What ``encode_layer`` returns for several layers, by layer."""
        encoded: dict[int, EncodedLayer] = self.encoder.encode_all_layers(hidden)
        return {layer: result._asdict() for layer, result in encoded.items()}

    @checked_arguments
    def extract_attribution_features(
        self, hidden_states: Mapping[int, Float[Tensor, "batch position d_model"]], top_k_global: Count = 100
    ) -> list[dict[str, Any]]:
        """The strongest features of a text as nodes of circuit-tracer's graph files, strongest first.

        Without a graph, ``influence`` is the share of this feature and all stronger ones in the sum of all encoded
        activations.
        """
        return [
            {
                "node_id": f"{feature.layer}_{feature.index}_{position}",
                "feature": feature.index,
                "layer": str(feature.layer),
                "ctx_idx": position,
                "feature_type": "cross layer transcoder",
                "influence": share,
                "activation": activation,
            }
            for feature, position, activation, share in self.encoder.extract_attribution_features(
                hidden_states, top_k_global
            )
        ]

    @staticmethod
    @checked_arguments
    def load_transcoders(
        directory: str | Path, layers: Sequence[int] | None = None, device: str | torch.device = "cpu"
    ) -> dict[int, LayerEncoder]:
        """The encoders of some layers of a stored transcoder, by default of all: an argument for ``transcoders``."""
        return SparseEncoder.load_transcoders(directory, layers, device).encoders

    __repr__ = short_repr


def _encoder(layer: int, transcoder: Any) -> LayerEncoder:
    if isinstance(transcoder, LayerEncoder):
        return transcoder
    weight, bias, threshold = (_tensor(layer, transcoder, name) for name in ("W_enc", "b_enc", "threshold"))
    if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1] or not weight.numel():
        raise ConfigError(
            f"The transcoder of layer {layer} must have tensors W_enc (feature, d_model) and b_enc (feature), or be "
            "one of those that load_transcoders returns."
        )
    threshold = torch.zeros(()) if threshold is None else threshold
    if threshold.numel() not in (1, len(bias)):
        raise ConfigError(
            f"The transcoder of layer {layer} has {threshold.numel()} thresholds for {len(bias)} features; give one "
            "for each feature, or one number."
        )
    thresholds = threshold.to(bias).reshape(-1).expand(len(bias))
    return LayerEncoder(weight=weight.to(bias), bias=bias, thresholds=thresholds)


def _tensor(layer: int, transcoder: Any, name: str) -> Tensor | None:
    """A tensor of a transcoder; raises ConfigError if it does not hold finite numbers."""
    given = transcoder.get(name) if isinstance(transcoder, Mapping) else getattr(transcoder, name, None)
    if given is None:
        return None
    try:
        tensor = torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name} of layer {layer} is {short_value(given)}; it must be a tensor.") from error
    tensor = tensor if tensor.is_floating_point() else tensor.float()
    if tensor.is_meta or tensor.layout is not torch.strided:
        raise ConfigError(f"{name} of layer {layer} must be a dense tensor that holds numbers.")
    check_finite(tensor, f"{name} of layer {layer}", error=ConfigError)
    return tensor
