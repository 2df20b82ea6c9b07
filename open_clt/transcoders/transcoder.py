"""The base class of transcoders: it encodes each layer's input into features, and decodes features into outputs.

Axes have these names everywhere in this package: ``batch`` (tokens; a transcoder does not see positions),
``position``, ``layer``, ``source`` and ``target`` (layers, in a decoder), ``feature`` (within a layer), ``d_model``.
If a config names ``layers``, the axes have only these, and the number of a layer here is its place among them. A
transcoder reads and writes raw activations, and standardises them internally.

All transcoders have the same encoder, ``a[l] = nonlinearity(W_enc[l] x[l] + b_enc[l])``, which is in this module. They
differ in what active features write (``cross_layer.py``, ``molt.py``).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from open_clt.config import TranscoderConfig
from open_clt.errors import ConfigError
from open_clt.finite import check_finite
from open_clt.html_repr import html_repr
from open_clt.transcoders.nonlinearities import Nonlinearity, all_candidates, make_nonlinearity, select_above
from open_clt.transcoders.outputs import TranscoderErrors, TranscoderOutput
from open_clt.transcoders.slices import ALONE, WHOLE, Part, Peers
from open_clt.transcoders.sparse.codes import DENSE_ABOVE, LayerFeatures, SparseFeatures
from open_clt.transcoders.sparse.products import Product, Written, multiplied, preactivations, sum_written
from open_clt.transcoders.standardisation import Standardisation
from open_clt.transcoders.stored_weights import StoredWeights, refuse_state_dict, stays_in_files

_ADVICE = "check the weights of the transcoder, and load the language model in float32"
TranscoderType = TypeVar("TranscoderType", bound="Transcoder")


class Transcoder(nn.Module, ABC):
    """Sparse features that reconstruct the output of a part of each layer of a language model, such as its MLP."""

    config: TranscoderConfig
    part: Part = WHOLE
    """The features that this transcoder holds, if it is a slice of a larger transcoder."""
    peers: Peers = ALONE
    """The processes that hold the other slices of the same transcoder; ``share_with`` sets them."""
    stored: StoredWeights | None
    """Encoders and decoders that stay in their files; None if they are in memory, as ``W_enc`` and ``W_dec``."""
    _repr_html_ = html_repr

    def __init__(self, config: TranscoderConfig, *, stored: StoredWeights | None = None) -> None:
        super().__init__()
        self.config, self.stored = config, stored
        layers, width, d_model = config.n_layers, config.n_features, config.d_model
        if stored is None:
            self.W_enc = nn.Parameter(torch.empty(layers, width, d_model))
        else:
            self.register_state_dict_pre_hook(refuse_state_dict)
        self.b_enc = nn.Parameter(torch.zeros(layers, width))
        self.b_dec = nn.Parameter(torch.zeros(layers, d_model))
        self.W_skip = nn.Parameter(torch.zeros(layers, d_model, d_model)) if config.skip else None
        self.nonlinearity = make_nonlinearity(config.nonlinearity, layers, width)
        self.standardisation = Standardisation(layers, d_model)

    def __init_subclass__(cls, **settings: Any) -> None:
        """Raise ConfigError if a subclass has its own ``forward`` but not its own ``errors``, which training calls."""
        super().__init_subclass__(**settings)
        if "forward" in vars(cls) and "errors" not in vars(cls):
            raise ConfigError(
                f"{cls.__qualname__} has its own forward, so it needs its own errors, which training calls; add "
                "`errors = errors_of_forward`, from open_clt.transcoders.transcoder, to the class."
            )

    @property
    def device(self) -> torch.device:
        """The device of the weights; rows of stored weights are moved there when they are read."""
        return self.b_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """The data type in which the transcoder computes."""
        return self.b_dec.dtype

    @property
    def n_parameters(self) -> int:
        """Number of parameters, stored ones included."""
        in_memory = sum(parameter.numel() for parameter in self.parameters())
        return in_memory + (0 if self.stored is None else self.stored.n_parameters)

    @property
    def first_position(self) -> int:
        """The first position of a text at which features are used: 0 or 1."""
        return 0 if self.config.use_first_position else 1

    @abstractmethod
    def written(
        self, features: LayerFeatures, source: int, standard: Float[Tensor, "batch d_model"]
    ) -> Product | Float[Tensor, "batch target d_model"]:
        """What features of layer ``source`` write, in standardised units: a tensor, or its two factors (``Product``).

        ``standard`` are the standardised inputs of that layer. The sum over layers multiplies the factors as it adds;
        ``multiplied`` turns them into a tensor, for subclasses that change what another class writes.
        """

    @abstractmethod
    def decoder_norms(self) -> Float[Tensor, "layer feature"]:
        """Norm of what one unit of each feature writes, in standardised units; it weighs the feature in the loss."""

    @abstractmethod
    def _fold_decoders(self) -> None:
        """Fold the standardisation into the decoders, in place, so that they read and write raw activations."""

    @abstractmethod
    def _divide_decoders(self, factors: Float[Tensor, "layer feature"]) -> None:
        """Divide each feature's decoder by its factor, in place."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"

    def __getattr__(self, name: str) -> Any:
        if name in ("W_enc", "W_dec") and vars(self).get("stored") is not None:
            raise stays_in_files(name)
        return super().__getattr__(name)

    def forward(self, inputs: Float[Tensor, "batch layer d_model"]) -> TranscoderOutput:
        """Encode and decode all layers of a batch of tokens; raises NotFiniteError if an input is not finite."""
        check_finite(inputs, "The transcoder's input", axes=("token", "layer"), layers=self.config.layers)
        if self.stored is not None:
            features = self.encode(inputs)
            return TranscoderOutput([*features], self.decode(features, inputs))
        standard = self.standardisation.inputs(inputs)
        features = self._features(standard)
        written = self._written_by_layers(features, standard)
        total = self._sum(written, standard).added_to(self._offsets(standard).expand_as(standard).clone())
        return TranscoderOutput(features, self._unstandardised(total))

    def errors(
        self,
        inputs: Float[Tensor, "batch layer d_model"],
        targets: Float[Tensor, "batch layer d_model"],
        *,
        norms: bool = False,
    ) -> TranscoderErrors:
        """Encode and decode raw ``inputs``, and subtract the reconstruction from raw ``targets``.

        ``norms`` asks for the decoder norms too. The numbers equal those of ``forward`` and ``decoder_norms``, and take
        fewer passes over memory. A subclass that overrides ``forward`` overrides this method too.
        """
        standard = self.standardisation.inputs(inputs)
        features = self._features(standard)
        total = self._sum(self._written_by_layers(features, standard), standard, norms=norms)
        # Offsets are negated before they are broadcast, so that their gradient is summed before it is negated.
        errors = total.taken_from(self.standardisation.targets(targets).add_(-self._offsets(standard)))
        return TranscoderErrors(features, [errors], self._norms_of(total) if norms else None)

    def encode_layer(
        self, inputs: Float[Tensor, "batch d_model"], layer: int, *, bounds: Float[Tensor, "bound"] | None = None
    ) -> SparseFeatures:
        """Features of one layer, computed from that layer's raw inputs.

        If features of all layers compete, one layer needs the ``bounds`` of its tokens (``score_bounds``). Raises
        ConfigError without them, and NotFiniteError if a pre-activation is not finite, because the feature would be
        inactive without a word.
        """
        with torch.no_grad():
            dense = self._finite_preactivations(inputs, layer)
            if bounds is None:
                selected = self.nonlinearity.select(dense, layer)
            else:
                selected = select_above(dense, self._ranking_norms()[layer], bounds)
        return self._activated(selected, layer)

    def encode(self, inputs: Float[Tensor, "batch layer d_model"]) -> list[SparseFeatures]:
        """Features of all layers, computed from their raw inputs."""
        layers = range(inputs.shape[1])
        if not self.nonlinearity.couples_layers:
            return [self.encode_layer(inputs[:, layer], layer) for layer in layers]
        selected = self._select_jointly(self._finite_preactivations(inputs[:, layer], layer) for layer in layers)
        return [self._activated(of_layer, layer) for layer, of_layer in enumerate(selected)]

    def write(
        self, features: LayerFeatures, source: int, inputs: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, "batch target d_model"]:
        """What features of layer ``source`` write, in raw units and without bias: slice ``j`` is for ``source + j``.

        ``inputs`` are the raw inputs of layer ``source``. The output of a transform depends on them; the output of a
        decoder does not.
        """
        written = multiplied(self.written(features, source, self._standard_input(inputs, source)))
        return written * self.standardisation.target_scale[source : source + written.shape[1], None]

    def offset(self, inputs: Float[Tensor, "batch d_model"], layer: int) -> Float[Tensor, "batch d_model"]:
        """The part of a layer's reconstruction that does not come from features: decoder bias and skip path."""
        offset = self.b_dec[layer].expand_as(inputs)
        if self.W_skip is not None:
            offset = offset + self._standard_input(inputs, layer) @ self.W_skip[layer].T
        return offset * self.standardisation.target_scale[layer] + self.standardisation.target_mean[layer]

    def decode(
        self, features: Sequence[LayerFeatures], inputs: Float[Tensor, "batch layer d_model"]
    ) -> Float[Tensor, "batch layer d_model"]:
        """The reconstruction of all layers: the sum of what every source layer writes, and the offsets."""
        reconstruction = torch.stack([self.offset(inputs[:, layer], layer) for layer in range(inputs.shape[1])], dim=1)
        for source, active in enumerate(features):
            written = self.write(active, source, inputs[:, source])
            reconstruction[:, source : source + written.shape[1]] += written
        return reconstruction

    def preactivations_of(
        self, inputs: Float[Tensor, "batch d_model"], layer: int, features: Int[Tensor, "chosen"]
    ) -> Float[Tensor, "batch chosen"]:
        """Pre-activations of the given features of one layer, computed from that layer's raw inputs."""
        bias = self.b_enc[layer][features]
        return functional.linear(self._standard_input(inputs, layer), encoder_rows(self, layer, features), bias)

    @torch.no_grad()
    def folded(self: TranscoderType) -> TranscoderType:
        """A copy with the standardisation folded into its weights: they read and write raw activations.

        The standardisation of the copy is the identity, and its outputs are the same up to rounding.
        """
        copied = copy.deepcopy(self)
        copied.nonlinearity.settle(self.decoder_norms)
        stats = self.standardisation
        copied.W_enc.div_(stats.input_scale[:, None, None])
        copied.b_enc.sub_(torch.einsum("lfd,ld->lf", copied.W_enc, stats.input_mean))
        copied.b_dec.mul_(stats.target_scale[:, None]).add_(stats.target_mean)
        if copied.W_skip is not None:
            copied.W_skip.mul_((stats.target_scale / stats.input_scale)[:, None, None])
            copied.b_dec.sub_(torch.einsum("lod,ld->lo", copied.W_skip, stats.input_mean))
        copied._fold_decoders()
        copied.standardisation = Standardisation(self.config.n_layers, self.config.d_model).to(self.device, self.dtype)
        return copied

    @torch.no_grad()
    def with_unit_decoders(self: TranscoderType) -> TranscoderType:
        """A copy in which every decoder norm is 1, with encoders and thresholds rescaled to match.

        The norm is over all targets of a feature, in standardised units; for raw units, call ``folded`` first. The
        outputs at inference are the same up to rounding. Raises ConfigError for TopK that ranks features by size.
        """
        copied = copy.deepcopy(self)
        norms = self.decoder_norms()
        norms = torch.where(norms > 0, norms, torch.ones_like(norms))  # a feature that writes nothing is not rescaled
        copied.W_enc.mul_(norms[..., None])
        copied.b_enc.mul_(norms)
        copied.nonlinearity.rescale(norms)
        copied._divide_decoders(norms)
        return copied

    def _initialise_encoders(self, generator: torch.Generator) -> None:
        """Draw encoders from U(+-1/sqrt(n_features)); biases stay zero (Ameisen et al., 2025)."""
        bound = (self.config.n_features * self.part.shards) ** -0.5
        for rows in self.W_enc.unbind():
            self.part.draw(rows, bound, generator)

    def _standard_input(self, inputs: Float[Tensor, "batch d_model"], layer: int) -> Float[Tensor, "batch d_model"]:
        return (inputs - self.standardisation.input_mean[layer]) / self.standardisation.input_scale[layer]

    def _dense_preactivations(
        self, standard: Float[Tensor, "batch d_model"], layer: int
    ) -> Float[Tensor, "batch feature"]:
        if self.stored is None:
            return functional.linear(standard, self.W_enc[layer], self.b_enc[layer])
        return self.stored.preactivations(standard, layer, self.b_enc[layer])

    def _written_by_layers(
        self, features: Sequence[LayerFeatures], standard: Float[Tensor, "batch layer d_model"]
    ) -> list[Product | Float[Tensor, "batch target d_model"]]:
        """What the features of each source layer write."""
        return [self.written(active, source, standard[:, source]) for source, active in enumerate(features)]

    def _sum(self, written: Sequence[Product | Tensor], like: Tensor, *, norms: bool = False) -> Written:
        """The sum of what all features write: those of this process and those of its peers."""
        total = sum_written(written, like, norms=norms)
        return total._replace(blocks=self.peers.sum_features(total.blocks))

    def _norms_of(self, total: Written) -> Float[Tensor, "layer feature"]:
        """The decoder norms that the sum computed, or computed anew if it did not compute those of all layers."""
        computed = [norms for norms in total.norms if norms is not None]
        return torch.stack(computed) if len(computed) == len(total.norms) else self.decoder_norms()

    def _offsets(self, standard: Float[Tensor, "batch layer d_model"]) -> Float[Tensor, "*batch layer d_model"]:
        """Decoder biases and skip paths of all layers, in standardised units; without skip paths no batch axis."""
        skip = self.W_skip
        return self.b_dec if skip is None else self.b_dec + torch.einsum("bld,lod->blo", standard, skip)

    def _unstandardised(
        self, reconstruction: Float[Tensor, "*batch layer d_model"]
    ) -> Float[Tensor, "*batch layer d_model"]:
        return reconstruction * self.standardisation.target_scale[:, None] + self.standardisation.target_mean

    def _features(self, standard: Float[Tensor, "batch layer d_model"]) -> list[LayerFeatures]:
        """Features of all layers, differentiable; dense for layers in which too many entries are active."""
        # Unbound once: the gradient of a layer picked by index would be a tensor of zeros as large as all layers.
        encoders = zip(standard.unbind(1), self.W_enc.unbind(), self.b_enc.unbind(), strict=True)
        layers = [_Layer(index, *encoder) for index, encoder in enumerate(encoders)]
        if self.nonlinearity.couples_layers:
            selected: list[SparseFeatures | None] = [*self._select_jointly(map(_Layer.preactivations, layers))]
        else:
            selected = [self._select(layer) for layer in layers]
        active = preactivations(standard, self.W_enc, self.b_enc, selected)
        return [self._values(*of_layer) for of_layer in zip(layers, selected, active, strict=True)]

    @torch.no_grad()
    def _select_jointly(self, preactivations: Iterable[Float[Tensor, "batch feature"]]) -> list[SparseFeatures]:
        """The entries of all layers that a nonlinearity selects if its layers compete."""
        norms = self._ranking_norms()
        return self.nonlinearity.couple(all_candidates(self.nonlinearity, preactivations, norms), norms)

    def _score_bounds(self, inputs: Float[Tensor, "batch layer d_model"]) -> Float[Tensor, "batch"]:
        norms = self._ranking_norms()
        preactivations = (
            self._finite_preactivations(of_layer, layer) for layer, of_layer in enumerate(inputs.unbind(1))
        )
        return self.nonlinearity.bounds(all_candidates(self.nonlinearity, preactivations, norms), norms)

    @torch.no_grad()
    def _ranking_norms(self) -> Float[Tensor, "layer feature"]:
        return self.nonlinearity.ranking_norms(self.decoder_norms, self.b_enc)

    def _finite_preactivations(
        self, inputs: Float[Tensor, "batch d_model"], layer: int
    ) -> Float[Tensor, "batch feature"]:
        """The pre-activations of one layer, from its raw inputs; raises NotFiniteError if one is not finite."""
        dense = self._dense_preactivations(self._standard_input(inputs, layer), layer)
        name = f"The pre-activations of layer {self.config.model_layers[layer]}"
        check_finite(dense, name, axes=("token", "feature"), advice=_ADVICE)
        return dense

    def _activated(self, selected: SparseFeatures, layer: int) -> SparseFeatures:
        """The features of selected entries, without those of value zero."""
        features = selected.with_values(self.nonlinearity.values(selected.values, selected.features, layer))
        return SparseFeatures.from_dense(features.dense()) if bool((features.values == 0).any()) else features

    @torch.no_grad()
    def _select(self, layer: _Layer) -> SparseFeatures | None:
        """The entries of one layer that the nonlinearity selects; None if they are too many for sparse products."""
        dense = layer.preactivations()
        if self.nonlinearity.density(dense, layer.index) > DENSE_ABOVE:
            return None
        return self.nonlinearity.select(dense, layer.index)

    def _values(self, layer: _Layer, selected: SparseFeatures | None, active: Float[Tensor, "active"]) -> LayerFeatures:
        """Features of one layer, from the pre-activations of the selected entries, or of all if none are selected."""
        if selected is None:
            return self.nonlinearity.dense(layer.preactivations(), layer.index)
        features = selected.with_values(self.nonlinearity.values(active, selected.features, layer.index))
        return features.dense() if features.density > DENSE_ABOVE else features


def errors_of_forward(
    transcoder: Transcoder,
    inputs: Float[Tensor, "batch layer d_model"],
    targets: Float[Tensor, "batch layer d_model"],
    *,
    norms: bool = False,
) -> TranscoderErrors:
    """The errors of a transcoder, from its forward pass: the method ``errors`` of a class with its own ``forward``."""
    features, reconstruction = transcoder(inputs)
    errors = transcoder.standardisation.errors(targets - reconstruction)
    return TranscoderErrors(features, [errors], transcoder.decoder_norms() if norms else None)


@torch.no_grad()
def score_bounds(transcoder: Transcoder, inputs: Float[Tensor, "batch layer d_model"]) -> Float[Tensor, "batch"] | None:
    """The score that a token's features must reach to be active; None unless features of all layers compete."""
    if not transcoder.nonlinearity.couples_layers:
        return None
    return transcoder._score_bounds(inputs)  # pyright: ignore[reportPrivateUsage] (it is of this module)


def encoder_rows(
    transcoder: Transcoder, layer: int, features: Int[Tensor, "chosen"]
) -> Float[Tensor, "chosen d_model"]:
    """Encoder rows of the given features of one layer, for standardised inputs."""
    if transcoder.stored is None:
        return transcoder.W_enc[layer][features]
    return transcoder.stored.encoder_rows(layer, features).to(transcoder.device, transcoder.dtype)


def share_with(transcoder: Transcoder, peers: Peers) -> None:
    """Make a transcoder a slice of a larger one, of which ``peers`` hold the other slices."""
    for module in transcoder.modules():
        if isinstance(module, Transcoder | Nonlinearity):
            module.peers = peers


class _Layer(NamedTuple):
    """The encoder of one layer, and its standardised inputs (batch, d_model)."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride] (hides tuple.index, which has no use here)
    inputs: Tensor
    weight: Tensor
    bias: Tensor

    def preactivations(self) -> Float[Tensor, "batch feature"]:
        """The pre-activations of all features, as a dense tensor."""
        return functional.linear(self.inputs, self.weight, self.bias)
