"""Cross-layer transcoders: their features read at one layer, and write to that layer and later ones.

A feature of layer ``l`` writes to layers ``l ... l + reach - 1``. Full reach is the cross-layer transcoder of
Ameisen et al. (2025). ``reach = 1`` is one transcoder per layer, or one sparse autoencoder per layer if the transcoder
reconstructs what it reads. ``skip`` adds a linear path from input to output (Paulo et al., 2025). ``prefixes`` asks the
first features of every layer to reconstruct the target without the others (Matryoshka; Bussmann et al., 2025).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from open_clt.config import BatchTopKConfig, CrossLayerConfig, NonlinearityConfig, TopKConfig
from open_clt.config.arguments import checked_arguments
from open_clt.errors import ConfigError
from open_clt.short_repr import short_repr
from open_clt.transcoders.outputs import TranscoderErrors
from open_clt.transcoders.slices import WHOLE, Part
from open_clt.transcoders.sparse.codes import LayerFeatures, SparseFeatures
from open_clt.transcoders.sparse.products import Product, row_norms, write
from open_clt.transcoders.stored_weights import StoredWeights
from open_clt.transcoders.transcoder import Transcoder, encoder_rows


class NestedOutput(NamedTuple):
    """The result of a forward pass of a Matryoshka transcoder."""

    features: list[LayerFeatures]
    reconstructions: Float[Tensor, "prefix batch layer d_model"]
    """The reconstruction by each of the config's ``prefixes`` of the features, and then by all features."""

    __repr__ = short_repr


class CrossLayerTranscoder(Transcoder):
    """``y_hat[t] = b_dec[t] + sum_{s = t - reach + 1 .. t} a[s] W_dec[s -> t] (+ W_skip[t] x[t])``."""

    @checked_arguments
    def __init__(
        self, config: CrossLayerConfig, *, seed: int = 0, part: Part = WHOLE, stored: StoredWeights | None = None
    ) -> None:
        """Draw the weights from ``seed``, unless encoders and decoders are ``stored``.

        ``part`` makes the transcoder a slice of a larger one: its weights equal those that the larger one draws from
        the same seed, and ``config`` is the config of the slice.
        """
        super().__init__(config, stored=stored)
        self.part = part
        self.config: CrossLayerConfig = config  # pyright: ignore[reportIncompatibleVariableOverride] (set here only)
        if stored is not None:
            return
        tables = [
            torch.empty(config.n_features, config.reach_of(source), config.d_model) for source in range(config.n_layers)
        ]
        self.W_dec = nn.ParameterList(tables)
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Draw encoders from U(+-1/sqrt(n_features)) and decoders from U(+-1/sqrt(n_layers * d_model)).

        Biases stay zero (Ameisen et al., 2025).
        """
        self._initialise_encoders(generator)
        bound = (self.config.n_layers * self.config.d_model) ** -0.5
        for table in self.W_dec:
            self.part.draw(table, bound, generator)

    def written(
        self, features: LayerFeatures, source: int, standard: Float[Tensor, "batch d_model"]
    ) -> Product | Float[Tensor, "batch target d_model"]:
        if self.stored is not None:
            return self.stored.written(features, source, standard)
        table = self.W_dec[source]
        return Product(features, table) if isinstance(features, SparseFeatures) else write(features, table)

    def decoder_norms(self) -> Float[Tensor, "layer feature"]:
        if self.stored is not None:
            return self.stored.decoder_norms.to(self.device, self.dtype)
        return torch.stack([row_norms(table) for table in self.W_dec])

    def decoder_rows(
        self, source: int, features: Int[Tensor, "chosen"], targets: slice = slice(None)
    ) -> Float[Tensor, "chosen target d_model"]:
        """What one unit of each given feature of layer ``source`` writes, in standardised units.

        Slice ``j`` is for layer ``source + j``; ``targets`` chooses some of these slices.
        """
        if self.stored is None:
            return self.W_dec[source][:, targets][features]
        return self.stored.decoder_rows(source, features, targets).to(self.device, self.dtype)

    def decoders(self, source: int, features: Int[Tensor, "chosen"]) -> Float[Tensor, "chosen target d_model"]:
        """What one unit of each given feature of layer ``source`` writes, in raw units.

        Slice ``j`` is for layer ``source + j``.
        """
        rows = self.decoder_rows(source, features)
        return rows * self.standardisation.target_scale[source : source + rows.shape[1], None]

    def target_rows(
        self, inputs: Float[Tensor, "chosen d_model"], layer: int, features: Int[Tensor, "chosen"]
    ) -> Float[Tensor, "chosen d_model"]:
        """The pre-activations of features, without bias, as linear functions of raw inputs: the same at all inputs."""
        return encoder_rows(self, layer, features) / self.standardisation.input_scale[layer]

    def vectors(
        self,
        inputs: Float[Tensor, "position d_model"],
        source: int,
        target: int,
        *,
        features: Int[Tensor, "chosen"],
        positions: Int[Tensor, "chosen"],
    ) -> Float[Tensor, "chosen d_model"]:
        """What one unit of each given feature of layer ``source`` writes to layer ``target``, in raw units.

        It is the same at all ``positions``, and does not depend on the ``inputs`` of the layer.
        """
        rows = self.decoder_rows(source, features, slice(target - source, target - source + 1))[:, 0]
        return rows * self.standardisation.target_scale[target]

    def nested(self, inputs: Float[Tensor, "batch layer d_model"]) -> NestedOutput:
        """Encode and decode all layers, with each prefix of the features and with all; each feature is decoded once."""
        standard = self.standardisation.inputs(inputs)
        features, sums = self._nested(standard)
        return NestedOutput(features, self._unstandardised(sums + self._offsets(standard)))

    def errors(
        self,
        inputs: Float[Tensor, "batch layer d_model"],
        targets: Float[Tensor, "batch layer d_model"],
        *,
        norms: bool = False,
    ) -> TranscoderErrors:
        if not self.config.prefixes:
            return super().errors(inputs, targets, norms=norms)
        standard = self.standardisation.inputs(inputs)
        features, sums = self._nested(standard)
        without_features = self.standardisation.targets(targets).add_(-self._offsets(standard))
        errors = list((without_features - sums).unbind())
        return TranscoderErrors(features, errors, self.decoder_norms() if norms else None)

    def _nested(
        self, standard: Float[Tensor, "batch layer d_model"]
    ) -> tuple[list[LayerFeatures], Float[Tensor, "prefix batch layer d_model"]]:
        """The features, and what each prefix of them, and last all of them, write in sum, without offsets."""
        features = self._features(standard)
        bounds = (0, *self.config.prefixes, self.config.n_features)
        written = [_write_groups(active, table, bounds) for active, table in zip(features, self.W_dec, strict=True)]
        rows = written[0].new_zeros(written[0].shape[0], *standard.shape[1:])
        groups = self._sum(written, rows).added_to(rows)
        return features, groups.unflatten(0, (-1, len(bounds) - 1)).cumsum(1).transpose(0, 1)

    @checked_arguments
    @torch.no_grad()
    def prefix(self, n_features: int) -> CrossLayerTranscoder:
        """The transcoder with only the first ``n_features`` features of every layer.

        Raises ConfigError for TopK, which ranks these features against those that are cut off.
        """
        if not 1 <= n_features <= self.config.n_features:
            raise ConfigError(f"n_features is {n_features}; it must lie between 1 and {self.config.n_features}.")
        smaller_prefixes = tuple(size for size in self.config.prefixes if size < n_features)
        nonlinearity = _prefix_nonlinearity(self.config.nonlinearity, n_features)
        config = replace(self.config, n_features=n_features, prefixes=smaller_prefixes, nonlinearity=nonlinearity)
        smaller = CrossLayerTranscoder(config).to(self.device, self.dtype).train(self.training)
        state = smaller.state_dict()
        for name, tensor in self.state_dict().items():
            state[name].copy_(tensor[tuple(slice(size) for size in state[name].shape)])
        return smaller

    def _fold_decoders(self) -> None:
        for source, table in enumerate(self.W_dec):
            table.mul_(self.standardisation.target_scale[source : source + table.shape[1], None])

    def _divide_decoders(self, factors: Float[Tensor, "layer feature"]) -> None:
        for table, layer_factors in zip(self.W_dec, factors, strict=True):
            table.div_(layer_factors[:, None, None])


def _prefix_nonlinearity(config: NonlinearityConfig, n_features: int) -> NonlinearityConfig:
    if isinstance(config, TopKConfig):
        raise ConfigError(
            "A prefix of a TopK transcoder is not a transcoder, because TopK ranks all features together; convert it "
            "to JumpReLU first."
        )
    if isinstance(config, BatchTopKConfig):  # at inference only its thresholds matter, so k may be anything legal
        return replace(config, k=min(config.k, n_features), initial_k=None)
    return config


def _write_groups(
    features: LayerFeatures, table: Float[Tensor, "feature target d_model"], bounds: tuple[int, ...]
) -> Float[Tensor, "rows target d_model"]:
    """What each group of features between two bounds writes: one row per token and group, token by token."""
    if isinstance(features, SparseFeatures):
        return write(_by_group(features, bounds), table)
    sizes = [high - low for low, high in pairwise(bounds)]
    parts = zip(features.split(sizes, dim=1), table.split(sizes), strict=True)
    return torch.stack([write(part, rows) for part, rows in parts], dim=1).flatten(0, 1)


def _by_group(features: SparseFeatures, bounds: tuple[int, ...]) -> SparseFeatures:
    """The same entries as codes of ``batch * groups`` rows: each row has the features of one token and group."""
    inner = torch.tensor(bounds[1:-1], device=features.features.device)
    groups = len(bounds) - 1
    rows = features.rows * groups + torch.bucketize(features.features, inner, right=True)
    order = torch.argsort(rows, stable=True)
    counts = torch.bincount(rows, minlength=features.batch * groups)
    offsets = functional.pad(counts.cumsum(0), (1, 0))
    return SparseFeatures(features.values[order], features.features[order], offsets, features.n_features)
