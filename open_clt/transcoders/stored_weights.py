"""Stored weights: the encoders and decoders of a transcoder that stay in their files, because memory is too small.

Encoders are read in blocks of features, and each block is multiplied before the next is read. Of the decoders, only the
rows of active features are read. Numbers keep the type in which they are stored until they are multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from open_clt.errors import CheckpointError, ConfigError
from open_clt.files import Table
from open_clt.finite import check_finite, is_finite
from open_clt.short_repr import short_repr
from open_clt.transcoders.sparse.codes import LayerFeatures, SparseFeatures
from open_clt.transcoders.sparse.products import write

_BLOCK_NUMBERS = 2**21
"""Number of weights that are converted and multiplied at once (8 MB in float32), so that they stay in the cache."""


@final
@dataclass(frozen=True, eq=False)
class StoredWeights:
    """Encoders and decoders in the files of a transcoder; results have the type and the device of the inputs."""

    encoders: tuple[Table, ...]
    """Encoder of each layer: (feature, d_model)."""
    decoders: tuple[tuple[Table, ...], ...]
    """Decoder of each source layer, in parts that are joined along the target axis: (feature, target, d_model)."""
    block_numbers: int = _BLOCK_NUMBERS
    """Number of weights that are multiplied at once."""

    @property
    def tables(self) -> tuple[Table, ...]:
        """All encoders, and all parts of decoders."""
        return (*self.encoders, *(part for parts in self.decoders for part in parts))

    @property
    def n_parameters(self) -> int:
        """Number of weights of all encoders and decoders."""
        return sum(table.shape.numel() for table in self.tables)

    def __deepcopy__(self, memo: dict[int, object]) -> StoredWeights:
        return self  # nothing changes the files, so copies of a transcoder share them

    def preactivations(
        self, inputs: Float[Tensor, "batch d_model"], layer: int, bias: Float[Tensor, "feature"]
    ) -> Float[Tensor, "batch feature"]:
        """The pre-activations of all features of a layer; the encoder is read block by block.

        Raises CheckpointError, which names the file, if a number of the encoder is not finite.
        """
        encoder = self.encoders[layer]
        result = inputs.new_empty(inputs.shape[0], len(encoder))
        for block in self._blocks(encoder):
            weight = encoder[block].read()
            result[:, block] = functional.linear(inputs, weight.to(inputs), bias[block])
            if not is_finite(result[:, block]):  # the block is searched only now, because that takes as long again
                for part in (*encoder[block].parts, encoder[block]):  # a part may be infinite only once it is scaled
                    name = f"The tensor {part.name!r} of layer {layer} in {part.place}, from feature {block.start} on,"
                    check_finite(part.read(), name, error=CheckpointError)
        return result

    def encoder_rows(self, layer: int, features: Int[Tensor, "chosen"]) -> Float[Tensor, "chosen d_model"]:
        """Encoder rows of some features of a layer, in the type in which they are stored."""
        return self.encoders[layer].rows(features)

    def decoder_rows(
        self, source: int, features: Int[Tensor, "chosen"], targets: slice = slice(None)
    ) -> Float[Tensor, "chosen target d_model"]:
        """What one unit of some features of a layer writes to a range of its targets, as it is stored."""
        begin, end, _ = targets.indices(sum(part.shape[1] for part in self.decoders[source]))
        read: list[Tensor] = []
        for part in self.decoders[source]:
            width = part.shape[1]
            if begin < width and end > 0:
                read.append(part[:, max(0, begin) : end].rows(features))
            begin, end = begin - width, end - width
        return read[0] if len(read) == 1 else torch.cat(read, dim=1)

    def written(
        self, features: LayerFeatures, source: int, like: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, "batch target d_model"]:
        """What features of a layer write; the rows of active features are read, some at a time."""
        if not isinstance(features, SparseFeatures):
            features = SparseFeatures.from_dense(features)
        reach = sum(part.shape[1] for part in self.decoders[source])
        total = like.new_zeros(features.batch, reach, like.shape[1])
        rows, local = features.features.unique(return_inverse=True)
        compact = SparseFeatures(features.values, local, features.offsets, len(rows))
        step = max(1, self.block_numbers // (reach * like.shape[1]))
        for start in range(0, len(rows), step):
            part = compact.kept((local >= start) & (local < start + step))
            table = self.decoder_rows(source, rows[start : start + step]).to(like)
            total += write(SparseFeatures(part.values, part.features - start, part.offsets, len(table)), table)
        return total

    @cached_property
    def decoder_norms(self) -> Float[Tensor, "layer feature"]:
        """Norm of what one unit of each feature writes; all decoders are read once.

        Raises CheckpointError, which names the file, if a number of a decoder is not finite.
        """
        return torch.stack([self._norms(source) for source in range(len(self.decoders))])

    def _norms(self, source: int) -> Float[Tensor, "feature"]:
        parts = self.decoders[source]
        squares = torch.zeros(len(parts[0]), dtype=torch.float64)
        for part in parts:
            for block in self._blocks(part):
                rows = part[block].read()
                check_finite(rows, f"The tensor {part.name!r} of layer {source} in {part.place}", error=CheckpointError)
                squares[block] += rows.flatten(1).double().square().sum(1)
        return squares.sqrt().float()

    def _blocks(self, table: Table) -> Iterator[slice]:
        """Ranges of features that are read at once."""
        step = max(1, self.block_numbers // max(1, table.shape[1:].numel()))
        for start in range(0, len(table), step):
            yield slice(start, start + step)

    __repr__ = short_repr


def tensors_in_memory(transcoder: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a transcoder by name, without weights that stay in their files."""
    return {**dict(transcoder.named_parameters()), **dict(transcoder.named_buffers())}


def refuse_state_dict(transcoder: nn.Module, *_: object) -> None:
    """Raise ConfigError, because a state dict without the stored weights could be saved as if it were whole."""
    raise stays_in_files("The state dict")


def stays_in_files(name: str) -> ConfigError:
    """The error for what needs all weights of a transcoder in memory."""
    return ConfigError(
        f"{name} of this transcoder is not in memory, because its weights stay in their files; use encoder_rows and "
        "decoder_rows, or load the transcoder with a larger memory_limit."
    )
