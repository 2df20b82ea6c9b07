"""The neurons of a language model as a transcoder, with the model's own weights.

It reconstructs the outputs of the MLPs exactly. A neuron is a feature that writes its row of ``W_out`` to its own
layer. For attribution, gates are frozen (``layer.py``), and so is the denominator of a norm after the MLP (Gemma 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from open_clt.config import NeuronConfig
from open_clt.finite import check_finite
from open_clt.transcoders.neurons.layer import NeuronLayer
from open_clt.transcoders.neurons.source import not_stored
from open_clt.transcoders.outputs import TranscoderErrors, TranscoderOutput
from open_clt.transcoders.sparse.codes import LayerFeatures, SparseFeatures, dense
from open_clt.transcoders.standardisation import Standardisation
from open_clt.transcoders.transcoder import Transcoder, errors_of_forward


@final
class NeuronTranscoder(Transcoder):
    """The MLP neurons of a language model as features; ``open_clt.language.transcoders.neurons`` makes it of a model.

    It shares the weights of the model, so it is neither trained nor saved.
    """

    def __init__(self, config: NeuronConfig, layers: Sequence[NeuronLayer]) -> None:
        nn.Module.__init__(self)  # the base class would make weights
        self.config: NeuronConfig = config  # pyright: ignore[reportIncompatibleVariableOverride] (set here only)
        self.layers = tuple(layers)
        self.stored = None
        self.W_skip = None
        self.standardisation = Standardisation(config.n_layers, config.d_model).to(self.device, self.dtype)
        self.register_state_dict_pre_hook(_refuse_state_dict)

    def __getattr__(self, name: str) -> Any:
        if name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            raise not_stored("changed or copied")
        return super().__getattr__(name)

    def __deepcopy__(self, memo: dict[int, object]) -> NeuronTranscoder:
        return self  # the weights belong to the language model, so copies share them

    @property
    def device(self) -> torch.device:
        return self.layers[0].W_in.device

    @property
    def dtype(self) -> torch.dtype:
        return self.layers[0].W_in.dtype

    @property
    def n_parameters(self) -> int:
        return sum(weight.numel() for layer in self.layers for weight in layer.weights)

    def forward(self, inputs: Float[Tensor, "batch layer d_model"]) -> TranscoderOutput:
        """The values of all neurons, and the outputs of the MLPs."""
        features = self.encode(inputs)
        return TranscoderOutput([*features], self.decode(features, inputs))

    def errors(
        self,
        inputs: Float[Tensor, "batch layer d_model"],
        targets: Float[Tensor, "batch layer d_model"],
        *,
        norms: bool = False,
    ) -> TranscoderErrors:
        return errors_of_forward(self, inputs, targets, norms=norms)

    @torch.no_grad()
    def encode_layer(
        self, inputs: Float[Tensor, "batch d_model"], layer: int, *, bounds: Float[Tensor, "bound"] | None = None
    ) -> SparseFeatures:
        values = self.layers[layer].parts(inputs).value
        check_finite(values, f"The neurons of layer {layer}", axes=("token", "feature"))
        return SparseFeatures.from_dense(values)

    def encode(self, inputs: Float[Tensor, "batch layer d_model"]) -> list[SparseFeatures]:
        return [self.encode_layer(of_layer, layer) for layer, of_layer in enumerate(inputs.unbind(1))]

    def written(
        self, features: LayerFeatures, source: int, standard: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, "batch target d_model"]:
        layer = self.layers[source]
        return layer.through_norm(dense(features) @ layer.W_out, layer.denominators(standard))[:, None]

    def offset(self, inputs: Float[Tensor, "batch d_model"], layer: int) -> Float[Tensor, "batch d_model"]:
        of_layer = self.layers[layer]
        bias = torch.zeros_like(inputs) if of_layer.b_out is None else of_layer.b_out.expand_as(inputs)
        offset = of_layer.through_norm(bias, of_layer.denominators(inputs))
        return offset if of_layer.norm is None or of_layer.norm.bias is None else offset + of_layer.norm.bias

    def preactivations_of(
        self, inputs: Float[Tensor, "batch d_model"], layer: int, features: Int[Tensor, "chosen"]
    ) -> Float[Tensor, "batch chosen"]:
        return self.layers[layer].parts(inputs, features).pre

    def target_rows(
        self, inputs: Float[Tensor, "chosen d_model"], layer: int, features: Int[Tensor, "chosen"]
    ) -> Float[Tensor, "chosen d_model"]:
        """The chosen neurons as linear functions of their inputs, each frozen at an input of its own."""
        of_layer = self.layers[layer]
        of_pre, of_up = of_layer.slopes(of_layer.parts_at(inputs, features))
        rows = of_layer.read[0][features] * of_pre[:, None]
        return rows if of_up is None else rows + of_layer.W_in[features] * of_up[:, None]

    def linear_change(
        self,
        before: Float[Tensor, "batch d_model"],
        after: Float[Tensor, "batch d_model"],
        layer: int,
        features: Int[Tensor, "chosen"],
    ) -> Float[Tensor, "batch chosen"]:
        """The change of neurons that are frozen at inputs ``before``: what a graph predicts."""
        of_layer = self.layers[layer]
        old = of_layer.parts(before, features)
        of_pre, of_up = of_layer.slopes(old)
        new = of_layer.parts(after, features)
        change = of_pre * (new.pre - old.pre)
        if of_up is None or new.up is None or old.up is None:
            return change
        return change + of_up * (new.up - old.up)

    def vectors(
        self,
        inputs: Float[Tensor, "position d_model"],
        source: int,
        target: int,
        *,
        features: Int[Tensor, "chosen"],
        positions: Int[Tensor, "chosen"],
    ) -> Float[Tensor, "chosen d_model"]:
        """What one unit of each given neuron adds to the residual stream, with the norm after the MLP frozen."""
        of_layer = self.layers[source]
        denominators = of_layer.denominators(inputs)
        rows = of_layer.W_out[features]
        return of_layer.through_norm(rows, None if denominators is None else denominators[positions])

    def decoder_norms(self) -> Float[Tensor, "layer feature"]:
        """Norm of each neuron's row of ``W_out``; of a norm after the MLP, the weight counts, not the denominator."""
        rows = (layer.through_norm(layer.W_out, layer.W_out.new_ones(1, 1)) for layer in self.layers)
        return torch.stack([of_layer.norm(dim=-1) for of_layer in rows])

    def folded(self) -> NeuronTranscoder:
        """The transcoder itself, which reads and writes raw activations."""
        return self

    def _fold_decoders(self) -> None:
        """Nothing is standardised."""

    def _divide_decoders(self, factors: Float[Tensor, "layer feature"]) -> None:
        raise not_stored("changed")


def _refuse_state_dict(*_: Any) -> None:
    raise not_stored("saved")
