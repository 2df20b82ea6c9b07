"""The base class of nonlinearities, which work in two steps: ``select``, then ``values``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from open_clt.errors import ConfigError
from open_clt.transcoders.slices import ALONE, Peers
from open_clt.transcoders.sparse.codes import SparseFeatures


class Nonlinearity(nn.Module, ABC):
    """Turns the pre-activations of a layer into features."""

    peers: Peers = ALONE
    """The processes that hold the features with which those of this process compete."""

    @property
    def couples_layers(self) -> bool:
        """Whether the selection of one layer depends on the other layers of the same batch."""
        return False

    @abstractmethod
    def select(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> SparseFeatures:
        """Select the entries that may be active or need a gradient; their values are the pre-activations."""

    def candidates(
        self, preactivations: Float[Tensor, "batch feature"], layer: int, decoder_norms: Float[Tensor, "feature"]
    ) -> SparseFeatures:
        """The entries of one layer that compete in ``couple``; by default those that ``select`` selects."""
        return self.select(preactivations, layer)

    def couple(
        self, candidates: list[SparseFeatures], decoder_norms: Float[Tensor, "layer feature"]
    ) -> list[SparseFeatures]:
        """Select among the candidates of all layers; by default all of them are selected."""
        return candidates

    def ranking_norms(self, decoder_norms: Callable[[], Tensor], like: Tensor) -> Float[Tensor, "layer feature"]:
        """The norms by which activations are multiplied in ``couple``; ``like`` has their shape and type."""
        return decoder_norms()

    def settle(self, decoder_norms: Callable[[], Tensor]) -> None:
        """Keep what the ranking needs of the decoders, before they are rescaled; by default nothing."""
        return

    def bounds(
        self, candidates: list[SparseFeatures], decoder_norms: Float[Tensor, "layer feature"]
    ) -> Float[Tensor, "batch"]:
        """The score that selects a token's features; only a nonlinearity that couples layers at inference has it."""
        raise NotImplementedError

    def progress(self, share: float) -> None:
        """Set the share of the training steps that are done, from 0 to 1; by default nothing depends on it."""
        return

    @abstractmethod
    def rescale(self, factors: Float[Tensor, "layer feature"]) -> None:
        """Adapt to pre-activations that were multiplied by these factors, all above 0.

        At inference, the same entries are selected as before.
        """

    @abstractmethod
    def values(
        self, preactivations: Float[Tensor, "active"], features: Int[Tensor, "active"], layer: int
    ) -> Float[Tensor, "active"]:
        """Feature values of the selected entries, differentiable in pre-activations and thresholds."""

    def dense(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> Float[Tensor, "batch feature"]:
        """Feature values of all entries, for layers with too many active entries for sparse products."""
        batch, n_features = preactivations.shape
        all_features = torch.arange(n_features, device=preactivations.device).repeat(batch)
        return self.values(preactivations.flatten(), all_features, layer).view(batch, n_features)

    def density(self, preactivations: Float[Tensor, "batch feature"], layer: int) -> float:
        """Share of the entries that ``select`` would select."""
        mask = self._mask(preactivations, layer)
        return int(mask.count_nonzero()) / mask.numel()

    def _mask(self, preactivations: Tensor, layer: int) -> Tensor:
        return preactivations > 0

    def threshold(self, layer: int) -> Float[Tensor, "feature"] | None:
        """Thresholds of a layer's features that determine which are active at inference; None for TopK."""
        return None


def all_candidates(
    nonlinearity: Nonlinearity,
    preactivations: Iterable[Float[Tensor, "batch feature"]],
    norms: Float[Tensor, "layer feature"],
) -> list[SparseFeatures]:
    """The entries of all layers that compete in ``couple``; the pre-activations are made one layer at a time."""
    candidates = [nonlinearity.candidates(dense, layer, norms[layer]) for layer, dense in enumerate(preactivations)]
    if len(candidates) != norms.shape[0]:
        raise ConfigError(
            f"The inputs have {len(candidates)} layers, but features of all {norms.shape[0]} layers compete."
        )
    return candidates
