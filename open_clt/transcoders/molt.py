"""MOLT: sparse mixtures of linear transforms, ``y_hat[l] = b_dec[l] + sum_t phi(e_t . x - b_t) U_t V_t x``.

A feature of a MOLT does not write a fixed vector. It switches on a linear map of the layer's input, which has a low
rank. So one transform can replace many features that differ only in the vector they write (transformer-circuits.pub,
2025).

Transforms of several ranks are stored together as *atoms*. An atom is a direction that is read and a direction that is
written, and a transform of rank r owns r atoms. Then a MOLT is

    y_hat = sum_j  a[owner(j)] (read_j . x + b_read_j)  write_j

This is the same sum over sparse codes as in any other transcoder, with each value multiplied by what its atom reads.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from open_clt.config import MoltConfig
from open_clt.config.arguments import checked_arguments
from open_clt.transcoders.sparse.codes import DENSE_ABOVE, LayerFeatures, SparseFeatures, dense
from open_clt.transcoders.sparse.products import preactivations, row_products, write
from open_clt.transcoders.transcoder import Transcoder


@final
class Molt(Transcoder):
    """One mixture of linear transforms per layer."""

    b_read: Tensor
    owner: Tensor
    first_atom: Tensor

    @checked_arguments
    def __init__(self, config: MoltConfig, *, seed: int = 0) -> None:
        super().__init__(config)
        self.config: MoltConfig = config  # pyright: ignore[reportIncompatibleVariableOverride] (set here only)
        atoms = sum(rank * count for rank, count in zip(config.ranks, config.counts, strict=True))
        # The sizes are given because a transcoder is also built on the device "meta", where tensors have no values.
        ranks = torch.tensor(config.ranks).repeat_interleave(torch.tensor(config.counts), output_size=config.n_features)
        self.W_read = nn.ParameterList([torch.empty(atoms, config.d_model) for _ in range(config.n_layers)])
        self.W_write = nn.ParameterList([torch.empty(atoms, config.d_model) for _ in range(config.n_layers)])
        # Zero in training; ``folded`` subtracts here what the atoms read in the mean input.
        self.register_buffer("b_read", torch.zeros(config.n_layers, atoms))
        self.register_buffer(
            "owner", torch.arange(len(ranks)).repeat_interleave(ranks, output_size=atoms), persistent=False
        )
        self.register_buffer("first_atom", functional.pad(ranks.cumsum(0), (1, 0)), persistent=False)
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Draw the weights; biases stay zero.

        Gates are drawn as other encoders, ``W_read`` from U(+-1/sqrt(d_model)), and ``W_write`` from
        U(+-1/sqrt(n_layers * d_model * rank)).
        """
        self._initialise_encoders(generator)
        d_model = self.config.d_model
        bounds = (self.config.n_layers * d_model * self.first_atom.diff()[self.owner]) ** -0.5
        for reads, writes in zip(self.W_read, self.W_write, strict=True):
            reads.uniform_(-(d_model**-0.5), d_model**-0.5, generator=generator)
            writes.uniform_(-1, 1, generator=generator).mul_(bounds[:, None])

    def written(
        self, features: LayerFeatures, source: int, standard: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, "batch target d_model"]:
        reads, writes, bias = self.W_read[source], self.W_write[source], self.b_read[source]
        if not isinstance(features, SparseFeatures) or features.density > DENSE_ABOVE:
            gates = dense(features)[:, self.owner]
            return ((functional.linear(standard, reads, bias) * gates) @ writes)[:, None]
        entries, atoms = self._atoms(features)
        with torch.no_grad():
            products = row_products(reads, standard, atoms) + bias[atoms.features]
        (read,) = preactivations(standard[:, None], reads[None], bias[None], [atoms.with_values(products)])
        return write(atoms.with_values(features.values[entries] * read), writes[:, None])

    def decoder_norms(self) -> Float[Tensor, "layer feature"]:
        """Frobenius norm of ``U_t V_t`` for each transform, in standardised units."""
        tables = zip(self.W_read, self.W_write, strict=True)
        return torch.stack([self._norms(reads, writes) for reads, writes in tables])

    def matrix(self, layer: int, transform: int) -> Float[Tensor, "d_model d_model"]:
        """The matrix ``U_t V_t`` of one transform, from standardised inputs to standardised outputs."""
        rows = slice(int(self.first_atom[transform]), int(self.first_atom[transform + 1]))
        return self.W_write[layer][rows].T @ self.W_read[layer][rows]

    def _norms(self, reads: Tensor, writes: Tensor) -> Float[Tensor, "feature"]:
        """Frobenius norms as ``|U V|^2 = sum((U^T U) * (V V^T))``, which needs rank by rank matrices only."""
        sizes = [rank * count for rank, count in zip(self.config.ranks, self.config.counts, strict=True)]
        squares: list[Tensor] = []
        for rank, group_reads, group_writes in zip(
            self.config.ranks, reads.split(sizes), writes.split(sizes), strict=True
        ):
            V, U = group_reads.unflatten(0, (-1, rank)), group_writes.unflatten(0, (-1, rank))
            squares.append(((V @ V.mT) * (U @ U.mT)).sum((1, 2)))
        # Clamped because rounding can make a square negative, and because the root has no gradient at zero.
        return torch.cat(squares).clamp(min=1e-20).sqrt()

    def _atoms(self, features: SparseFeatures) -> tuple[Int[Tensor, "atoms"], SparseFeatures]:
        """The entry of each active atom, and the atoms of the active transforms as codes of the same tokens."""
        ranks = self.first_atom.diff()[features.features]
        entries = torch.repeat_interleave(torch.arange(len(ranks), device=ranks.device), ranks)
        starts = functional.pad(ranks.cumsum(0), (1, 0))
        index_in_transform = torch.arange(len(entries), device=ranks.device) - starts[entries]
        atoms = self.first_atom[features.features[entries]] + index_in_transform
        values = features.values.detach()[entries]
        return entries, SparseFeatures(values, atoms, starts[features.offsets], self.owner.shape[0])

    def _fold_decoders(self) -> None:
        stats = self.standardisation
        for layer, (reads, writes) in enumerate(zip(self.W_read, self.W_write, strict=True)):
            reads.div_(stats.input_scale[layer])
            writes.mul_(stats.target_scale[layer])
            self.b_read[layer].sub_(reads @ stats.input_mean[layer])

    def _divide_decoders(self, factors: Float[Tensor, "layer feature"]) -> None:
        for writes, layer_factors in zip(self.W_write, factors, strict=True):
            writes.div_(layer_factors[self.owner][:, None])
