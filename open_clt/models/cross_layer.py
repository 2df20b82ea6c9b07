"""Cross-layer transcoders: features read at one layer, written to that layer and those after it.

A feature of layer ``l`` writes to layers ``l ... l + reach - 1``. Full depth is the cross-layer transcoder of
Ameisen et al. (2025); ``reach = 1`` is one transcoder per layer; ``skip`` adds a linear path from input to output
(Paulo et al., 2025). Nothing else changes.
"""

from __future__ import annotations

import copy
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from open_clt.config import TranscoderConfig
from open_clt.models.nonlinearities import make_nonlinearity
from open_clt.models.sparse import DENSE_ABOVE, LayerFeatures, SparseFeatures, add_written, preactivations, write
from open_clt.models.standardisation import Standardisation
from open_clt.models.transcoder import Transcoder, TranscoderOutput


@final
class CrossLayerTranscoder(Transcoder):
    """``y_hat[t] = b_dec[t] + sum_{s = t - reach + 1 .. t} a[s] W_dec[s -> t] (+ W_skip[t] x[t])``."""

    def __init__(self, config: TranscoderConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        layers, width, d_model = config.n_layers, config.n_features, config.d_model
        self.W_enc = nn.Parameter(torch.empty(layers, width, d_model))
        self.b_enc = nn.Parameter(torch.zeros(layers, width))
        tables = [torch.empty(width, config.reach_of(source), d_model) for source in range(layers)]
        self.W_dec = nn.ParameterList(tables)
        self.b_dec = nn.Parameter(torch.zeros(layers, d_model))
        self.W_skip = nn.Parameter(torch.zeros(layers, d_model, d_model)) if config.skip else None
        self.nonlinearity = make_nonlinearity(config.nonlinearity, layers, width)
        self.standardisation = Standardisation(layers, d_model)
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """All of the initialisation: U(+-1/sqrt(F)) encoders, U(+-1/sqrt(L d)) decoders, zero biases (methods)."""
        config = self.config
        self.W_enc.uniform_(-(config.n_features**-0.5), config.n_features**-0.5, generator=generator)
        bound = (config.n_layers * config.d_model) ** -0.5
        for table in self.W_dec:
            table.uniform_(-bound, bound, generator=generator)

    def forward(self, inputs: Float[Tensor, "batch layer d_model"]) -> TranscoderOutput:
        standard = self.standardisation.inputs(inputs)
        features = self._features(standard)
        written = [write(active, table) for active, table in zip(features, self.W_dec, strict=True)]
        reconstruction = add_written(self._offsets(standard), written)
        scale, mean = self.standardisation.target_scale, self.standardisation.target_mean
        return TranscoderOutput(features, reconstruction * scale[:, None] + mean)

    def encode_layer(self, inputs: Float[Tensor, "batch d_model"], layer: int) -> SparseFeatures:
        selected = self._select(self._standard_input(inputs, layer), layer)
        values = self.nonlinearity.values(selected.values, selected.features, layer)
        kept = selected.with_values(values)
        return SparseFeatures.from_dense(kept.dense()) if bool((values == 0).any()) else kept

    def write(self, features: LayerFeatures, source: int) -> Float[Tensor, "batch target d_model"]:
        reach = self.config.reach_of(source)
        scale = self.standardisation.target_scale[source : source + reach, None]
        return write(features, self.W_dec[source]) * scale

    def offset(self, inputs: Float[Tensor, "batch d_model"], layer: int) -> Float[Tensor, "batch d_model"]:
        offset = self.b_dec[layer].expand_as(inputs)
        if self.W_skip is not None:
            offset = offset + self._standard_input(inputs, layer) @ self.W_skip[layer].T
        return offset * self.standardisation.target_scale[layer] + self.standardisation.target_mean[layer]

    def decoder_norms(self) -> Float[Tensor, "layer feature"]:
        return torch.stack([table.flatten(1).norm(dim=1) for table in self.W_dec])

    def preactivations_of(
        self, inputs: Float[Tensor, "batch d_model"], layer: int, features: Tensor
    ) -> Float[Tensor, "batch some"]:
        """Pre-activations of some features of one layer, from its raw inputs; features: indices (some,)."""
        weight, bias = self.W_enc[layer][features], self.b_enc[layer][features]
        return functional.linear(self._standard_input(inputs, layer), weight, bias)

    @torch.no_grad()
    def folded(self) -> CrossLayerTranscoder:
        """An equal transcoder whose weights read and write raw activations: its standardisation is the identity."""
        other = copy.deepcopy(self)
        stats = self.standardisation
        scale_in, scale_out = stats.input_scale, stats.target_scale
        other.W_enc.copy_(self.W_enc / scale_in[:, None, None])
        shift = torch.einsum("lfd,ld->lf", other.W_enc, stats.input_mean)
        other.b_enc.copy_(self.b_enc - shift)
        for source, table in enumerate(other.W_dec):
            table.mul_(scale_out[source : source + table.shape[1], None])
        other.b_dec.copy_(self.b_dec * scale_out[:, None] + stats.target_mean)
        if other.W_skip is not None and self.W_skip is not None:
            other.W_skip.copy_(self.W_skip * (scale_out / scale_in)[:, None, None])
            other.b_dec.sub_(torch.einsum("lod,ld->lo", other.W_skip, stats.input_mean))
        other.standardisation = Standardisation(self.config.n_layers, self.config.d_model).to(self.device, self.dtype)
        return other

    def _standard_input(self, inputs: Float[Tensor, "batch d_model"], layer: int) -> Float[Tensor, "batch d_model"]:
        return (inputs - self.standardisation.input_mean[layer]) / self.standardisation.input_scale[layer]

    def _offsets(self, standard: Float[Tensor, "batch layer d_model"]) -> Float[Tensor, "batch layer d_model"]:
        offsets = self.b_dec.expand_as(standard)
        return offsets if self.W_skip is None else offsets + torch.einsum("bld,lod->blo", standard, self.W_skip)

    def _features(self, standard: Float[Tensor, "batch layer d_model"]) -> list[LayerFeatures]:
        """Features of all layers: the path that is trained, dense where a layer is too dense to select from."""
        # Unbound once: the gradient of a layer picked by index would be a tensor of zeros as large as all layers.
        layers = [
            _Layer(number, inputs, weight, bias)
            for number, (inputs, weight, bias) in enumerate(
                zip(standard.unbind(1), self.W_enc.unbind(), self.b_enc.unbind(), strict=True)
            )
        ]
        if not self.nonlinearity.couples_layers:
            return [self._layer_features(layer) for layer in layers]
        with torch.no_grad():
            selected = [self.nonlinearity.select(layer.preactivations(), layer.number) for layer in layers]
            selected = self.nonlinearity.couple(selected, self.decoder_norms())
        return [self._values(layer, chosen) for layer, chosen in zip(layers, selected, strict=True)]

    def _layer_features(self, layer: _Layer) -> LayerFeatures:
        with torch.no_grad():
            dense = layer.preactivations()
            too_dense = self.nonlinearity.density(dense, layer.number) > DENSE_ABOVE
        if too_dense:
            return self.nonlinearity.dense(layer.preactivations(), layer.number)
        return self._values(layer, self.nonlinearity.select(dense, layer.number))

    @torch.no_grad()
    def _select(self, inputs: Float[Tensor, "batch d_model"], layer: int) -> SparseFeatures:
        dense = functional.linear(inputs, self.W_enc[layer], self.b_enc[layer])
        return self.nonlinearity.select(dense, layer)

    def _values(self, layer: _Layer, selected: SparseFeatures) -> SparseFeatures:
        pre = preactivations(layer.inputs, layer.weight, layer.bias, selected)
        return selected.with_values(self.nonlinearity.values(pre, selected.features, layer.number))


class _Layer(NamedTuple):
    """One layer of the encoder, and what it reads: standardised inputs (batch, d_model)."""

    number: int
    inputs: Tensor
    weight: Tensor
    bias: Tensor

    def preactivations(self) -> Float[Tensor, "batch feature"]:
        """All of them, densely."""
        return functional.linear(self.inputs, self.weight, self.bias)
