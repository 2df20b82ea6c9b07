"""What every transcoder is: an encoder of what each layer reads, and a way back from features to what layers write.

Axes, everywhere in this package: ``batch`` (tokens; a transcoder knows no positions), ``position``, ``layer``,
``source`` and ``target`` (layers, in a decoder), ``feature`` (within a layer), ``d_model``.
A transcoder reads and writes raw activations; how it standardises them inside is its own business.

Encoders are the same in all of them, ``a[l] = nonlinearity(W_enc[l] x[l] + b_enc[l])``, and stand here; what active
features write is what tells one from another (``cross_layer.py``, ``molt.py``).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from open_clt.config import TranscoderConfig
from open_clt.transcoders.nonlinearities import Nonlinearity, make_nonlinearity
from open_clt.transcoders.slices import ALONE, WHOLE, Part, Peers
from open_clt.transcoders.sparse.codes import DENSE_ABOVE, LayerFeatures, SparseFeatures
from open_clt.transcoders.sparse.products import Product, Written, preactivations, sum_written
from open_clt.transcoders.standardisation import Standardisation

Kind = TypeVar("Kind", bound="Transcoder")


class TranscoderOutput(NamedTuple):
    """One forward pass: the features of every layer, and the reconstruction of every target."""

    features: list[LayerFeatures]
    reconstruction: Float[Tensor, "batch layer d_model"]


class TranscoderErrors(NamedTuple):
    """One forward pass of a training: what its losses are computed from."""

    features: list[LayerFeatures]
    errors: list[Float[Tensor, "batch layer d_model"]]
    """Standardised targets minus reconstruction; of each prefix in turn for a Matryoshka transcoder, the whole last."""
    decoder_norms: Float[Tensor, "layer feature"] | None
    """None unless they were asked for."""


class Transcoder(nn.Module, ABC):
    """Sparse features that stand for a part of each layer of a language model."""

    config: TranscoderConfig
    part: Part = WHOLE
    """Which features these are, if they are those of a larger transcoder."""
    peers: Peers = ALONE
    """Who holds the features that are not here; ``share_with`` sets it."""

    def __init__(self, config: TranscoderConfig) -> None:
        super().__init__()
        self.config = config
        layers, width, d_model = config.n_layers, config.n_features, config.d_model
        self.W_enc = nn.Parameter(torch.empty(layers, width, d_model))
        self.b_enc = nn.Parameter(torch.zeros(layers, width))
        self.b_dec = nn.Parameter(torch.zeros(layers, d_model))
        self.W_skip = nn.Parameter(torch.zeros(layers, d_model, d_model)) if config.skip else None
        self.nonlinearity = make_nonlinearity(config.nonlinearity, layers, width)
        self.standardisation = Standardisation(layers, d_model)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.W_enc.dtype

    @property
    def first_position(self) -> int:
        """The first position of a text at which its features are used: 0 or 1."""
        return 0 if self.config.use_first_position else 1

    def share_with(self, peers: Peers) -> None:
        """Take this transcoder for the slice of a larger one, of which ``peers`` hold the rest."""
        for module in self.modules():
            if isinstance(module, Transcoder | Nonlinearity):
                module.peers = peers

    @abstractmethod
    def written(
        self, features: LayerFeatures, source: int, standard: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, "batch target d_model"]:
        """What features of layer ``source`` write, in standardised units, given that layer's standardised inputs."""

    @abstractmethod
    def decoder_norms(self) -> Float[Tensor, "layer feature"]:
        """How much a unit of each feature writes, in standardised units: what sparsity weighs it by."""

    @abstractmethod
    def _fold_decoders(self) -> None:
        """Let the decoders of a copy read and write raw activations."""

    @abstractmethod
    def _divide_decoders(self, factors: Float[Tensor, "layer feature"]) -> None:
        """Divide what a unit of each feature writes."""

    def forward(self, inputs: Float[Tensor, "batch layer d_model"]) -> TranscoderOutput:
        """Encode and decode all layers of a batch of tokens."""
        standard = self.standardisation.inputs(inputs)
        features = self._features(standard)
        written = [self._to_add(active, s, standard[:, s]) for s, active in enumerate(features)]
        total = self._sum(written, standard).added_to(self._offsets(standard).expand_as(standard).clone())
        return TranscoderOutput(features, self._raw(total))

    def errors(
        self,
        inputs: Float[Tensor, "batch layer d_model"],
        targets: Float[Tensor, "batch layer d_model"],
        *,
        norms: bool = False,
    ) -> TranscoderErrors:
        """Encode and decode raw ``inputs``, and compare with raw ``targets``; with the decoder norms if asked.

        The same as ``forward`` and ``decoder_norms``, in fewer passes over memory; a subclass with a ``forward`` of its
        own is trained on what that returns.
        """
        if type(self).forward is not Transcoder.forward:
            features, reconstruction = self(inputs)
            errors = self.standardisation.errors(targets - reconstruction)
            return TranscoderErrors(features, [errors], self.decoder_norms() if norms else None)
        standard = self.standardisation.inputs(inputs)
        features = self._features(standard)
        written = [self._to_add(active, s, standard[:, s]) for s, active in enumerate(features)]
        found = self._sum(written, standard, norms=norms)
        # Offsets are negated before they are broadcast: their gradient then is summed before it is negated.
        errors = found.taken_from(self.standardisation.targets(targets).add_(-self._offsets(standard)))
        return TranscoderErrors(features, [errors], self._norms_with(found) if norms else None)

    def encode_layer(self, inputs: Float[Tensor, "batch d_model"], layer: int) -> SparseFeatures:
        """Features of one layer, from that layer's raw inputs."""
        standard = self._standard_input(inputs, layer)
        with torch.no_grad():
            dense = functional.linear(standard, self.W_enc[layer], self.b_enc[layer])
            selected = self.nonlinearity.select(dense, layer)
        values = self.nonlinearity.values(selected.values, selected.features, layer)
        kept = selected.with_values(values)
        return SparseFeatures.from_dense(kept.dense()) if bool((values == 0).any()) else kept

    def encode(self, inputs: Float[Tensor, "batch layer d_model"]) -> list[SparseFeatures]:
        """Features of all layers."""
        return [self.encode_layer(inputs[:, layer], layer) for layer in range(inputs.shape[1])]

    def write(
        self, features: LayerFeatures, source: int, inputs: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, "batch target d_model"]:
        """What features of layer ``source`` write, raw: slice ``j`` goes to layer ``source + j``. No bias.

        ``inputs`` are that layer's raw inputs: what a transform writes depends on them, what a decoder writes does not.
        """
        written = self.written(features, source, self._standard_input(inputs, source))
        return written * self.standardisation.target_scale[source : source + written.shape[1], None]

    def offset(self, inputs: Float[Tensor, "batch d_model"], layer: int) -> Float[Tensor, "batch d_model"]:
        """What reaches layer ``layer`` without features: its decoder bias, and the skip path of its raw inputs."""
        offset = self.b_dec[layer].expand_as(inputs)
        if self.W_skip is not None:
            offset = offset + self._standard_input(inputs, layer) @ self.W_skip[layer].T
        return offset * self.standardisation.target_scale[layer] + self.standardisation.target_mean[layer]

    def decode(
        self, features: Sequence[LayerFeatures], inputs: Float[Tensor, "batch layer d_model"]
    ) -> Float[Tensor, "batch layer d_model"]:
        """Sum what every source layer writes to every target within its reach."""
        offsets = [self.offset(inputs[:, layer], layer) for layer in range(inputs.shape[1])]
        reconstruction = torch.stack(offsets, dim=1)
        for source, active in enumerate(features):
            written = self.write(active, source, inputs[:, source])
            reconstruction[:, source : source + written.shape[1]] += written
        return reconstruction

    def preactivations_of(
        self, inputs: Float[Tensor, "batch d_model"], layer: int, features: Int[Tensor, "some"]
    ) -> Float[Tensor, "batch some"]:
        """Pre-activations of some features of one layer, from its raw inputs."""
        weight, bias = self.W_enc[layer][features], self.b_enc[layer][features]
        return functional.linear(self._standard_input(inputs, layer), weight, bias)

    @torch.no_grad()
    def folded(self: Kind) -> Kind:
        """An equal transcoder whose weights read and write raw activations: its standardisation is the identity."""
        other = copy.deepcopy(self)
        stats = self.standardisation
        other.W_enc.div_(stats.input_scale[:, None, None])
        other.b_enc.sub_(torch.einsum("lfd,ld->lf", other.W_enc, stats.input_mean))
        other.b_dec.mul_(stats.target_scale[:, None]).add_(stats.target_mean)
        if other.W_skip is not None:
            other.W_skip.mul_((stats.target_scale / stats.input_scale)[:, None, None])
            other.b_dec.sub_(torch.einsum("lod,ld->lo", other.W_skip, stats.input_mean))
        other._fold_decoders()
        other.standardisation = Standardisation(self.config.n_layers, self.config.d_model).to(self.device, self.dtype)
        return other

    @torch.no_grad()
    def with_unit_decoders(self: Kind) -> Kind:
        """An equal transcoder in which a unit of each feature writes a vector of norm 1; thresholds move along.

        The norm is over all targets of a feature and in standardised units: fold those first for raw ones. Equal at
        inference; raises ConfigError for TopK, which would rank its features anew.
        """
        other = copy.deepcopy(self)
        norms = self.decoder_norms()
        norms = torch.where(norms > 0, norms, torch.ones_like(norms))  # a feature that writes nothing stays as it is
        other.W_enc.mul_(norms[..., None])
        other.b_enc.mul_(norms)
        other.nonlinearity.rescale(norms)
        other._divide_decoders(norms)
        return other

    def _initialise_encoders(self, generator: torch.Generator) -> None:
        """U(+-1/sqrt(F)); biases stay zero (methods)."""
        bound = (self.config.n_features * self.part.shards) ** -0.5
        for rows in self.W_enc.unbind():
            self.part.draw(rows, bound, generator)

    def _standard_input(self, inputs: Float[Tensor, "batch d_model"], layer: int) -> Float[Tensor, "batch d_model"]:
        return (inputs - self.standardisation.input_mean[layer]) / self.standardisation.input_scale[layer]

    def _to_add(
        self, features: LayerFeatures, source: int, standard: Float[Tensor, "batch d_model"]
    ) -> Product | Float[Tensor, "batch target d_model"]:
        """The same as ``written``, where a transcoder can leave it to the sum to multiply out."""
        return self.written(features, source, standard)

    def _sum(self, written: Sequence[Product | Tensor], like: Tensor, *, norms: bool = False) -> Written:
        """What all features write: those of this process, and those of its peers."""
        found = sum_written(written, like, norms=norms)
        return found._replace(blocks=self.peers.sum_features(found.blocks))

    def _norms_with(self, found: Written) -> Float[Tensor, "layer feature"]:
        """Decoder norms that came with a sum, or else by themselves."""
        known = [norms for norms in found.norms if norms is not None]
        return torch.stack(known) if len(known) == len(found.norms) else self.decoder_norms()

    def _offsets(self, standard: Float[Tensor, "batch layer d_model"]) -> Float[Tensor, "*batch layer d_model"]:
        """What reaches the layers without features, standardised; the same for all tokens without a skip path."""
        skip = self.W_skip
        return self.b_dec if skip is None else self.b_dec + torch.einsum("bld,lod->blo", standard, skip)

    def _raw(self, reconstruction: Float[Tensor, "*some layer d_model"]) -> Float[Tensor, "*some layer d_model"]:
        return reconstruction * self.standardisation.target_scale[:, None] + self.standardisation.target_mean

    def _features(self, standard: Float[Tensor, "batch layer d_model"]) -> list[LayerFeatures]:
        """Features of all layers: the path that is trained, dense where a layer is too dense to select from."""
        # Unbound once: the gradient of a layer picked by index would be a tensor of zeros as large as all layers.
        encoders = zip(standard.unbind(1), self.W_enc.unbind(), self.b_enc.unbind(), strict=True)
        layers = [_Layer(number, *encoder) for number, encoder in enumerate(encoders)]
        selected = self._coupled(layers) if self.nonlinearity.couples_layers else [self._select(one) for one in layers]
        chosen = preactivations(standard, self.W_enc, self.b_enc, selected)
        return [self._values(*one) for one in zip(layers, selected, chosen, strict=True)]

    @torch.no_grad()
    def _coupled(self, layers: list[_Layer]) -> list[SparseFeatures]:
        """What the nonlinearity selects where all layers compete."""
        norms = self.decoder_norms()
        candidates = [
            self.nonlinearity.candidates(layer.preactivations(), layer.number, norms[layer.number]) for layer in layers
        ]
        return self.nonlinearity.couple(candidates, norms)

    @torch.no_grad()
    def _select(self, layer: _Layer) -> SparseFeatures | None:
        """What the nonlinearity selects in one layer; None if that is too much to be called sparse."""
        dense = layer.preactivations()
        if self.nonlinearity.density(dense, layer.number) > DENSE_ABOVE:
            return None
        return self.nonlinearity.select(dense, layer.number)

    def _values(self, layer: _Layer, selected: SparseFeatures | None, chosen: Float[Tensor, "active"]) -> LayerFeatures:
        """Features of one layer, from the pre-activations that were chosen, or from all; dense if they are many."""
        if selected is None:
            return self.nonlinearity.dense(layer.preactivations(), layer.number)
        features = selected.with_values(self.nonlinearity.values(chosen, selected.features, layer.number))
        return features.dense() if features.density > DENSE_ABOVE else features


class _Layer(NamedTuple):
    """One layer of the encoder, and what it reads: standardised inputs (batch, d_model)."""

    number: int
    inputs: Tensor
    weight: Tensor
    bias: Tensor

    def preactivations(self) -> Float[Tensor, "batch feature"]:
        """All of them, densely."""
        return functional.linear(self.inputs, self.weight, self.bias)
