"""The record of a transcoder's reconstruction and sparsity on text, and the accumulator that computes it over batches.

Training, conversion and evaluation all feed this accumulator, and every report reads this record. FVU (fraction of
variance unexplained) of layer ``l`` is ``sum |y_hat - y|^2 / sum |y - mean(y)|^2`` over tokens and dimensions of that
layer. It is reported per layer: on GPT-2 one layer's variance outweighs all others together.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.transcoders.sparse.codes import active_counts
from open_clt.transcoders.transcoder import Transcoder

DENSE_FEATURE_DENSITY = 0.1
"""A feature that fires on a larger share of the tokens counts as dense."""
DENSITY_EDGES = tuple(10 ** (exponent / 4) for exponent in range(-24, 1))
"""Edges of the histogram of densities: four bins per decade, from one token in a million to every token."""


class LayerMetrics(NamedTuple):
    """Reconstruction and sparsity of one layer."""

    fvu: float
    """Fraction of variance unexplained."""
    l0: float
    """Active features per token."""
    dead_share: float
    """Share of the features that fire on no token."""
    dense_share: float
    """Share of the features that fire on more than ``DENSE_FEATURE_DENSITY`` of the tokens."""


class TranscoderMetrics(NamedTuple):
    """Reconstruction and sparsity of a transcoder on some tokens."""

    tokens: int
    layers: tuple[LayerMetrics, ...]
    density_histogram: tuple[int, ...]
    """Features in each bin of ``DENSITY_EDGES``. Features that fire on no token are in no bin."""

    @property
    def fvu_per_layer(self) -> list[float]:
        """FVU of each layer."""
        return [layer.fvu for layer in self.layers]

    @property
    def l0_per_layer(self) -> list[float]:
        """L0 of each layer."""
        return [layer.l0 for layer in self.layers]

    @property
    def fvu(self) -> float:
        """Mean FVU of the layers."""
        return sum(self.fvu_per_layer) / len(self.layers)

    @property
    def worst_fvu(self) -> float:
        """FVU of the worst layer."""
        return max(self.fvu_per_layer)

    @property
    def worst_layer(self) -> int:
        """The layer with the largest FVU."""
        return self.fvu_per_layer.index(self.worst_fvu)

    @property
    def l0(self) -> float:
        """Mean L0 of the layers."""
        return self.l0_total / len(self.layers)

    @property
    def l0_total(self) -> float:
        """Active features per token, of all layers together."""
        return sum(self.l0_per_layer)

    @property
    def dead_share(self) -> float:
        """Share of all features that fire on no token."""
        return sum(layer.dead_share for layer in self.layers) / len(self.layers)

    @property
    def dense_share(self) -> float:
        """Share of all features that are dense."""
        return sum(layer.dense_share for layer in self.layers) / len(self.layers)

    def totals(self) -> dict[str, Any]:
        """The numbers of the whole transcoder, by the names that files and tables give them."""
        names = ("tokens", "fvu", "worst_fvu", "worst_layer", "l0", "l0_total", "dead_share", "dense_share")
        return {name: getattr(self, name) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """``totals``, and each number per layer as a list; JSON-ready."""
        per_layer = {
            f"{name}_per_layer": [getattr(layer, name) for layer in self.layers] for name in LayerMetrics._fields
        }
        return {**self.totals(), **per_layer}


@final
class MetricsAccumulator:
    """Sums over batches of tokens, in float64; ``result`` at any time.

    The transcoder is measured as it is at inference, even while it trains. Where other processes hold some of its
    features, the numbers are those of all features.
    """

    def __init__(self, transcoder: Transcoder) -> None:
        config = transcoder.config
        self._transcoder = transcoder
        self.tokens = 0
        self._error = torch.zeros(config.n_layers, dtype=torch.float64)
        self._squares = torch.zeros(config.n_layers, dtype=torch.float64)
        self._sum = torch.zeros(config.n_layers, config.d_model, dtype=torch.float64)
        self._active = torch.zeros(config.n_layers, config.n_features, dtype=torch.long)

    @torch.no_grad()
    def update(
        self, inputs: Float[Tensor, "batch layer d_model"], targets: Float[Tensor, "batch layer d_model"]
    ) -> None:
        """Add one batch of tokens; the transcoder computes their features and their reconstruction."""
        transcoder = self._transcoder
        was_training = transcoder.training
        features, reconstruction = transcoder.eval()(inputs.to(transcoder.device, transcoder.dtype))
        transcoder.train(was_training)
        exact = targets.to("cpu", torch.float64)
        self.tokens += exact.shape[0]
        self._error += (reconstruction.to("cpu", torch.float64) - exact).square().sum((0, 2))
        self._squares += exact.square().sum((0, 2))
        self._sum += exact.sum(0)
        for layer, active in enumerate(features):
            self._active[layer] += active_counts(active).cpu()

    def target_means(self) -> Float[Tensor, "layer d_model"]:
        """Mean of each layer's targets over the tokens so far."""
        return self._sum / self.tokens

    def result(self) -> TranscoderMetrics:
        """The metrics of all tokens so far; raises ValueError before the first."""
        if self.tokens == 0:
            raise ValueError("No token was seen: metrics need at least one.")
        variance = self._squares - self._sum.square().sum(1) / self.tokens
        fvu = self._error / variance.clamp(min=1e-12)
        density, peers = self._active.double() / self.tokens, self._transcoder.peers
        shares = [chosen.double().mean(1) / peers.shards for chosen in (density == 0, density > DENSE_FEATURE_DENSITY)]
        l0, dead, dense = peers.sum_features(torch.stack([density.sum(1), *shares]))
        edges = torch.tensor([0.0, *DENSITY_EDGES[1:]], dtype=torch.float64)  # the first bin is open at its lower end
        histogram = peers.sum_features(torch.histogram(density[density > 0], edges).hist)
        rows = zip(*(column.tolist() for column in (fvu, l0, dead, dense)), strict=True)
        return TranscoderMetrics(
            tokens=self.tokens,
            layers=tuple(LayerMetrics(*row) for row in rows),
            density_histogram=tuple(histogram.int().tolist()),
        )
